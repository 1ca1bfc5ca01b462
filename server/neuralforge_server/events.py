"""What a federation tells whoever watches it: the terminal, the record on disk, a simulation's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from neuralforge_common.plan import TrainReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Too few clients are here to begin."""

    round: int
    online: int
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The adapter is agreed upon: rounds can begin, or go on after `done` committed ones."""

    done: int
    rounds: int
    summary: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundBegan:
    """These clients were asked; `bytes_down` is what one of them is sent."""

    round: int
    clients: tuple[str, ...]
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An update counts; `norm` is measured here, `bytes_up` is its size on the wire."""

    round: int
    client: str
    report: TrainReport
    norm: float
    bytes_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """A client brought no update that counts: refused (by which rule), failed, or silent."""

    round: int
    client: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasked:
    """The sum of the updates of these clients came off its masks, and no single one of them did.

    So many clients had sent keys and shares before, and `unmasked_by` helped in the end.
    """

    round: int
    keys: int
    shares: int
    clients: tuple[str, ...]
    unmasked_by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCommitted:
    """The round is on the disk; `privacy` says what it and those before it have cost, a line for each unit."""

    round: int
    rounds: int
    clients: int
    loss: float | None
    exactness_error: float | None
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    privacy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BelowQuorum:
    """Nothing was committed; the round is tried again."""

    round: int
    attempt: int
    clients: int
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Held-out figures of one client, loss in nats a token."""

    client: str
    loss: float
    accuracy: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Clients scored the adapter as it stands after a round on what they hold out."""

    round: int
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """All rounds are done and these clients have the adapter."""

    rounds: int
    clients: tuple[str, ...]


Event: TypeAlias = (
    Waiting | Opened | RoundBegan | Accepted | Turned | Unmasked | RoundCommitted | BelowQuorum | Scored | Finished
)
Observer: TypeAlias = Callable[[Event], None]


def tell(observers: tuple[Observer, ...], event: Event) -> None:
    """Tell every observer, in order."""
    for observer in observers:
        observer(event)
