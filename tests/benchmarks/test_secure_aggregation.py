"""The benchmark of secure aggregation gives its figures, and every round of it comes to the plain sum."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "secure_aggregation.py"


@pytest.mark.slow
def test_every_round_is_measured_and_comes_to_the_plain_sum() -> None:
    command = [sys.executable, str(SCRIPT), "--json", "--clients", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    rounds = json.loads(line)["rounds"]
    assert [row["parameters"] for row in rounds] == [500_000, 10_000_000]
    for row in rounds:
        assert row["is_plain_sum"]
        assert row["relative_error"] < 1e-3
        assert row["client_seconds"] > 0
        assert row["coordinator_seconds"] > 0
        assert row["client_bytes_up"] < 1.01 * row["bytes_up_without_masks"]
