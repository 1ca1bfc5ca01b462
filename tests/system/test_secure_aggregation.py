"""Masked rounds over the real SuperLink under TLS, by processes of their own; the whole of it is in scripts/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "secagg_dropouts.py"


@pytest.mark.slow
def test_a_client_that_is_killed_while_it_trains_leaves_the_plain_sum_of_the_others() -> None:
    command = [sys.executable, str(SCRIPT), "--clients", "4", "--dropouts", "1", "--stages", "train", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout)["stages"]
    assert stage["counted"] == 3
    assert stage["relative_error"] < 1e-3
