"""`split-dataset` and `analyze-dataset`, as a person runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_from_a_dataset_to_a_verdict(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    done = cli("create-dataset", "--source", team_code, "--output", "all.jsonl", "--max-samples", 300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = cli("split-dataset", "all.jsonl", "--eval", 0.2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "leakage        0.0% measured" in done.stdout
    paths = [
        {json.loads(line)["path"] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("all.train.jsonl", "all.eval.jsonl")
    ]
    assert paths[0]
    assert paths[1]
    assert not paths[0] & paths[1]
    command = ("analyze-dataset", "all.train.jsonl", "--against", "all.eval.jsonl", "--base", "nf-tiny")
    done = cli(*command, "--html", "report.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["leakage_share"] == 0
    assert facts["languages"] == {"python": facts["examples"]}
    assert facts["verdict"] in ("ready", "usable, with warnings")
    assert 0 < facts["minutes"] < 60
    assert facts["steps"] == -(-facts["examples"] // 4) * 3
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_a_division_that_leaks_is_found_out(cli: Cli, examples: Path, tmp_path: Path) -> None:
    shutil.copy(examples / "train.jsonl", tmp_path / "train.jsonl")
    shutil.copy(examples / "train.jsonl", tmp_path / "eval.jsonl")
    done = cli("analyze-dataset", "train.jsonl", "--against", "eval.jsonl", "--no-probe", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verdict: do not train on it yet" in done.stdout
    assert "100.0% of the held-out examples stand in the training side" in done.stdout


def test_what_cannot_be_done_is_one_line(cli: Cli, refused: Callable[..., str], examples: Path, tmp_path: Path) -> None:
    train = examples / "train.jsonl"
    assert "do not say their time" in refused("split-dataset", train, "--by", "time", cwd=tmp_path)
    assert "no such file" in refused("analyze-dataset", "none.jsonl", cwd=tmp_path)
    assert not list(tmp_path.iterdir())
    for wrong in (("--eval", "1"), ("--eval", "x"), ("--by", "day"), ("--eval-output", train)):
        assert cli("split-dataset", train, *wrong, cwd=tmp_path).returncode == 2
