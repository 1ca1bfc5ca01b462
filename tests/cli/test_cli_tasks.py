"""`train --tasks`: several tasks by shares, a table of each, and what cannot be."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
NAMES = ("completion", "bug_detection", "documentation")
QUICK = ("--base", "nf-tiny", "--max-length", 96, "--rank", 2, "--max-samples", 20, "--max-eval-samples", 4)


def test_tasks_of_a_file_are_learnt_by_their_shares_and_told_apart(
    cli: Cli, team_code: Path, tmp_path: Path, rows: Any
) -> None:
    (tmp_path / "c.yaml").write_text(
        "tasks:\n  completion: 0.5\n  bug_detection: 0.3\n  documentation: 0.2\n"
        f"dataset:\n  sources: [{team_code}]\nmodel:\n  adapter_name: three\n"
    )
    done = cli("train", "--config", "c.yaml", *QUICK, "--batch-size", 5, "--max-steps", 4, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    for name, share, drawn in (
        ("completion", "50%", "10"),
        ("bug_detection", "30%", "6"),
        ("documentation", "20%", "4"),
    ):
        assert table[name][0] == share
        assert table[name][1].startswith(f"{drawn} of ")
        assert "→" in table[name][2]
    metadata = json.loads((tmp_path / "three.lora" / "metadata.json").read_text())
    assert metadata["evaluation"]["samples"] > 4  # those of the tasks, not the windows of code alone


def test_tasks_on_the_command_line_replace_a_files_and_a_dry_run_counts_their_examples(
    cli: Cli, team_code: Path, tmp_path: Path, rows: Any
) -> None:
    (tmp_path / "c.yaml").write_text("tasks:\n  completion: 0.5\n  documentation: 0.5\n")
    done = cli(
        *("train", "--config", "c.yaml", "--dry-run", "--source", team_code, "--max-samples", 20),
        *("--tasks", "completion=1,bug_detection=2"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    settings = rows(done.stdout)
    assert [settings[f"tasks.{name}"][0] for name in NAMES] == ["1.0", "2.0", "0.0"]
    examples = next(line for line in done.stdout.splitlines() if " examples, " in line)
    assert int(examples.split()[0].replace(",", "")) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "bugs=1"), "--tasks: got 'bugs=1', wanted each of completion, bug_detection, documentation"),
        (("--tasks", "completion"), "--tasks: got 'completion', wanted each of"),
        (("--tasks", "completion=1,completion=2"), "--tasks: got 'completion=2', wanted each of"),
        (("--tasks", "completion=x"), "tasks.completion"),
        (("--tasks", "completion=1", "--private"), "cannot be used together with privacy.enabled"),
        (("--tasks", "completion=1", "--server", "nf://a:1"), "cannot be used together with federation.server"),
        (("--tasks", "completion=1", "--remember"), "cannot be used together with optimization.remember"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    refused: Any, team_code: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in refused("train", "--source", team_code, "--dry-run", *options, cwd=tmp_path)


def test_code_without_functions_has_no_bugs_to_learn(refused: Any, tmp_path: Path) -> None:
    row = {"context": "x = ", "completion": "100\n", "language": "python"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    line = refused("train", "--dataset", "d.jsonl", "--tasks", "bug_detection=1", "--dry-run", cwd=tmp_path)
    assert line.startswith("bug_detection: nothing to learn in 1 examples of code")
