"""What a simulation leaves behind: `metrics.jsonl` as it goes, `summary.md` and plots from it.

`metrics.jsonl` grows by a line for everything that happens (`kind` is start, score, client, round, below-quorum,
notice, backdoor or end), so that a run which is killed leaves all it knew. The summary is written anew, whole, after
every round.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neuralforge_common.atomic import storage_errors, write_bytes_atomically
from neuralforge_common.errors import StorageError
from neuralforge_server import events
from neuralforge_simulations.event_lines import Planted, SimulationEvent

METRICS, SUMMARY = "metrics.jsonl", "summary.md"
PLOTS = ("loss.png", "bytes.png", "exactness.png", "refused.png")
BASE_ROUND = 0
"""Scores of this round are the base's, without an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFacts:
    """A client as the report shows it; `rank` None is the server's, `habit` and `role` empty for an ordinary one."""

    name: str
    train: int
    held_out: int
    rank: int | None = None
    role: str = ""
    habit: str = ""


@dataclass(slots=True, kw_only=True)
class Round:
    """What is known of one round; bytes are totals over all attempts and clients."""

    number: int
    asked: int = 0
    attempts: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    committed: bool = False
    loss: float | None = None
    exactness_error: float | None = None
    seconds: float = 0.0
    privacy: tuple[str, ...] = ()
    accepted: set[str] = field(default_factory=set)
    losses: dict[str, float] = field(default_factory=dict)
    turned: list[events.Turned] = field(default_factory=list)


class Report:
    """An observer of a federation that keeps its figures, on the disk and for the summary.

    Raises:
        StorageError: the folder cannot be written, or holds something else than an earlier simulation.
    """

    def __init__(self, folder: Path, *, title: str, settings: Mapping[str, object], clients: Sequence[ClientFacts]):
        self.folder = folder
        self.title = title
        self.settings = dict(settings)
        self.clients = tuple(clients)
        self.rounds: dict[int, Round] = {}
        self.scores: dict[int, dict[str, events.Score]] = {}
        self.planted: Planted | None = None
        self.notices: list[str] = []
        self.outcome = "running"
        self._began = time.monotonic()
        self._attempt_began = self._began
        _prepare(folder)
        facts = [asdict(client) for client in self.clients]
        self._line("start", title=title, settings=self.settings, clients=facts)

    def __call__(self, event: SimulationEvent) -> None:
        """Take in what the event says; raises StorageError."""
        match event:
            case events.Opened():
                for line in (event.summary, *event.notices):
                    self.notice(line)
            case events.RoundBegan():
                self._attempt_began = time.monotonic()
                found = self._round(event.round)
                found.attempts += 1
                found.accepted.clear()  # of an attempt below quorum
                found.losses.clear()
                found.asked = len(event.clients)
                found.bytes_down += event.bytes_down * len(event.clients)
            case events.Accepted():
                self._accepted(event)
            case events.Turned():
                self._round(event.round).turned.append(event)
                self._line(
                    "client",
                    round=event.round,
                    client=event.client,
                    accepted=False,
                    reason=event.reason,
                    message=event.message,
                )
            case events.BelowQuorum():
                self._line("below-quorum", **asdict(event))
            case events.RoundCommitted():
                self._committed(event)
            case events.Scored():
                for score in event.scores:
                    self.score(event.round, score)
                self.write_summary()
            case Planted():
                self.planted = event
                self._line("backdoor", **asdict(event))
            case _:
                pass

    def notice(self, line: str) -> None:
        """Keep a line for whoever reads the report."""
        self.notices.append(line)
        self._line("notice", text=line)

    def score(self, round_number: int, score: events.Score) -> None:
        """Keep held-out figures of a client, of the base (round 0) or of the adapter after a round."""
        self.scores.setdefault(round_number, {})[score.client] = score
        self._line("score", round=round_number, **asdict(score))

    def finish(self, outcome: str, *, plots: bool) -> None:
        """Say how it ended, and write everything."""
        self.outcome = outcome
        self._line("end", outcome=outcome, seconds=time.monotonic() - self._began)
        self.write_summary()
        if plots:
            from neuralforge_simulations.plots import write_plots

            write_plots(self)

    def write_summary(self) -> None:
        """The summary as things stand."""
        from neuralforge_simulations.summary import summary

        write_bytes_atomically(self.folder / SUMMARY, summary(self).encode())

    def mean_score(self, round_number: int) -> float | None:
        """Held-out loss of a round over all tokens of all clients that gave one."""
        found = self.scores.get(round_number, {}).values()
        tokens = sum(score.tokens for score in found)
        return sum(score.loss * score.tokens for score in found) / tokens if tokens else None

    @property
    def last_scored(self) -> int:
        """The newest round with scores, 0 for none but the base's."""
        return max(self.scores, default=BASE_ROUND)

    @property
    def committed(self) -> list[Round]:
        """The rounds that count, in order."""
        return [self.rounds[number] for number in sorted(self.rounds) if self.rounds[number].committed]

    def _round(self, number: int) -> Round:
        return self.rounds.setdefault(number, Round(number=number))

    def _accepted(self, event: events.Accepted) -> None:
        found, report = self._round(event.round), event.report
        found.bytes_up += event.bytes_up
        found.accepted.add(event.client)
        if report.loss is not None:
            found.losses[event.client] = report.loss
        self._line(
            "client",
            round=event.round,
            client=event.client,
            accepted=True,
            examples=report.examples,
            rank=report.rank,
            steps=report.steps,
            tokens=report.tokens,
            loss=report.loss,
            norm=event.norm,
            bytes_up=event.bytes_up,
            seconds=report.seconds,
        )

    def _committed(self, event: events.RoundCommitted) -> None:
        found = self._round(event.round)
        found.committed = True
        found.loss, found.exactness_error = event.loss, event.exactness_error
        found.seconds = time.monotonic() - self._attempt_began
        found.privacy = event.privacy
        self._line(
            "round",
            round=event.round,
            attempts=found.attempts,
            asked=found.asked,
            clients=event.clients,
            refused=len(found.turned),
            loss=event.loss,
            exactness_error=event.exactness_error,
            bytes_down=found.bytes_down,
            bytes_up=found.bytes_up,
            seconds=found.seconds,
            figures=dict(event.figures),
            privacy=event.privacy,
        )
        self.write_summary()

    def _line(self, kind: str, **facts: Any) -> None:
        path = self.folder / METRICS
        text = json.dumps(_finite({"kind": kind, **facts}), default=str)
        with storage_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def _prepare(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / METRICS).is_file():
        raise StorageError(
            f"{folder} holds other things than a simulation's report",
            hint="name a new or empty folder with --output (run.directory)",
        )
    with storage_errors(folder / METRICS):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(folder / METRICS, b"")
    for name in (SUMMARY, *PLOTS):
        with storage_errors(folder / name):
            (folder / name).unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """JSON has no word for a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
