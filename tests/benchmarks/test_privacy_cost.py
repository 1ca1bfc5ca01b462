"""The benchmark runs and gives the figures it promises; what they cost is not a test's business, that they agree is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "privacy_cost.py"


@pytest.mark.slow
def test_a_private_step_is_measured_beside_plain_peft_and_agrees_with_a_loop() -> None:
    command = [sys.executable, str(SCRIPT), "--json", "--quick", "--base", "nf-tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert answer["time_ratio_vs_plain_peft"] > 0
    assert isinstance(answer["extra_memory_ratio_vs_plain_peft"], float)
    assert answer["max_abs_error"] < 1e-4
    assert answer["relative_error"] < 1e-4
    assert set(answer["contestants"]) == {"plain-peft", "opacus-hooks", "ours"}
    assert "fast-differential-privacy" in answer["absent"]
