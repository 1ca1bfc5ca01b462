"""The benchmark of forgetting runs, and gives the figures that the documentation quotes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "forgetting.py"
METHODS = [
    *("naive", "ewc", "replay", "ewc+replay", "der++", "ewc+der++"),
    *("progressive", "progressive+der++", "by language", "joint"),
]


@pytest.mark.slow
def test_every_method_is_judged_after_every_session(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--json", "--quick", "--plot", str(tmp_path / "plot.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    methods = json.loads(line)["methods"]
    assert list(methods) == METHODS
    for name, row in methods.items():
        (matrix,) = row["matrix"]
        assert [len(scores) for scores in matrix] == [3] * (1 if name == "joint" else 3)
        losses = [[loss for loss, _ in scores] for scores in matrix]
        assert row["loss"]["aa"] == pytest.approx(sum(losses[-1]) / 3)
        if name != "joint":
            assert row["loss"]["la"] == pytest.approx(sum(losses[j][j] for j in range(3)) / 3)
            assert row["loss"]["bwt"] == pytest.approx(sum(losses[2][j] - losses[j][j] for j in range(2)) / 2)
        assert {"forgetting_ratio_vs_naive", "la_ratio_vs_naive"} <= row.keys()
    finals = [tuple(map(tuple, row["matrix"][0][-1])) for row in methods.values()]
    assert len(set(finals)) == len(METHODS), "two methods have done the same"
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
