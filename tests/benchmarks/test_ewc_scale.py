"""The sweep of EWC's weight runs and gives the figures that its documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "ewc_scale.py"


@pytest.mark.slow
def test_a_larger_weight_moves_less_and_is_judged_on_both_code_bases() -> None:
    command = [sys.executable, str(BENCHMARK), "--json", "--quick", "--base", "nf-tiny", "--pulls", "factors,product"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    plain, *held = answer["rows"]
    assert plain["pull"] == "none"
    assert plain["forgotten"] in (None, 1.0)
    assert {row["pull"] for row in held} == {"factors", "product"}
    for mild, strong in zip(held[::2], held[1::2], strict=True):
        assert plain["moved"] > mild["moved"] > strong["moved"] > 0
        assert plain["new"] < mild["new"] < strong["new"]
