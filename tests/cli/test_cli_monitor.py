"""`monitor`, as a person looks after a run from another terminal."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralforge.inspection.watched import buckets, find_run, read_run
from neuralforge_common.errors import CheckpointError

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Terminals = Callable[..., Any]

QUICK = ("--base", "nf-tiny", "--max-length", "96", "--batch-size", "2", "--rank", "2")


def test_a_run_is_followed_to_its_end_from_another_terminal(
    program: Path, terminal: Terminals, examples: Path, tmp_path: Path
) -> None:
    options = ("train", "--dataset", str(examples / "train.jsonl"), *QUICK, "--max-steps", "60", "--epochs", "99")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    with subprocess.Popen(
        [str(program), *options, "--name", "looked-at", "--resume", "auto"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **quiet,
    ) as run:
        metrics = tmp_path / ".neuralforge" / "looked-at" / "metrics.jsonl"
        while run.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3):
            pass
        session = terminal("monitor", cwd=tmp_path)
        session.wait_for("looked-at: running, step ")
        session.wait_for("looked-at: finished, step ")
        assert session.ended() == 0
    assert run.returncode == 0
    assert session.shown.count("best so far") == 2  # the last picture is drawn twice, and one row is the best


def test_what_is_shown_is_what_the_run_has_written(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    done = cli("monitor", adapter, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    metadata = json.loads((adapter / "metadata.json").read_text())
    assert (seen["name"], seen["state"]) == ("team", "finished")
    assert seen["step"] == seen["total_steps"] == len(seen["losses"])
    assert seen["scores"][0]["perplexity"] == pytest.approx(metadata["evaluation"]["base"]["perplexity"])
    shown = cli("monitor", adapter.parent, cwd=tmp_path).stdout
    first, second, curve, *table = shown.splitlines()
    assert first == f"team: finished, step {seen['step']}/{seen['step']}, epoch {seen['epoch']:.2f}"
    assert f"learning rate {seen['learning_rate']:.2e}" in second
    assert curve.startswith(f"loss {seen['losses'][0]:.3f} ")
    assert len(table) == len(seen["scores"]) + 5


def test_where_nothing_was_trained_is_one_line(refused: Refused, tmp_path: Path) -> None:
    assert refused("monitor", cwd=tmp_path) == ".: no run has written metrics.jsonl there"
    assert refused("monitor", "team.lora", cwd=tmp_path) == "team.lora: no run has written metrics.jsonl there"
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n')
    assert refused("monitor", cwd=tmp_path) == "metrics.jsonl: not one line of a training run"


def step(number: int, *, loss: float | None = 2.0, total: int = 10) -> str:
    figures = {"epoch": 0.1, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens": 50, "seconds": 2.0}
    return json.dumps({"kind": "step", "step": number, "total_steps": total, "loss": loss, **figures}) + "\n"


def test_a_line_cut_off_by_a_kill_is_passed_over_and_a_silent_run_is_quiet(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = step(9).replace("2.0}", '"soon"}') + "[]\n" + '{"kind": []}\n'
    path.write_text(step(1) + damaged + step(2, loss=None) + step(3)[:40])
    written = path.stat().st_mtime
    seen = read_run(path, now=written + 50)
    assert (seen.state, seen.step, seen.losses) == ("running", 2, (2.0, None))
    assert (seen.tokens_per_second, seen.seconds_left) == (25.0, 16.0)
    assert read_run(path, now=written + 61).state == "quiet"
    path.write_text(path.read_text().replace('"seconds": 2.0', '"seconds": 30.0'))
    assert read_run(path, now=path.stat().st_mtime + 599).state == "running"
    assert read_run(path, now=path.stat().st_mtime + 601).state == "quiet"


def test_the_newest_run_below_a_folder_is_meant(tmp_path: Path) -> None:
    for age, name in ((20, "older"), (10, "newer")):
        folder = tmp_path / ".neuralforge" / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(step(1))
        os.utime(folder / "metrics.jsonl", (1_000_000 - age, 1_000_000 - age))
    assert read_run(find_run(tmp_path)).name == "newer"
    assert read_run(find_run(tmp_path / "older.lora")).name == "older"
    with pytest.raises(CheckpointError, match="no run has written"):
        find_run(tmp_path / "unknown.lora")


def test_a_curve_has_its_width_at_most_and_every_loss_in_it() -> None:
    assert buckets([1.0, None, 3.0, 5.0], 2) == [2.0, 5.0]
    assert buckets([float(n) for n in range(100)], 48)[0] == 1.0
    assert len(buckets([1.0] * 1000, 48)) <= 48
    assert buckets([], 48) == []
