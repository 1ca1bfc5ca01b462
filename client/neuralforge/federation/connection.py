"""A client that stays: it takes what the coordinator asks, has the ClientApp answer it, and sends the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge.federation.flower import Fleet, MessageLost, Stopped, error_reply
from neuralforge_common.errors import FederationError, NeuralForgeError
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_of, raw_reply

TRAIN, EVALUATE, DESCRIBE, FINISH = "train", "evaluate", "query.describe", "query.finish"

FIRST_POLL, LAST_POLL = 0.3, 2.0
"""Seconds between two questions for work: right after some was done, and when there has been none for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the ClientApp said to one message; `error` is what it failed with, in the words that the server gets.

    `plan` is None where the message held none, `report` where the answer holds none.
    """

    kind: str
    message: Message
    reply: Message
    plan: RoundPlan | None
    report: TrainReport | None
    error: str
    seconds: float

    def with_reply(self, reply: Message) -> Answer:
        """The same with another reply, one that says no."""
        return replace(self, reply=reply, report=None, error=reply.error.reason or "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A message has come; `plan` is None where it holds none."""

    kind: str
    plan: RoundPlan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """An answer that has gone out, or (`lost` says why) was not wanted any more."""

    answer: Answer
    bytes_sent: int
    lost: str = ""


Event: TypeAlias = Asked | Sent
Observer: TypeAlias = Callable[[Event], None]


class Resident:
    """One node's side of the rounds over an open session.

    A plan that comes a second time (the same round and nonce) gets the answer of the first time.
    """

    def __init__(
        self,
        fleet: Fleet,
        app: ClientApp,
        *,
        node_config: Mapping[str, str | int | float | bool] | None = None,
        observe: Observer = lambda event: None,
        tell: Callable[[str], None] = lambda line: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fleet = fleet
        self._app = app
        self._node_config = dict(node_config or {})
        self._observe = observe
        self._tell = tell
        self._stop = stop
        self._context: Context | None = None
        self._kept: dict[str, tuple[tuple[str, int, str], RecordDict]] = {}
        self.finished = False
        """Whether the coordinator has said, and was answered, that the federation is over. It does not ask twice."""
        self.failure = ""
        """Why the finished adapter could not be saved, in the words that the coordinator got."""

    def stay(self) -> Literal["finished", "stopped"]:
        """Answer until the coordinator has said that the federation is over, or `stop` says so.

        Raises:
            FederationError: the server is away for too long, or does not know this node any more.
        """
        try:
            while not self.finished:
                self.send(self.next_answer())
            return "finished"
        except Stopped:
            return "stopped"

    def next_answer(self) -> Answer:
        """Wait for a message and have it answered; nothing is sent.

        Raises:
            FederationError: the server is away for too long, or does not know this node any more.
            Stopped: `stop` said so.
        """
        poll = FIRST_POLL
        while True:
            if self._stop():
                raise Stopped
            try:
                message = self._fleet.receive()
            except MessageLost as error:
                self._tell(error.message)
                continue
            if message is not None:
                return self._answer(message)
            self._fleet.pause(poll)
            poll = min(1.2 * poll, LAST_POLL)

    def send(self, answer: Answer) -> Sent:
        """Send an answer; one that comes too late is no failure.

        Raises:
            FederationError: the server is away for too long, or does not know this node any more.
            Stopped: `stop` said so while the server was away.
        """
        try:
            sent = Sent(answer=answer, bytes_sent=self._fleet.send(answer.reply))
        except MessageLost as error:
            sent = Sent(answer=answer, bytes_sent=0, lost=error.message)
        if answer.kind == FINISH:
            self.finished, self.failure = True, answer.error
        self._observe(sent)
        return sent

    def _answer(self, message: Message) -> Answer:
        began = time.monotonic()
        kind = message.metadata.message_type
        plan = _plan(message)
        self._observe(Asked(kind=kind, plan=plan))
        key = (plan.federation, plan.round, plan.nonce) if plan is not None else None
        error = ""
        kept = self._kept.get(kind)
        if kept is not None and kept[0] == key:
            reply = Message(kept[1], reply_to=message)
        else:
            try:
                reply = self._app(message=message, context=self._context_of(message.metadata.run_id))
            except Exception as failure:  # whatever it is, the server waits for an answer
                if self._stop():
                    raise Stopped from failure
                error = told_to_server(failure)
                self._tell(f"{kind}: {failure.message if isinstance(failure, NeuralForgeError) else error}")
                reply = error_reply(message, error)
            if reply.has_error():
                error = error or reply.error.reason or "failed"
            elif key is not None:
                self._kept[kind] = key, reply.content
        return Answer(
            kind=kind,
            message=message,
            reply=reply,
            plan=plan,
            report=_report(reply),
            error=error,
            seconds=time.monotonic() - began,
        )

    def _context_of(self, run_id: int) -> Context:
        if self._context is None or self._context.run_id != run_id:
            self._context = Context(
                run_id=run_id,
                node_id=self._fleet.node_id,
                node_config=dict(self._node_config),
                state=RecordDict(),
                run_config={},
            )
        return self._context


def told_to_server(failure: Exception) -> str:
    """The words in which a failure leaves this machine: our own about a federation; of any other, its kind alone."""
    return failure.message if isinstance(failure, FederationError) else type(failure).__name__


def _plan(message: Message) -> RoundPlan | None:
    try:
        return plan_of(message.content) if message.has_content() else None
    except NeuralForgeError:
        return None  # a question without a plan, or one that the app refuses with words of its own


def _report(reply: Message) -> TrainReport | None:
    try:
        return TrainReport.from_json(raw_reply(reply.content).report) if reply.has_content() else None
    except NeuralForgeError:
        return None
