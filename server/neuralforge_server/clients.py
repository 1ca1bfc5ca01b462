"""The clients of a federation over a grid: who is here, what they are asked, and who is turned away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from neuralforge_common.errors import FederationError
from neuralforge_server import events
from neuralforge_server.attempt import Attempt
from neuralforge_server.events import Observer, tell
from neuralforge_server.exchange import (
    POLL_SECONDS,
    Answer,
    Clock,
    Roster,
    answer_of,
    askers,
    questions,
    replies,
)
from neuralforge_server.ledger import Ledger
from neuralforge_server.secagg.stages import Line
from neuralforge_server.terms import Terms

QUICK_SECONDS = 120.0
"""For questions that need no training: descriptions and the final adapter (or the deadline, where that is shorter)."""


class Stopped(Exception):
    """The coordinator was asked to stop; what is committed stays, and the next start goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """How a federation reaches its clients; `roster` says who may take part at this very moment."""

    terms: Terms
    roster: Roster
    ledger: Ledger
    observers: tuple[Observer, ...]
    clock: Clock
    stop: Callable[[], bool]

    def online(self, grid: Grid) -> Mapping[int, str]:
        """Node → name of those who are here and may take part."""
        return self.roster(grid.get_node_ids())

    def wait(self, grid: Grid, round_number: int) -> Mapping[int, str]:
        """Those who are here, as soon as they are enough.

        Raises:
            FederationError: they were not within the terms' patience.
            Stopped: `stop` said so.
        """
        ends = self.clock.now() + self.terms.patience
        wanted = self.terms.min_clients
        told = -1
        while len(online := self.online(grid)) < wanted:
            if self.stop():
                raise Stopped
            if self.clock.now() >= ends:
                raise FederationError(
                    f"wanted {wanted} clients for round {round_number or 1}, {len(online)} came within "
                    f"{self.terms.patience / 60:.0f} minutes",
                    hint="start clients with nf-client train --server …, or lower federation.min_clients",
                )
            if len(online) != told:
                told = len(online)
                tell(self.observers, events.Waiting(round=round_number, online=told, wanted=wanted))
            self.clock.sleep(POLL_SECONDS)
        return online

    def replies(self, grid: Grid, messages: Iterable[Message], deadline: float) -> Iterator[Message]:
        """Push messages; each reply as it comes, see `exchange.replies`."""
        return replies(grid, [*messages], deadline=deadline, clock=self.clock, stop=self.stop)

    def ask(
        self, grid: Grid, clients: Mapping[int, str], content: RecordDict, *, kind: str, group: str
    ) -> Iterator[Answer]:
        """A quick question to all of them; raises Stopped after the answers where `stop` said so."""
        deadline = min(QUICK_SECONDS, self.terms.deadline)
        messages = questions(clients, content, kind=kind, group=group, deadline=deadline)
        for reply in self.replies(grid, messages, deadline):
            yield answer_of(askers(messages, clients)[reply.metadata.reply_to_message_id], reply)
        if self.stop():
            raise Stopped

    def is_welcome(self, attempt: Attempt, client: str) -> bool:
        """Whether a client that was asked may still take part."""
        return client in self.roster([node for node, name in attempt.clients.items() if name == client]).values()

    def turn(self, round_number: int, client: str, reason: str, message: str) -> None:
        """Write down that what a client sent does not count."""
        self.ledger.refuse(round_number, client, reason, message)
        tell(self.observers, events.Turned(round=round_number, client=client, reason=reason, message=message))

    def line(self, grid: Grid, attempt: Attempt) -> Line:
        """The line to those who were asked in an attempt, for its stages under masks."""
        number = attempt.plan.round
        return Line(
            grid=grid,
            clients=attempt.clients,
            deadline=self.terms.deadline,
            clock=self.clock,
            stop=self.stop,
            turn=lambda client, reason, message: self.turn(number, client, reason, message),
            is_welcome=lambda client: self.is_welcome(attempt, client),
        )
