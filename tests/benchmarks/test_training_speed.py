"""The benchmark runs and gives the figures it promises; what they are is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuralforge.models.device import has_fast_bfloat16

# Contestants hold their weights in bfloat16, which a CPU without instructions for it multiplies fifty times as slowly.
pytestmark = pytest.mark.skipif(
    not has_fast_bfloat16(torch.device("cpu")), reason="this CPU has no instructions for bfloat16"
)

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_speed.py"


def figures(*arguments: str) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), "--json", "--quick", "--base", "nf-tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.slow
def test_our_own_figures_are_measured_without_the_peers() -> None:
    answer = figures("--only", "ours,ours-prefix")
    assert isinstance(answer["mfu"], float)
    assert 0 < answer["mfu"] < 1
    assert answer["speedup_vs_trl_default"] is None, "a peer that did not run has no figure"
    contestants = answer["contestants"]
    assert isinstance(contestants, dict)
    assert contestants["ours"]["held_out_loss"] < answer["base_loss"] * 1.05


@pytest.mark.slow
def test_the_peers_run_side_by_side() -> None:
    pytest.importorskip("trl", reason="the extra `benchmarks` is not installed")
    answer = figures()
    for name in ("speedup_vs_trl_default", "speedup_vs_best_stock", "loss_difference", "mfu"):
        assert isinstance(answer[name], float), name
