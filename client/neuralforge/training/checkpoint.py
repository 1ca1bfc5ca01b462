"""Checkpoints: everything that decides what a run does next, in one file that is whole or absent.

A safetensors file: the adapter's flat vector, AdamW's two moments, the best vector so far; counters and the run's
digest in its header. Batches, dropout and learning rate are functions of the step, so no generator state is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from neuralforge_common.atomic import write_bytes_atomically
from neuralforge_common.errors import CheckpointError, StorageError

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")
_HEADER = "neuralforge_checkpoint"
_TENSORS = ("best", "first_moment", "second_moment", "vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Where a run stands. `run` is the digest of all that decides its numbers; `created` is when it began."""

    run: str
    created: str
    step: int
    best_step: int = 0
    best_loss: float | None = None
    first_loss: float | None = None
    first_accuracy: float | None = None
    best_accuracy: float | None = None
    evaluations_since_best: int = 0
    tokens: int = 0
    loss_scale: float = 1.0
    finished: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Counters and the four flat fp32 vectors, all of one size."""

    counters: Counters
    vector: torch.Tensor
    first_moment: torch.Tensor
    second_moment: torch.Tensor
    best: torch.Tensor


class CheckpointFolder:
    """The checkpoints of one run; the newest `KEPT` stay.

    What an earlier run has left stays as well, until this one has put something in its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: list[Path] = []

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write atomically, then remove the oldest; raises StorageError and keeps what was there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise StorageError(f"cannot make the checkpoint folder {self.path}: {fault.strerror}") from fault
        tensors = {name: getattr(checkpoint, name).detach().cpu().contiguous() for name in _TENSORS}
        header = {"counters": asdict(checkpoint.counters), "digest": _digest(tensors)}
        path = self.path / f"checkpoint-{checkpoint.counters.step:08d}.safetensors"
        write_bytes_atomically(path, save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))
        self._mine = [*(mine for mine in self._mine if mine != path), path][-KEPT:]
        for old in self._paths():
            if old not in self._mine:
                old.unlink(missing_ok=True)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there is none; CheckpointError where all are damaged."""
        damaged = []
        for path in reversed(self._paths()):
            try:
                checkpoint = _read(path)
                self._mine = [older for older in self._paths() if older <= path][-KEPT:]
                return checkpoint
            except CheckpointError as fault:
                damaged.append(fault.message)
        if damaged:
            raise CheckpointError(damaged[0], hint=f"remove {self.path} to begin anew")
        return None

    def _paths(self) -> list[Path]:
        return sorted(p for p in self.path.glob("checkpoint-*.safetensors") if _NAME.fullmatch(p.name))


def _read(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        if _digest(tensors) != header["digest"]:
            raise CheckpointError(f"{path} is damaged: its contents do not match their digest")
        return Checkpoint(counters=Counters(**header["counters"]), **tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as fault:
        raise CheckpointError(f"{path} is damaged: {fault}") from fault


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in _TENSORS:
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
