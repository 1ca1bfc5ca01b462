"""Whole federations under masks over Flower's messages in this process, with clients that learn nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federated_clients import LAYOUT, SPEC, TERMS, Federation, answer, clients, drift
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from neuralforge.federation.secagg.answers import answer_question, train_masked
from neuralforge.federation.secagg.member import SecureMember
from neuralforge.federation.secagg.pins import Pins
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_of
from neuralforge_common.secagg.keys import public_bytes
from neuralforge_common.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK
from neuralforge_server import events
from neuralforge_server.aggregation.choose import make_method
from neuralforge_server.ledger import Ledger
from neuralforge_server.strategy import FederatedLoRA
from neuralforge_server.terms import Terms
from neuralforge_simulations.clock import VirtualClock
from neuralforge_simulations.grid import PARTITION_ID, LocalGrid

MASKED = replace(TERMS, trust="peers", weighting="uniform", min_clients=5, quorum=3, evaluate_every=0)
Drops = Callable[[str, RoundPlan, int], bool]


def never(stage: str, plan: RoundPlan, client: int) -> bool:
    return False


class MaskedClients:
    """Five clients that mask what `drift` gives; `drops` says who raises, and when."""

    def __init__(self, folder: Path, *, drops: Drops = never, ranks: Mapping[int, int] | None = None) -> None:
        self.drops, self.ranks = drops, ranks or {}
        folder.mkdir(exist_ok=True)
        self.identities = [Ed25519PrivateKey.generate() for _ in range(5)]
        self.members = [
            SecureMember(f"client-{number}", key, Pins(folder / f"{number}.json"))
            for number, key in enumerate(self.identities)
        ]
        self.app = ClientApp()
        plain = clients()
        self.app.query("describe")(plain)
        self.app.query("finish")(lambda message, context: answer(message, {}))
        self.app.train()(self.train)
        for question in (KEYS, SHARES, SURVIVORS, UNMASK):
            self.app.query(question)(partial(self.answer, question))

    def answer(self, question: str, message: Message, context: Context) -> Message:
        plan, client = plan_of(message.content), int(context.node_config[PARTITION_ID])
        if self.drops(question, plan, client):
            raise FederationError("gone")
        return Message(answer_question(self.members[client], question, plan, message.content), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        plan, client = plan_of(message.content), int(context.node_config[PARTITION_ID])
        if self.drops("train", plan, client):
            raise FederationError("gone")
        reply = train_masked(self.members[client], plan, message.content, LAYOUT, partial(self.learn, client))
        return Message(reply, reply_to=message)

    def learn(self, client: int, plan: RoundPlan, state: FloatArray) -> tuple[TrainReport, FloatArray]:
        rank = self.ranks.get(client, 2)
        report = TrainReport(
            round=plan.round, nonce=plan.nonce, base_fingerprint=SPEC.base_fingerprint, rank=rank, alpha=2.0 * rank,
            part=plan.part, examples=999, steps=5, tokens=1_234_567, loss=1.25, norm=0.5, seconds=7.0,
        )  # fmt: skip
        return report, LAYOUT.resized(drift(plan, state, client), rank, part=plan.part)


def federation(tmp_path: Path, method: str = "mean") -> Federation:
    return Federation(tmp_path / "state", count=5, method=method)


def unmasked(found: Federation) -> list[tuple[int, tuple[str, ...]]]:
    return [(event.round, event.clients) for event in found.seen if isinstance(event, events.Unmasked)]


NAMES = tuple(f"client-{number}" for number in range(5))


@pytest.mark.parametrize("method", ["mean", "frozen-a", "alternating"])
def test_a_federation_under_masks_ends_where_one_without_ends(tmp_path: Path, method: str) -> None:
    masked = federation(tmp_path, method).run(MaskedClients(tmp_path / "clients").app, MASKED)
    terms = replace(MASKED, trust="server")
    plain = Federation(tmp_path / "plain", count=5, method=method).run(clients(), terms)
    np.testing.assert_allclose(masked.state.vector, plain.state.vector, rtol=0, atol=1e-7)
    assert np.abs(masked.state.vector - LAYOUT.draw(0)).max() > 1e-4  # it went somewhere


def test_nothing_of_a_single_client_is_told_or_kept(tmp_path: Path) -> None:
    found = federation(tmp_path)
    found.run(MaskedClients(tmp_path / "clients").app, MASKED)
    assert unmasked(found) == [(number, NAMES) for number in (1, 2, 3)]
    assert not [event for event in found.seen if isinstance(event, events.Accepted)]
    committed = [event for event in found.seen if isinstance(event, events.RoundCommitted)]
    assert [(event.clients, event.loss, event.exactness_error) for event in committed] == [(5, None, None)] * 3
    opened = next(event for event in found.seen if isinstance(event, events.Opened))
    assert "secure aggregation (experimental)" in opened.summary
    stored = (found.folder / "rounds.db").read_bytes()
    assert b"1234567" not in stored
    ledger = Ledger.look(found.folder)
    try:
        figures = [committed.figures for committed in ledger.rounds()][1:]
    finally:
        ledger.close()
    assert [(each["norms"], each["trust_peers"], each["total_weight"]) for each in figures] == [([], 1.0, 5.0)] * 3


@pytest.mark.parametrize("stage", [KEYS, SHARES, "train", SURVIVORS, UNMASK])
def test_who_drops_out_is_named_and_the_round_goes_on(tmp_path: Path, stage: str) -> None:
    def drops(at: str, plan: RoundPlan, client: int) -> bool:
        return at == stage and client in (1, 3)

    found = federation(tmp_path)
    found.run(MaskedClients(tmp_path / "clients", drops=drops).app, replace(MASKED, rounds=1))
    assert sorted(found.turned()) == [(1, "client-1", "failed"), (1, "client-3", "failed")]
    assert unmasked(found) == [(1, NAMES if stage in (SURVIVORS, UNMASK) else NAMES[::2])]


@pytest.mark.parametrize("stage", [KEYS, SHARES, "train", SURVIVORS, UNMASK])
def test_below_the_threshold_nothing_is_committed_and_the_round_is_tried_again(tmp_path: Path, stage: str) -> None:
    attempts: set[str] = set()

    def drops(at: str, plan: RoundPlan, client: int) -> bool:
        attempts.add(plan.nonce)
        return at == stage and client in (1, 2, 3) and len(attempts) == 1

    found = federation(tmp_path)
    found.run(MaskedClients(tmp_path / "clients", drops=drops).app, replace(MASKED, rounds=1))
    below = [event for event in found.seen if isinstance(event, events.BelowQuorum)]
    assert [(event.clients, event.wanted) for event in below] == [(2, 3)]
    assert unmasked(found) == [(1, NAMES)]
    assert len(found.states()) == 2


def test_a_client_of_a_lower_rank_takes_no_part(tmp_path: Path) -> None:
    """With it in, the components that it lacks are a sum of fewer: with four of them, the update of the fifth."""
    found = federation(tmp_path)
    terms = replace(MASKED, rounds=1)
    strategy = found.run(MaskedClients(tmp_path / "clients", ranks={0: 1}).app, terms)
    begun = LAYOUT.draw(0)
    plan = terms.plan(1, "n", spec=SPEC, layout=LAYOUT, state=strategy.state, part="both")
    deltas = [drift(plan, begun, client) for client in range(1, 5)]
    assert found.turned() == [(1, "client-0", "failed")]
    assert unmasked(found) == [(1, NAMES[1:])]
    np.testing.assert_allclose(strategy.state.vector - begun, np.mean(deltas, axis=0), rtol=0, atol=1e-7)


def test_an_identity_that_nobody_joined_with_takes_no_part(tmp_path: Path) -> None:
    found, masked = federation(tmp_path), MaskedClients(tmp_path / "clients")
    registered = {f"client-{number}": public_bytes(key) for number, key in enumerate(masked.identities)}
    registered["client-2"] = public_bytes(Ed25519PrivateKey.generate())
    clock = VirtualClock()
    with Ledger.open(found.folder) as ledger:
        FederatedLoRA(
            replace(MASKED, rounds=1),
            make_method(),
            ledger,
            roster=found.roster,
            identities=lambda: registered,
            observers=(found.seen.append,),
            clock=clock,
        ).start(LocalGrid(masked.app, 5, clock=clock))
    assert found.turned() == [(1, "client-2", "identity")]
    assert unmasked(found) == [(1, (*NAMES[:2], *NAMES[3:]))]


def test_who_is_revoked_while_it_trains_counts_no_more(tmp_path: Path) -> None:
    found = federation(tmp_path)

    def drops(at: str, plan: RoundPlan, client: int) -> bool:
        if at == "train" and client == 4:
            found.revoked.add("client-4")
        return False

    found.run(MaskedClients(tmp_path / "clients", drops=drops).app, replace(MASKED, rounds=1, min_clients=4))
    assert found.turned() == [(1, "client-4", "revoked")]
    assert unmasked(found) == [(1, NAMES[:4])]


def test_clients_that_know_nothing_of_masks_end_no_federation(tmp_path: Path) -> None:
    found = federation(tmp_path)
    terms: Terms = replace(MASKED, max_attempts=2)
    with pytest.raises(FederationError, match="below its quorum"):
        found.run(clients(), terms)
    assert {reason for _, _, reason in found.turned()} == {"failed"}
