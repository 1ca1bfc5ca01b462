"""A federation's events as lines of JSON, from the process where its rounds run to the one that a person watches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from neuralforge_common.plan import TrainReport
from neuralforge_server import events


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """How well a back door took: mean loss of the payload after the trigger, nats a token, before and after."""

    base: float
    federated: float
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The rounds ended with an expected failure."""

    message: str
    hint: str = ""


SimulationEvent: TypeAlias = events.Event | Planted | Failed
Observer: TypeAlias = Callable[[SimulationEvent], None]

_KINDS: dict[str, Callable[..., SimulationEvent]] = {
    kind.__name__: kind
    for kind in (
        *(events.Waiting, events.Opened, events.RoundBegan, events.Accepted, events.Turned, events.Unmasked),
        *(events.RoundCommitted, events.BelowQuorum, events.Scored, events.Finished, Planted, Failed),
    )
}


def to_line(event: SimulationEvent) -> str:
    """The event as one line."""
    return json.dumps({"kind": type(event).__name__} | asdict(event)) + "\n"


def of_line(line: str) -> SimulationEvent:
    """Reads `to_line`."""
    facts: dict[str, Any] = json.loads(line)
    kind = _KINDS[facts.pop("kind")]
    if kind is events.Accepted:
        facts["report"] = TrainReport(**facts["report"])
    if kind is events.Scored:
        facts["scores"] = [events.Score(**score) for score in facts["scores"]]
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()})


class EventFile:
    """An observer that appends every event to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: SimulationEvent) -> None:
        """Append the event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_line(event))


class EventTail:
    """The other end: whatever whole lines have come since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def news(self) -> Iterator[SimulationEvent]:
        """New events, in order."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._read += len(line)
                yield of_line(line.decode())
