"""The rounds themselves, over a grid in this process, with clients that answer as ours do and learn nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federated_clients import LAYOUT, SPEC, TERMS, Federation, clients, drift

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan
from neuralforge_server import events
from neuralforge_server.clients import Stopped
from neuralforge_server.terms import AdapterRequest
from neuralforge_simulations.grid import Habits


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "state")


def test_all_rounds_are_committed_and_everybody_gets_the_adapter(federation: Federation) -> None:
    strategy = federation.run()
    assert len(federation.states()) == 4  # the beginning counts as round 0
    finished = [event for event in federation.seen if isinstance(event, events.Finished)]
    assert finished == [events.Finished(rounds=3, clients=("client-0", "client-1", "client-2"))]
    assert strategy.spec == SPEC
    scored = [event.round for event in federation.seen if isinstance(event, events.Scored)]
    assert scored == [1, 2, 3]


def test_the_mean_weighs_clients_by_their_examples(federation: Federation) -> None:
    terms = replace(TERMS, rounds=1)
    strategy = federation.run(terms=terms)
    begun = LAYOUT.draw(terms.seed).astype(np.float64)
    plan = terms.plan(1, "n", spec=SPEC, layout=LAYOUT, state=strategy.state, part="both")
    deltas = [drift(plan, begun.astype(np.float32), client) for client in range(3)]
    wanted = begun + sum((10 + c) * deltas[c].astype(np.float64) for c in range(3)) / 33
    np.testing.assert_allclose(strategy.state.vector, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["mean", "frozen-a", "alternating", "residual", "svd", "stacking", "personal"])
def test_a_coordinator_that_stops_anywhere_ends_with_the_same_bytes(tmp_path: Path, method: str) -> None:
    whole = Federation(tmp_path / "whole", method=method)
    whole.run()
    halting = Federation(tmp_path / "halting", method=method)
    # Stopped after 1, 2, 3 … things have happened, each time by a coordinator of its own.
    for patience in range(1, 12):
        happened: list[events.Event] = []

        def tired(limit: int = patience, happened: list[events.Event] = happened) -> bool:
            return len(happened) >= limit

        try:
            halting.run(stop=tired, on=happened.append)
        except Stopped:
            continue
        except FederationError as fault:  # stopped while clients were being asked for the adapter
            assert "agree" in str(fault)  # noqa: PT017
    halting.run()
    assert halting.states() == whole.states()


def test_the_order_of_answers_changes_no_bit(tmp_path: Path) -> None:
    plain = Federation(tmp_path / "plain")
    plain.run()
    shuffled = Federation(tmp_path / "shuffled")
    shuffled.run(habits=Habits(slow=frozenset({0, 1}), slow_seconds=60))
    assert shuffled.states() == plain.states()


def test_a_client_that_raises_is_named_and_the_round_goes_on(federation: Federation) -> None:
    def train(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
        if client == 1 and plan.round == 2:
            raise RuntimeError("a secret path of this machine")
        return drift(plan, state, client)

    federation.run(clients(train), replace(TERMS, quorum=2, min_clients=2))
    assert federation.turned() == [(2, "client-1", "failed")]
    assert "secret" not in (federation.folder / "rounds.db").read_bytes().decode("latin-1")


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e9])
def test_a_poisoned_delta_is_refused_by_name_and_changes_nothing(tmp_path: Path, poison: float) -> None:
    def train(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
        delta = drift(plan, state, client)
        if client == 2:
            delta = delta.copy()
            delta[3] = poison
        return delta

    honest = Federation(tmp_path / "honest", count=2)
    honest.run(terms=replace(TERMS, min_clients=2, quorum=2))
    attacked = Federation(tmp_path / "attacked")
    # Our own client would not even encode NaN: the bytes are made by hand there.
    if np.isfinite(poison):
        attacked.run(clients(train), replace(TERMS, quorum=2))
        assert attacked.turned() == [(number, "client-2", "norm") for number in (1, 2, 3)]
    else:
        attacked.run(clients(train), replace(TERMS, quorum=2))
        assert {reason for _, _, reason in attacked.turned()} == {"failed"}
    assert attacked.states() == honest.states()


def test_below_quorum_nothing_is_committed_and_the_round_is_tried_again(federation: Federation) -> None:
    asked = 0

    def train(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
        nonlocal asked
        asked += 1
        if asked <= 3 and client == 0:
            raise RuntimeError
        return drift(plan, state, client)

    federation.run(clients(train))
    below = [event for event in federation.seen if isinstance(event, events.BelowQuorum)]
    assert below == [events.BelowQuorum(round=1, attempt=1, clients=2, wanted=3)]
    assert len(federation.states()) == 4


def test_a_round_that_never_reaches_its_quorum_ends_the_run_and_keeps_what_was_committed(
    federation: Federation,
) -> None:
    def train(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
        if plan.round == 2 and client == 0:
            raise RuntimeError
        return drift(plan, state, client)

    with pytest.raises(FederationError, match="round 2 stayed below its quorum of 3 clients in 2 attempts"):
        federation.run(clients(train), replace(TERMS, max_attempts=2))
    assert len(federation.states()) == 2
    federation.run()
    assert len(federation.states()) == 4


def test_a_revoked_clients_update_does_not_count_even_when_it_is_on_its_way(federation: Federation) -> None:
    def train(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
        if plan.round == 2:
            federation.revoked.add("client-1")
        return drift(plan, state, client)

    federation.run(clients(train), replace(TERMS, quorum=2, min_clients=2))
    assert (2, "client-1", "revoked") in federation.turned()
    last = [event for event in federation.seen if isinstance(event, events.RoundBegan)][-1]
    assert last.clients == ("client-0", "client-2")


def test_a_silent_client_is_named_at_the_deadline(federation: Federation) -> None:
    slow = Habits(slow=frozenset({2}), slow_seconds=10_000)
    federation.run(terms=replace(TERMS, quorum=2, rounds=1, deadline=60.0), habits=slow)
    assert federation.turned() == [(1, "client-2", "deadline")]


def test_more_are_asked_than_count_where_the_terms_say_so(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "state", count=6)
    terms = replace(TERMS, sample=2, over_select=2.0, quorum=2, min_clients=2, rounds=2)
    federation.run(terms=terms)
    began = [len(event.clients) for event in federation.seen if isinstance(event, events.RoundBegan)]
    committed = [event.clients for event in federation.seen if isinstance(event, events.RoundCommitted)]
    assert (began, committed) == ([4, 4], [2, 2])


def test_the_majority_decides_on_the_base_and_the_others_are_named(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "state")
    federation.run(clients(fingerprints={1: "sha256:other"}), replace(TERMS, quorum=2, min_clients=2))
    assert federation.turned()[0] == (0, "client-1", "base")
    # It goes on training its own base: every one of its updates is refused for that.
    assert {(client, reason) for _, client, reason in federation.turned()[1:]} == {("client-1", "base")}


def test_no_single_client_decides_on_the_base(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "state", count=2)
    app = clients(fingerprints={0: "sha256:one", 1: "sha256:two"})
    with pytest.raises(FederationError, match="agree on the base b, got 1 of 2"):
        federation.run(app, replace(TERMS, min_clients=2, quorum=1))


def test_another_configuration_is_not_continued_by_mistake(federation: Federation) -> None:
    federation.run(terms=replace(TERMS, rounds=1))
    changed = replace(TERMS, adapter=AdapterRequest(base="another", rank=2))
    with pytest.raises(FederationError, match="belongs to a federation with adapter"):
        federation.run(terms=changed)


def test_more_rounds_go_on_where_the_last_ones_ended(federation: Federation, tmp_path: Path) -> None:
    federation.run(terms=replace(TERMS, rounds=1))
    federation.run(terms=TERMS)
    at_once = Federation(tmp_path / "at-once")
    at_once.run()
    assert federation.states() == at_once.states()


def test_too_few_clients_end_the_wait_with_one_line(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "state", count=1)
    with pytest.raises(FederationError, match=r"wanted 3 clients for round 1, 1 came within 2 minutes"):
        federation.run(terms=replace(TERMS, patience=120.0))


def test_where_a_moves_little_and_b_far_neither_is_taken_for_an_outlier(tmp_path: Path) -> None:
    def train(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
        return drift(plan, state, client) * np.float32(5.0 if plan.part == "B" else 0.02)

    federation = Federation(tmp_path / "state", method="alternating")
    federation.run(clients(train), replace(TERMS, rounds=8))
    assert federation.turned() == []
