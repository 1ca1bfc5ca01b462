"""The stages of a round under masks over Flower's Grid: each has a deadline, and goes on with those who are left.

1  keys        everybody who was asked → public keys, signed
2  shares      everybody's keys → shares, sealed for one client each
3  train       plan, state and a client's shares → its update under masks, added up as it comes
4  survivors   whose updates came → signatures
5  unmask      the signatures → shares: enough of them take the last masks off the sum
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.records import answer_text, masks_to_records
from neuralforge_common.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK, Survivors, adverts_to_json
from neuralforge_server.admission import Expectation, Refused, admit_report
from neuralforge_server.exchange import Clock, answer_of, askers, replies
from neuralforge_server.secagg.tally import Tally

TRAIN = "train"
STAGE_SECONDS = 60.0
"""For stages in which nobody trains (or the round's deadline, where that is shorter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How the clients of an attempt are reached: node → name; `turn` hears of each that brings nothing, and why.

    `is_welcome` says whether a client may still take part.
    """

    grid: Grid
    clients: Mapping[int, str]
    deadline: float
    clock: Clock
    stop: Callable[[], bool]
    turn: Callable[[str, str, str], None]
    is_welcome: Callable[[str], bool]

    def ask(self, kind: str, questions: Mapping[str, RecordDict], *, group: str) -> Iterator[tuple[str, RecordDict]]:
        """Ask each client its own question; yields the answers as they come."""
        deadline = self.deadline if kind == TRAIN else min(STAGE_SECONDS, self.deadline)
        messages = [
            Message(questions[name], dst_node_id=node, message_type=kind, ttl=deadline, group_id=group)
            for node, name in sorted(self.clients.items(), key=lambda item: item[1])
            if name in questions
        ]
        for reply in replies(self.grid, messages, deadline=deadline, clock=self.clock, stop=self.stop):
            client = askers(messages, self.clients).get(reply.metadata.reply_to_message_id, "")
            answer = answer_of(client, reply)
            if answer.content is None:
                self.turn(client, answer.reason, answer.message)
            elif not self.is_welcome(client):
                self.turn(client, "revoked", "this client may not take part any more")
            else:
                yield client, answer.content


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureMean:
    """What came of an attempt; how many clients sent keys, shares, updates (`survivors`) and the last shares."""

    mean: FloatArray
    survivors: tuple[str, ...]
    keys: int
    shares: int
    unmasked_by: int


def secure_mean(tally: Tally, plan: RoundPlan, state: ArrayRecord, expectation: Expectation, line: Line) -> SecureMean:
    """Run one attempt.

    Raises:
        TooFew: not enough clients were left at some stage.
        FederationError: what they gave does not fit together.
    """
    group = str(plan.round)

    def texts(question: str, said: Mapping[str, str], add: Callable[[str, str], None]) -> tuple[str, ...]:
        contents = {name: masks_to_records(plan, text) for name, text in said.items()}
        counted = []
        for client, content in line.ask(f"query.{question}", contents, group=group):
            with _turning(line, client):
                add(client, _text(content))
                counted.append(client)
        return tuple(counted)

    keys = texts(KEYS, dict.fromkeys(line.clients.values(), "{}"), tally.add_keys)
    everybody = adverts_to_json(tally.roster().adverts)
    shares = texts(SHARES, dict.fromkeys(keys, everybody), tally.add_shares)
    plans = {name: masks_to_records(plan, tally.delivery(name).to_json(), state) for name in shares}
    seen: set[str] = set()
    for client, content in line.ask(TRAIN, plans, group=group):
        with _turning(line, client):
            raw, _ = admit_report(content, expectation, client=client, seen=seen)
            tally.add_masked(client, raw.delta)
            seen.add(client)
    survivors = tally.survivors
    told = Survivors(names=survivors).to_json()
    signed = texts(SURVIVORS, dict.fromkeys(survivors, told), tally.add_confirmation)
    last = texts(UNMASK, dict.fromkeys(signed, tally.request().to_json()), tally.add_unmasking)
    return SecureMean(mean=tally.mean(), survivors=survivors, keys=len(keys), shares=len(shares), unmasked_by=len(last))


@contextmanager
def _turning(line: Line, client: str) -> Iterator[None]:
    """A client's fault is that client's alone."""
    try:
        yield
    except Refused as refusal:
        line.turn(client, refusal.reason, refusal.message)


def _text(content: RecordDict) -> str:
    try:
        return answer_text(content)
    except FederationError as fault:
        raise Refused("records", fault.message) from fault
