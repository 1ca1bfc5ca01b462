"""A run's figures on the disk: `metrics.jsonl` in the run folder, TensorBoard where asked for."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from neuralforge.data.run_folder import METRICS_FILE
from neuralforge.training.events import Evaluated, Event, RunFinished, RunStarted, StepDone
from neuralforge_common.atomic import storage_errors, write_bytes_atomically


class MetricsFile:
    """One JSON object a line: `kind` is step, evaluation or end. A resumed run takes back what it will do again."""

    def __init__(self, folder: Path, *, profile_memory: bool = False) -> None:
        self._path = folder / METRICS_FILE
        self._profile_memory = profile_memory

    def __call__(self, event: Event) -> None:
        """Append what the event says; raises StorageError."""
        match event:
            case RunStarted():
                with storage_errors(self._path):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes_atomically(self._path, self._lines_up_to(event.step))
            case StepDone():
                self._append(step_record(event) | (memory_record() if self._profile_memory else {}))
            case Evaluated():
                self._append(evaluation_record(event))
            case RunFinished():
                self._append({"kind": "end", **asdict(event)})

    def _lines_up_to(self, step: int) -> bytes:
        if step == 0 or not self._path.is_file():
            return b""
        kept = []
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
                if record["step"] <= step and record["kind"] != "end":
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut off
        return b"".join(kept)

    def _append(self, record: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")


class TensorBoard:
    """The same figures as TensorBoard's event files."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Write what the event says."""
        match event:
            case StepDone():
                self._write("train", event.step, step_record(event), ("loss", "learning_rate", "gradient_norm"))
                self._writer.add_scalar("train/tokens_per_second", event.tokens / event.seconds, event.step)
            case Evaluated():
                self._write("held_out", event.step, evaluation_record(event), ("loss", "perplexity", "accuracy"))
                self._writer.flush()

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()

    def _write(self, group: str, step: int, record: dict[str, Any], names: tuple[str, ...]) -> None:
        for name in names:
            if record[name] is not None:
                self._writer.add_scalar(f"{group}/{name}", record[name], step)


def step_record(event: StepDone) -> dict[str, Any]:
    """A step as plain JSON values."""
    record = asdict(event)
    for name in ("gradient_norms", "penalty"):
        if not record[name]:
            del record[name]
    return {"kind": "step", **record}


def evaluation_record(event: Evaluated) -> dict[str, Any]:
    """An evaluation as plain JSON values."""
    result = event.evaluation
    return {
        "kind": "evaluation",
        "step": event.step,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": result.accuracy,
        "tokens": result.tokens,
        "best": event.best,
        "seconds": event.seconds,
    }


def memory_record() -> dict[str, int]:
    """This process's resident memory now, in bytes."""
    return {"resident_bytes": psutil.Process().memory_info().rss}
