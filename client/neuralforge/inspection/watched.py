"""How far a training run is, read from the outside: its `metrics.jsonl`, whoever writes it and wherever it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuralforge.data.run_folder import METRICS_FILE, run_folder
from neuralforge_common.errors import CheckpointError

QUIET_SECONDS = 60.0
QUIET_STEPS = 20
"""A run is quiet where nothing was written for a minute and for twenty times what a step or an evaluation took."""

_KINDS = {
    "step": {"step", "total_steps", "epoch", "loss", "learning_rate", "gradient_norm", "tokens", "seconds"},
    "evaluation": {"step", "perplexity", "accuracy", "best", "seconds"},
    "end": {"step", "best_step", "reason"},
}

State = Literal["running", "quiet", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The held-out examples after `step` steps; of step 0, before anything was learnt."""

    step: int
    perplexity: float | None
    accuracy: float | None
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRun:
    """What a run has written so far. `losses` has each step's mean, in nats a token; None where nothing was drawn.

    `seconds_left` counts the steps that are left, not evaluations; `silent_seconds` is the age of the last line;
    `reason` says why a finished run is one, and `best_step` whose weights its adapter has.
    """

    name: str
    path: Path
    state: State
    step: int
    total_steps: int | None
    epoch: float | None
    learning_rate: float | None
    gradient_norm: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    silent_seconds: float
    reason: str
    best_step: int | None
    resident_bytes: int | None
    losses: tuple[float | None, ...]
    scores: tuple[Score, ...]


def find_run(place: Path) -> Path:
    """The metrics file that is meant: itself, a run's, that of a `NAME.lora`, or the newest below an output folder.

    Raises:
        CheckpointError: nothing has been trained there.
    """
    if place.is_file():
        return place
    if place.name.endswith(".lora"):
        output = place.absolute().parent
        candidates = [run_folder(output, place.name.removesuffix(".lora")) / METRICS_FILE]
    else:
        candidates = [place / METRICS_FILE, *run_folder(place, "").glob(f"*/{METRICS_FILE}")]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise CheckpointError(
            f"{place}: no run has written {METRICS_FILE} there",
            hint="wanted: NAME.lora, or the folder that train's --output names",
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def read_run(path: Path, *, now: float | None = None) -> WatchedRun:
    """Read what is there; a line that is being written, or was cut off by a kill, is passed over.

    Raises:
        CheckpointError: the file cannot be read, or holds no line of a run.
    """
    try:
        written = path.stat().st_mtime
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    records = [record for record in map(_record, lines) if record is not None]
    if lines and not records:
        raise CheckpointError(f"{path}: not one line of a training run", hint=f"a run's file is called {METRICS_FILE}")
    steps = [record for record in records if record["kind"] == "step"]
    last: dict[str, Any] = steps[-1] if steps else {}
    end: dict[str, Any] = next((record for record in records if record["kind"] == "end"), {})
    seconds = [float(record["seconds"]) for record in records if record["kind"] != "end"]
    silent = max(0.0, (time.time() if now is None else now) - written)
    total = last.get("total_steps")
    quiet = silent > max([QUIET_SECONDS, *(QUIET_STEPS * taken for taken in seconds)])
    recent = steps[-50:]
    taken = sum(float(record["seconds"]) for record in recent)
    return WatchedRun(
        name=path.absolute().parent.name,
        path=path,
        state="finished" if end else "quiet" if quiet else "running",
        step=int(last.get("step", 0)),
        total_steps=total,
        epoch=last.get("epoch"),
        learning_rate=last.get("learning_rate"),
        gradient_norm=last.get("gradient_norm"),
        tokens_per_second=sum(record["tokens"] for record in recent) / taken if taken else None,
        seconds_left=(total - last["step"]) * taken / len(recent) if total is not None else None,
        silent_seconds=silent,
        reason=end.get("reason", ""),
        best_step=end.get("best_step"),
        resident_bytes=last.get("resident_bytes"),
        losses=tuple(record["loss"] for record in steps),
        scores=tuple(_score(record) for record in records if record["kind"] == "evaluation"),
    )


def buckets(losses: Sequence[float | None], count: int) -> list[float]:
    """At most `count` means of neighbouring losses, oldest first."""
    values = [loss for loss in losses if loss is not None]
    width = max(1, -(-len(values) // count))
    parts = [values[start : start + width] for start in range(0, len(values), width)]
    return [sum(part) / len(part) for part in parts]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        wanted = _KINDS[record["kind"]]
        numbers = [record[key] for key in ("step", "total_steps", "tokens", "seconds") if key in wanted]
        return record if wanted <= record.keys() and all(isinstance(n, int | float) for n in numbers) else None
    except (ValueError, KeyError, TypeError):
        return None


def _score(record: dict[str, Any]) -> Score:
    return Score(
        step=record["step"], perplexity=record["perplexity"], accuracy=record["accuracy"], best=bool(record["best"])
    )
