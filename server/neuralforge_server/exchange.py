"""Questions to clients and their answers as they arrive, over any of Flower's grids."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from neuralforge_common.strict_json import is_plain_text

AT_ONCE = 4
"""Replies that are fetched together: what is in memory does not grow with the number of clients."""
POLL_SECONDS = 0.25

_REASONS = {
    ErrorCode.UNKNOWN: "deadline",
    ErrorCode.NODE_UNAVAILABLE: "gone",
    ErrorCode.MESSAGE_UNAVAILABLE: "gone",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "gone",
}

Roster = Callable[[Iterable[int]], Mapping[int, str]]
"""Node ids of Flower → names of the clients that may take part now; the others are left out."""


class Clock(Protocol):
    """Time as a federation sees it; a simulation brings its own."""

    def now(self) -> float:
        """Seconds, from any beginning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back from one client: content, or the reason why there is none."""

    client: str
    content: RecordDict | None
    reason: str = ""
    message: str = ""


def everyone(node_ids: Iterable[int]) -> Mapping[int, str]:
    """A roster that knows every node by its number, for a Flower that already decides who may join."""
    return {node: f"node-{node}" for node in node_ids}


def replies(
    grid: Grid,
    messages: Sequence[Message],
    *,
    deadline: float,
    clock: Clock,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Message]:
    """Push `messages`; yield each reply as it comes, and an error in the name of whoever is silent after `deadline` s.

    Closing the iterator gives up on the rest, and so does a true `stop`.
    """
    pending: dict[str, Message] = {}
    ends = clock.now() + deadline
    for message_id, message in zip(grid.push_messages(messages), messages, strict=True):
        if message_id:
            pending[message_id] = message
        else:
            yield _silent(message, "the message could not be handed over")
    while pending and not stop():
        arrived = False
        waiting = list(pending)
        for first in range(0, len(waiting), AT_ONCE):
            for reply in grid.pull_messages(waiting[first : first + AT_ONCE]):
                # By the question, not by the source: an error that Flower itself writes has a source of its own.
                if pending.pop(reply.metadata.reply_to_message_id, None) is not None:
                    arrived = True
                    yield reply
        if clock.now() >= ends:
            break
        if pending and not arrived:
            clock.sleep(POLL_SECONDS)
    if stop():
        return  # nobody was late
    for message in pending.values():
        yield _silent(message, f"no answer in {deadline:.0f} s")


def questions(
    clients: Mapping[int, str], content: RecordDict, *, kind: str, group: str, deadline: float
) -> list[Message]:
    """One message a client, in the order of their names.

    `deadline` is their time to live as well: a client that comes later than that finds nothing to do, instead of work
    that nobody waits for.
    """
    return [
        Message(content, dst_node_id=node, message_type=kind, ttl=deadline, group_id=group)
        for node in sorted(clients, key=lambda node: clients[node])
    ]


def answer_of(client: str, reply: Message) -> Answer:
    """A reply as an answer of that client."""
    if not reply.has_error():
        return Answer(client=client, content=reply.content)
    text = (reply.error.reason or "").strip() or f"error {reply.error.code}"
    # A stranger's text, in our records and on our terminal.
    line = "".join(c if is_plain_text(c) else " " for c in text[:500])
    return Answer(client=client, content=None, reason=_REASONS.get(reply.error.code, "failed"), message=line)


def askers(messages: Iterable[Message], clients: Mapping[int, str]) -> dict[str, str]:
    """Ids of pushed messages → the client that each was for."""
    return {m.metadata.message_id: clients[m.metadata.dst_node_id] for m in messages}


def _silent(message: Message, why: str) -> Message:
    return Message(Error(code=ErrorCode.UNKNOWN, reason=why), reply_to=message)
