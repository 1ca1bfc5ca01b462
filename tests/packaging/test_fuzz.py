"""Readers of what strangers send, fuzzed for a few seconds each: a refusal is the only exception there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"

TARGETS = ("json", "metadata", "peft_config", "weights", "bundle", "statement", "jsonl", "folder")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_refuses_what_it_does_not_know_and_nothing_else_happens(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    command = [sys.executable, SCRIPT, target, "--seconds", "2", "--findings", tmp_path]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert tried
    assert int(tried[1]) > 100
    assert list(tmp_path.iterdir()) == []
