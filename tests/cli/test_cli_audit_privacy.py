"""`audit-privacy` from the command line: what it says, what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def config(tmp_path: Path, team_code: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {base: nf-tiny, adapter_name: real}\n"
        f"dataset: {{sources: ['{team_code}'], max_samples: 12, max_length: 32}}\n"
        "training: {max_steps: 4}\nlora: {rank: 2}\n"
        "privacy: {enabled: true, sample_rate: 0.2, noise_multiplier: 0.8, max_grad_norm: 0.5, delta: 1e-6}\n"
    )
    return path


@pytest.mark.slow
def test_an_audit_says_what_it_looked_at_and_leaves_nothing_behind(cli: Cli, tmp_path: Path, config: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    done = cli(
        *("audit-privacy", "--config", config, "--quick", "--json"),
        *("--draws", 200, "--canaries", 32, "--confidence", 0.999),
        cwd=tmp_path,
        NEURALFORGE_HOME=str(tmp_path / "home"),
        TMPDIR=str(scratch),
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["verdict"], report["confidence"], report["delta"]) == ("consistent", 0.999, 1e-6)
    step, run = report["parts"]
    assert {key: step["audited"][key] for key in ("engine", "σ", "C", "q", "draws")} == {
        **{"engine": "fast", "σ": 0.8, "C": 0.5, "q": 0.2, "draws": 200}
    }
    assert {key: run["audited"][key] for key in ("unit", "steps", "canaries", "guessed")} == {
        **{"unit": "example-level", "steps": 4, "canaries": 32, "guessed": 16}
    }
    assert run["audited"]["examples"] > 0
    for bound in step["bounds"] + run["bounds"]:
        assert 0 <= bound["lower"] <= bound["claimed"]
        assert bound["power"] > 0
        assert bound["verdict"].startswith(f"lower bound {bound['lower']:.2f} ≤ claimed {bound['claimed']:.2f}: ")
    assert all(check["passed"] for check in step["checks"])
    # The ledger of the adapter that this configuration would train, the adapter itself, the throw-away ones: none.
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml", "tmp"}
    assert [*scratch.glob("neuralforge*")] == []


@pytest.mark.slow
def test_the_controls_are_flagged_and_told_in_a_table(cli: Cli, tmp_path: Path, config: Path) -> None:
    done = cli(
        *("audit-privacy", "--config", config, "--draws", 400, "--canaries", 0, "--confidence", 0.999, "--controls"),
        cwd=tmp_path,
        COLUMNS="200",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("white-box audit of one step: engine fast, ")
    assert "NOT FLAGGED" not in done.stdout
    rows = re.findall(r"^\| (\w[\w -]+?) +\|(.*)\|$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows][:3] == ["step", "as it is", "no noise"]
    assert "!" not in rows[1][1]
    assert all("!" in row or "sensitivity" in row or "inclusions" in row or "variance" in row for _, row in rows[2:])
    assert done.stdout.splitlines()[-1] == (
        "consistent: nothing that was found contradicts the claim (at 99.9% confidence, δ = 1e-06). "
        "That does not prove it"
    )


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("--draws 10", "argument --draws: wanted a whole number ≥ 200, got '10'"),
        ("--canaries 3", "argument --canaries: wanted 0, or a whole number ≥ 4, got '3'"),
        ("--confidence 1", "argument --confidence: wanted a number from 0.5, below 1, got '1'"),
    ],
)
def test_numbers_with_which_nothing_could_be_shown_are_usage_errors(
    cli: Cli, tmp_path: Path, arguments: str, wanted: str
) -> None:
    done = cli("audit-privacy", *arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert wanted in done.stderr.splitlines()[0]
