"""The benchmark of tasks runs and judges both adapters on every task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tasks.py"


@pytest.mark.slow
def test_both_adapters_are_judged_on_every_task() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert list(answer["tasks"]) == ["completion", "bug_detection", "documentation"]
    for row in answer["tasks"].values():
        assert row["examples"] > 0
        # So few steps need not teach anything; that weights move is all that can be said.
        assert 1 < row["alone"][0] != row["base"] > 1
        assert 1 < row["three"][0] != row["alone"][0]
