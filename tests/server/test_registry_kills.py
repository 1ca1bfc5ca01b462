"""kill -9 of the registry while somebody publishes: the script that does it, a few times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_registry.py"


@pytest.mark.slow
def test_a_registry_that_is_killed_while_somebody_publishes_never_shows_a_part(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "6", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["there"] + figures["part"] + figures["nothing"] == figures["kills"] == 6
    assert figures["part"] + figures["nothing"] > 0
