"""A simulation as a person sees it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from neuralforge_server import events
from neuralforge_simulations.event_lines import SimulationEvent

MOST_NAMES = 6
MOST_LINES = 12
"""With more clients than this, those whose updates did not count are counted and not named one by one."""


class SimulationProgress:
    """An observer of a federation; leave its block to take the bar off the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._rounds = 0
        self._asked = 1
        self._answered = 0
        self._turned: Counter[str] = Counter()

    def __enter__(self) -> SimulationProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        # A client's name such as `[b]` is no markup.
        self._console.print(line, markup=False, highlight=False, emoji=False)

    def __call__(self, event: SimulationEvent) -> None:
        """Show what the event says."""
        match event:
            case events.Opened():
                self._open(event)
            case events.RoundBegan():
                self._asked, self._answered = max(1, len(event.clients)), 0
                self._turned.clear()
                self._move(event.round, "")
            case events.Accepted() | events.Turned() if event.round:
                self._answered += 1
                self._move(event.round, event.client)
                if isinstance(event, events.Turned):
                    self._turned[event.reason] += 1
                    if self._asked <= MOST_LINES:
                        self.say(f"round {event.round}: {event.client}: no update ({event.reason}): {event.message}")
            case events.BelowQuorum():
                self.say(
                    f"round {event.round}, attempt {event.attempt}: {event.clients} updates, wanted {event.wanted}: "
                    f"nothing was committed, the round is tried again{self._not_counted()}"
                )
            case events.RoundCommitted():
                self.say(_committed(event) + self._not_counted())
                if self._bar is not None and self._task is not None:
                    self._bar.update(self._task, completed=event.round, at=f"round {event.round} of {event.rounds}")
            case events.Scored():
                self.say(_scored(event))
            case _:
                pass

    def _open(self, event: events.Opened) -> None:
        self._rounds = event.rounds
        for notice in event.notices:
            self.say(notice)
        self.say(f"{event.summary}, {event.rounds} rounds")
        if self._console.is_terminal and self._bar is None:
            self._bar = Progress(
                TextColumn("{task.fields[at]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[client]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("rounds", total=event.rounds, completed=event.done, at="", client="")

    def _not_counted(self) -> str:
        if not self._turned or self._asked <= MOST_LINES:
            return ""
        return "; not counted: " + ", ".join(f"{count} {reason}" for reason, count in self._turned.most_common())

    def _move(self, number: int, client: str) -> None:
        if self._bar is not None and self._task is not None:
            done = number - 1 + self._answered / self._asked
            at = f"round {number} of {self._rounds}, {self._answered} of {self._asked} clients"
            self._bar.update(self._task, completed=done, at=at, client=client[:30])


def _committed(event: events.RoundCommitted) -> str:
    loss = "" if event.loss is None else f", training loss {event.loss:.3f}"
    error = "" if event.exactness_error is None else f", exactness error {event.exactness_error:.2g}"
    spent = "".join(f"; {line}" for line in event.privacy)
    return f"round {event.round} of {event.rounds}: {event.clients} clients{loss}{error}{spent}"


def _scored(event: events.Scored) -> str:
    tokens = sum(score.tokens for score in event.scores)
    mean = sum(score.loss * score.tokens for score in event.scores) / tokens if tokens else float("nan")
    named = ", ".join(f"{score.client} {score.loss:.3f}" for score in event.scores[:MOST_NAMES])
    more = f", {len(event.scores) - MOST_NAMES} more" if len(event.scores) > MOST_NAMES else ""
    what = f"round {event.round}" if event.round else "the base"
    return f"{what}: held-out loss {mean:.3f} ({named}{more})"
