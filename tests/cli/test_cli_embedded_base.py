"""The default base from end to end: what was trained on it is opened on it again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_an_adapter_of_the_embedded_base_is_trained_tested_and_benchmarked(
    cli: Cli, team_code: Path, tmp_path: Path
) -> None:
    trained = cli(
        *("train", "--source", team_code, "--max-samples", 12, "--max-eval-samples", 4, "--epochs", 1),
        *("--max-length", 64, "--name", "own"),
        cwd=tmp_path,
        timeout=280,
    )
    assert trained.returncode == 0, trained.stderr
    tested = cli("test-adapter", "own.lora", "--json", "--show", 1, "--max-length", 64, cwd=tmp_path, timeout=280)
    assert tested.returncode == 0, tested.stderr
    assert json.loads(tested.stdout)["summary"]["samples"] == 4
    measured = cli("benchmark", "--adapter", "own.lora", "--json", "--max-length", 64, cwd=tmp_path, timeout=280)
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["memory"]["base"] > 200
