"""The smaller benchmarks run and give the figures that the documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def figures(script: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), "--json", "--quick", "--base", "nf-tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


@pytest.mark.slow
def test_each_row_of_learning_is_judged_against_the_base() -> None:
    answer = figures("learning.py")
    (row,) = answer["rows"]
    assert row["tokens"] >= 1_500
    assert row["perplexity"] != answer["base"]["perplexity"], "an adapter that learnt nothing was judged"
    assert row["change"] == pytest.approx(row["perplexity"] / answer["base"]["perplexity"] - 1)


@pytest.mark.slow
def test_the_shares_of_a_step_are_a_whole_and_every_group_has_one() -> None:
    answer = figures("step_profile.py")
    shares = answer["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    assert answer["large_gflops"] > 0
