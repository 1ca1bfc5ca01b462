"""Noise by the coordinator: what one client's whole data can move, what it costs, and that it is written down first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated_clients import LAYOUT as SMALL
from federated_clients import TERMS, Federation, clients
from tiny_rounds import LAYOUT, method_of, start, updates_of

from neuralforge_common.accounting import Steps, calibrate, epsilon
from neuralforge_common.errors import PrivacyError, StorageError
from neuralforge_server import events
from neuralforge_server.aggregation.method import Aggregate, GlobalState, Update
from neuralforge_server.central import CLIP_FIGURE, COUNT_SHARE, Central, _spreads
from neuralforge_server.cli.status import privacy as status_of
from neuralforge_server.ledger import Ledger
from neuralforge_server.terms import CentralTerms

PLAIN = CentralTerms(noise_multiplier=1.0, clip=0.5)
EXACT = replace(PLAIN, noise_multiplier=1e-6)
"""The sum is rounded to a grid as fine as its noise: here it is nothing."""
NOISY = CentralTerms(noise_multiplier=4.0, clip=0.01, target_epsilon=8.0)


def silence(count: int) -> Any:
    return np.zeros(count)


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / "state") as opened:
        yield opened


def one_round(
    ledger: Ledger,
    updates: list[Update],
    terms: CentralTerms = PLAIN,
    *,
    method: str = "mean",
    optimizer: str = "fedavg",
    divisor: float = 1.0,
    round_number: int = 1,
    noise: Callable[[int], Any] | None = silence,
) -> tuple[GlobalState, Aggregate]:
    made = method_of(method, optimizer=optimizer)
    state = start(made)
    central = Central(terms, ledger) if noise is None else Central(terms, ledger, noise=noise)
    fold = central.begin(made, state, round_number, divisor=divisor)
    for update in updates:
        fold.add(update)
    return state, fold.finish()


def moved(ledger: Ledger, updates: list[Update], **how: Any) -> Any:
    state, aggregate = one_round(ledger, updates, **how)
    return aggregate.state.vector.astype(np.float64) - state.vector


def test_without_noise_and_with_an_endless_clip_it_is_the_plain_mean(ledger: Ledger) -> None:
    updates = updates_of("both", 5)
    found = moved(ledger, updates, terms=replace(EXACT, clip=100.0), divisor=5)
    np.testing.assert_allclose(found, np.mean([u.delta for u in updates], axis=0), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 0.05, 1e6])
def test_one_clients_whole_data_moves_the_sum_by_no_more_than_the_clip(ledger: Ledger, scale: float) -> None:
    others = updates_of("both", 4, seed=1)
    (mine,) = updates_of("both", 1, seed=2, scale=scale)
    mine = replace(mine, client="me")
    apart = moved(ledger, [*others, mine], terms=EXACT) - moved(ledger, others, terms=EXACT)
    # float32 states: what is read back is rounded to their last digit.
    assert np.linalg.norm(apart) <= PLAIN.clip * (1 + 1e-6) + 1e-6
    if scale > 1e-4:
        assert np.linalg.norm(apart) >= PLAIN.clip * 0.999


def test_a_client_of_a_lower_rank_is_clipped_as_well(ledger: Ledger) -> None:
    updates = updates_of("both", 2, ranks=[2, 1], scale=100)
    assert np.linalg.norm(moved(ledger, updates, terms=EXACT)) <= 2 * PLAIN.clip * (1 + 1e-6)


def test_noise_comes_once_in_a_round_with_the_deviation_that_the_accountant_counts(ledger: Ledger) -> None:
    terms = replace(PLAIN, noise_multiplier=3.0, clip=0.5)
    for count, divisor in ((0, 1.0), (7, 4.0)):
        updates = [replace(u, delta=np.zeros_like(u.delta)) for u in updates_of("both", count)]
        drawn = np.concatenate([moved(ledger, updates, terms=terms, divisor=divisor, noise=None) for _ in range(30)])
        spread = 3.0 * 0.5 / divisor
        # χ² with so many degrees of freedom, six deviations either way.
        assert (drawn**2).sum() / spread**2 == pytest.approx(drawn.size, abs=6 * math.sqrt(2 * drawn.size))
        assert abs(drawn.mean()) < 6 * spread / math.sqrt(drawn.size)
        assert len(np.unique(drawn)) > 0.99 * drawn.size


@pytest.mark.parametrize("optimizer", ["fedavg", "nesterov", "fedadam"])
@pytest.mark.parametrize(("method", "part"), [("mean", "both"), ("frozen-a", "B"), ("alternating", "B")])
def test_what_follows_sees_the_noised_sum_alone(ledger: Ledger, method: str, part: Any, optimizer: str) -> None:
    updates = updates_of(part, 3)
    fixed = np.random.default_rng(5).standard_normal(LAYOUT.size)
    _, aggregate = one_round(
        ledger, updates, method=method, optimizer=optimizer, divisor=2.0, noise=lambda n: fixed[:n]
    )
    total = np.sum([u.delta * min(1.0, 0.5 / np.linalg.norm(u.delta)) for u in updates], axis=0)
    total = total + 0.5 * fixed[: total.size]
    made = method_of(method, optimizer=optimizer)
    fold = made.begin(start(made), 1)
    fold.add(Update(client="x", rank=LAYOUT.rank, part=part, delta=(total / 2).astype(np.float32)))
    np.testing.assert_allclose(aggregate.state.vector, fold.finish().state.vector, atol=1e-5)
    assert aggregate.exactness_error is None
    assert aggregate.clients == 3


def test_an_adaptive_clip_finds_the_quantile_and_is_kept_in_the_ledger(ledger: Ledger) -> None:
    terms = replace(PLAIN, adaptive=True, quantile=0.75, clip=26.0)
    updates = updates_of("both", 8, scale=1.0)
    lengths = [2.0**place for place in range(8)]
    updates = [
        replace(u, delta=(u.delta * (length / np.linalg.norm(u.delta))).astype(np.float32))
        for u, length in zip(updates, lengths, strict=True)
    ]
    ledger.open_with({})
    ledger.commit(0, b"0", {})
    for number in range(1, 20):
        _, aggregate = one_round(ledger, updates, terms, divisor=8, round_number=number)
        ledger.commit(number, b"%d" % number, aggregate.figures)
    # Six of the eight are shorter.
    assert lengths[5] * 0.8 < ledger.figure(CLIP_FIGURE) < lengths[6] * 1.3  # type: ignore[operator]


def test_count_and_sum_together_cost_what_the_sum_alone_would() -> None:
    adaptive = replace(PLAIN, noise_multiplier=1.7, adaptive=True)
    on_sum, on_count = _spreads(adaptive)
    # The sum moves by S, whose noise is on_sum·S; the count of ±½ by ½.
    assert 1 / on_sum**2 + (0.5 / on_count) ** 2 == pytest.approx(1 / 1.7**2)
    assert (0.5 / on_count) ** 2 == pytest.approx(COUNT_SHARE / 1.7**2)


# Whole federations


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "state")


def spent(federation: Federation) -> dict[str, tuple[Steps, ...]]:
    ledger = Ledger.look(federation.folder)
    try:
        return ledger.spent("client")
    finally:
        ledger.close()


def test_restarts_and_all_rounds_cost_what_one_accountant_says(federation: Federation) -> None:
    for rounds in (1, 2, 5):
        federation.run(terms=replace(TERMS, rounds=rounds, central=NOISY))
    alone = [Steps(sample_rate=1.0, noise_multiplier=4.0, count=5)]
    assert spent(federation) == {f"client-{n}": tuple(alone) for n in range(3)}
    committed = [event for event in federation.seen if isinstance(event, events.RoundCommitted)]
    found = epsilon(alone, 1e-5)
    ledger = Ledger.look(federation.folder)
    (status,) = status_of(ledger)
    ledger.close()
    assert (status["epsilon"], status["target_epsilon"], status["steps"]) == (found, 8.0, 5)
    assert committed[-1].privacy == (f"ε = {found:.3g} at δ = 1e-05, user-level: one client's whole data",)


def test_a_round_is_charged_before_it_counts_and_again_when_it_is_repeated(federation: Federation) -> None:
    states, away = federation.folder / "states", federation.folder / "away"

    def break_the_disk(event: events.Event) -> None:
        if isinstance(event, events.RoundBegan) and event.round == 2 and not away.exists():
            states.rename(away)
            states.write_text("not a folder")

    terms = replace(TERMS, central=NOISY)
    with pytest.raises(StorageError):
        federation.run(terms=terms, on=break_the_disk)
    assert {sum(steps.count for steps in history) for history in spent(federation).values()} == {2}
    states.unlink()
    away.rename(states)
    federation.run(terms=terms)
    assert {sum(steps.count for steps in history) for history in spent(federation).values()} == {4}
    assert len(federation.states()) == 4


def test_it_stops_before_the_budget_is_exceeded(federation: Federation) -> None:
    noise = calibrate(target_epsilon=2.0, delta=1e-5, sample_rate=1.0, steps=2)
    terms = replace(TERMS, central=replace(NOISY, noise_multiplier=noise, target_epsilon=2.0))
    with pytest.raises(PrivacyError, match="round 3 would exceed the privacy budget of 3 of the 3 clients here"):
        federation.run(terms=terms)
    assert len(federation.states()) == 3
    assert epsilon(spent(federation)["client-0"], 1e-5) <= 2.0


def test_clients_that_coins_choose_are_all_charged_and_a_round_counts_whoever_they_are(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "state", count=4)
    terms = replace(TERMS, rounds=12, central=replace(NOISY, client_rate=0.3))
    federation.run(terms=terms)
    assert len(federation.states()) == 13
    asked = [len(event.clients) for event in federation.seen if isinstance(event, events.RoundBegan)]
    assert min(asked) < 3  # below what would be a quorum: P = 1e-13 that it never is
    assert not [event for event in federation.seen if isinstance(event, events.BelowQuorum)]
    once = Steps(sample_rate=0.3, noise_multiplier=4.0, count=12)
    assert spent(federation) == {f"client-{n}": (once,) for n in range(4)}
    assert epsilon([once], 1e-5) < 0.6 * epsilon([replace(once, sample_rate=1.0)], 1e-5)


def test_a_ledger_that_has_forgotten_what_was_spent_is_not_gone_on_with(federation: Federation) -> None:
    terms = replace(TERMS, rounds=1, central=NOISY)
    federation.run(terms=terms)
    (federation.folder / "rounds.db").write_bytes(b"damaged")
    with pytest.raises(PrivacyError, match=r"what they have cost the clients' privacy is not in rounds\.db"):
        federation.run(terms=replace(terms, rounds=2))


def test_another_clients_past_does_not_decide_whether_an_update_counts(federation: Federation) -> None:
    def train(plan: Any, state: Any, client: int) -> Any:
        return np.full(SMALL.part_size(plan.part), 0.01 if plan.round == 6 and client == 2 else 1e-6, np.float32)

    federation.run(clients(train), terms=replace(TERMS, rounds=6, central=NOISY))
    assert federation.turned() == []


def test_too_few_clients_for_so_much_noise_are_told(federation: Federation) -> None:
    federation.run(terms=replace(TERMS, rounds=1, central=NOISY))
    (opened,) = [event for event in federation.seen if isinstance(event, events.Opened)]
    assert "times as long as what they can move the adapter by" in opened.notices[0]
