"""Checkpoints: what is saved comes back; what is damaged is told; what an earlier run left is not lost too soon."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neuralforge.training.checkpoint import KEPT, Checkpoint, CheckpointFolder, Counters
from neuralforge_common.errors import CheckpointError, StorageError


def checkpoint(step: int, *, run: str = "r") -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    vectors = (torch.randn(7, generator=generator) for _ in range(4))
    counters = Counters(run=run, created="2026-01-01T00:00:00Z", step=step, best_loss=1 / 3, loss_scale=2.0)
    names = ("vector", "first_moment", "second_moment", "best")
    return Checkpoint(counters=counters, **dict(zip(names, vectors, strict=True)))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[11:19]) for path in folder.glob("checkpoint-*.safetensors"))


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = checkpoint(3)
    CheckpointFolder(tmp_path).save(saved)
    read = CheckpointFolder(tmp_path).latest()
    assert read is not None
    assert read.counters == saved.counters
    for name in ("vector", "first_moment", "second_moment", "best"):
        assert torch.equal(getattr(read, name), getattr(saved, name))


def test_the_newest_ones_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in range(1, 6):
        folder.save(checkpoint(step))
    assert steps_in(tmp_path) == [4, 5][-KEPT:]


def test_an_earlier_runs_checkpoints_stay_until_the_new_run_has_one(tmp_path: Path) -> None:
    old = CheckpointFolder(tmp_path)
    old.save(checkpoint(100, run="old"))
    new = CheckpointFolder(tmp_path)
    assert steps_in(tmp_path) == [100]
    new.save(checkpoint(5, run="new"))
    assert steps_in(tmp_path) == [5]
    latest = CheckpointFolder(tmp_path).latest()
    assert latest is not None
    assert latest.counters.run == "new"


def test_a_resumed_run_keeps_the_one_it_came_from(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(checkpoint(5))
    resumed = CheckpointFolder(tmp_path)
    resumed.latest()
    resumed.save(checkpoint(10))
    assert steps_in(tmp_path) == [5, 10]


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "nowhere").latest() is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_whole_one(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    path = folder.save(checkpoint(2))
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-1] ^= 1
    path.write_bytes({"flip": bytes(raw), "cut": bytes(raw[:-5]), "empty": b"", "text": b"not a checkpoint"}[damage])
    latest = CheckpointFolder(tmp_path).latest()
    assert latest is not None
    assert latest.counters.step == 1


def test_where_all_are_damaged_it_is_said(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint(1))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="is damaged"):
        CheckpointFolder(tmp_path).latest()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="checkpoint folder"):
        CheckpointFolder(tmp_path / "file" / "checkpoints").save(checkpoint(1))
