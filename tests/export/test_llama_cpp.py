"""An exported adapter in llama.cpp itself: what it writes is what it writes here; the whole of it is in scripts/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "check_gguf.py"


def test_llama_cpp_writes_what_we_write_with_and_without_the_exported_adapter() -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp comes as a wheel for Linux on x86-64 alone")
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["adapter_changes"] > 0
    assert figures["base_same_completions"] == figures["adapter_same_completions"] == figures["contexts"] == 4
    # Both compute in float32, in another order; over the quantised file they are hundreds of times further apart.
    assert figures["base_log_probability_apart_most"] < 2e-3
    assert figures["adapter_log_probability_apart_most"] < 2e-3
