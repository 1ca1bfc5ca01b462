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
        assert row["alone"][0] < row["base"]
        assert row["three"][0] < row["base"]
