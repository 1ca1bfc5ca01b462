"""The benchmark of extraction runs and gives the figures that the documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_speed.py"


@pytest.mark.slow
def test_both_read_the_same_history_and_nothing_leaks() -> None:
    for peer in ("datasketch", "pydriller"):
        pytest.importorskip(peer, reason="the extra `benchmarks` is not installed")
    command = [sys.executable, str(SCRIPT), "--json", "--quick", "--megabytes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    (row,) = answer["repositories"]
    assert row["megabytes"] >= 1
    assert min(row["train"], row["evaluation"], row["peer_examples"]) > 50
    assert answer["leakage_exact"] == answer["leakage_near"] == 0
    assert answer["mb_per_minute"] > 0
    assert answer["speedup_vs_peer"] > 0
