"""The comparison of losses runs and gives the figures that its documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "losses.py"


@pytest.mark.slow
def test_every_loss_is_trained_with_and_judged() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    rates = answer["syntax_valid_rate"]
    assert rates.keys() == {"base", "cross_entropy", "label_smoothing", "syntax_penalised", "style_consistent"}
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert 1 < answer["perplexity"]["cross_entropy"] != answer["perplexity"]["base"] > 1
