"""The benchmark of the editor's server runs and gives the figures that the documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "completion_latency.py"


@pytest.mark.slow
def test_a_kept_prefix_is_faster_and_writes_the_same() -> None:
    command = [sys.executable, str(SCRIPT), "--json", "--quick", "--base", "nf-tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert answer["p50_ms"] <= answer["p95_ms"]
    assert answer["prefix_reuse_speedup"] > 1
    assert answer["reused_share"] > 0.9
    if answer["number_format"] == "float32":
        assert answer["identical"] == answer["keystrokes"]
