"""kill -9 at random moments of a run, resume: the adapter ends as the one of a run that was left alone, every byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

STEPS = 40
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000", "NF_TRAINING_CHECKPOINT_STEPS": "2", "NF_TRAINING_EVAL_STEPS": "9"}


def command(program: Path, team_code: Path, *, resume: bool) -> list[str]:
    return [
        *(str(program), "train", "--source", str(team_code), "--base", "nf-tiny", "--name", "killed"),
        *(
            "--max-steps",
            str(STEPS),
            "--epochs",
            "9",
            "--max-samples",
            "40",
            "--max-eval-samples",
            "8",
            "--max-length",
            "48",
            "--dropout",
            "0.1",
        ),
        *(("--resume", "auto") if resume else ()),
    ]


def lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def run_and_kill(program: Path, team_code: Path, place: Path, chance: random.Random, *, resume: bool) -> bool:
    """Start, wait until a few more steps are done, kill; False where the run ended first."""
    process = subprocess.Popen(
        command(program, team_code, resume=resume),
        cwd=place,
        env=os.environ | EPOCH,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    metrics = place / ".neuralforge" / "killed" / "metrics.jsonl"
    before, more = lines(metrics), chance.randint(1, 4)
    started = time.monotonic()
    # A resumed run first takes back what it will do again, so the count may fall before it rises.
    while process.poll() is None and time.monotonic() - started < 120:
        if abs(lines(metrics) - before) >= more:
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.05))
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert alive or process.returncode == 0, errors
    return alive


def bytes_of(adapter: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(adapter.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
@pytest.mark.timeout(900)
def test_a_killed_and_resumed_run_ends_with_the_same_bytes(
    program: Path, team_code: Path, tmp_path: Path, kills: int
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    subprocess.run(
        command(program, team_code, resume=False), cwd=whole, env=os.environ | EPOCH, check=True, capture_output=True
    )
    chance = random.Random(kills)
    done = sum(run_and_kill(program, team_code, torn, chance, resume=bool(number)) for number in range(kills))
    assert done >= kills // 2, "too few runs were still going when they were killed"
    subprocess.run(
        command(program, team_code, resume=True), cwd=torn, env=os.environ | EPOCH, check=True, capture_output=True
    )
    assert bytes_of(torn / "killed.lora") == bytes_of(whole / "killed.lora")
    left = [path.name for path in torn.rglob("*") if path.name.endswith((".new", ".old"))]
    assert left == []
