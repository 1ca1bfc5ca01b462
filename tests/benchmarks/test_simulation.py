"""The benchmark of the simulation's engine gives its figures, and null with a reason where Ray is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "simulation.py"


@pytest.mark.slow
def test_the_engine_is_measured_beside_flowers_own_where_that_can_run() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json"], capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert 0 < answer["ms_per_client_round"] < 100
    assert answer["delta_bytes"] == 40_000
    if importlib.util.find_spec("ray") is None:
        assert answer["speedup_vs_flower_ray"] is None
        assert "neuralforge[ray]" in answer["reason"]
    else:
        assert answer["speedup_vs_flower_ray"] > 1
