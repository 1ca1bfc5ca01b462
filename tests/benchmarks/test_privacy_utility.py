"""The benchmark of what privacy costs in what is learnt runs, and gives the figures that the documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "privacy_utility.py"


@pytest.mark.slow
def test_every_method_is_measured_with_and_without_privacy() -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    rows = {(row["method"], row["epsilon"]): row for row in answer["rows"]}
    assert rows.keys() == {(method, epsilon) for method in ("lora", "ffa-lora") for epsilon in (None, 8.0)}
    for (_, epsilon), row in rows.items():
        assert (row["noise_multiplier"] is None) == (epsilon is None)
        assert row["perplexity"] != row["before"], "weights move"
