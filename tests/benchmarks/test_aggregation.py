"""The benchmark of aggregation gives its figures, and both sides come to the same mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "aggregation.py"


@pytest.mark.slow
def test_ours_is_measured_beside_flowers_on_the_same_deltas() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json", "--clients", "8", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert answer["largest_difference"] < 1e-8
    assert answer["speedup_vs_flower_fedavg"] > 0  # how much it is, a busy machine does not tell
    assert 0 < answer["fraction_of_memory_read_rate"] < 1
    # What grows with the clients is theirs: ours is the same at 50 and at 500.
    assert answer["peak_mb_500_clients"] < 300
    assert answer["peak_mb_500_clients"] < 1.3 * answer["peak_mb_50_clients"]
    assert answer["flower_peak_mb_50_clients"] > 2 * answer["peak_mb_50_clients"]
