"""`train --private`, as a person runs it: what is said before and after, what comes out, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from neuralforge_common.accounting import Steps, epsilon

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]

DATASET = "".join(
    f'{{"context": "def f{n}(x):\\n    y = {n * n}", "completion": "\\n    return x * y + {n * 7}"}}\n'
    for n in range(60)
)
QUICK = ("--base", "nf-tiny", "--max-length", 32, "--rank", 2, "--warmup-steps", 0, "--dataset", "d.jsonl")
PRIVATE = (*QUICK, "--private", "--sample-rate", 0.25)


class Run(NamedTuple):
    place: Path
    output: str
    home: dict[str, str]

    def ledger(self) -> list[dict[str, Any]]:
        """The charges; the first line of a ledger says whose it is."""
        (path,) = self.place.glob("home/privacy/*/ledger.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def spent(charges: list[dict[str, Any]]) -> float:
    return epsilon([Steps(sample_rate=0.25, noise_multiplier=c["sigma"], count=c["steps"]) for c in charges], 1e-5)


@pytest.fixture(scope="module")
def run(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small private run to its end."""
    place = tmp_path_factory.mktemp("private")
    (place / "d.jsonl").write_text(DATASET)
    home = {"NEURALFORGE_HOME": str(place / "home")}
    done = cli("train", *PRIVATE, "--max-steps", 4, "--name", "mine", cwd=place, **home)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(place, done.stdout, home)


def test_a_run_says_what_it_will_cost_and_what_it_has_cost(run: Run) -> None:
    (charge,) = run.ledger()
    said = spent([charge])
    assert 7.9 < said <= 8
    assert charge["steps"] == 4
    assert (
        f"private: ε = {said:.3g} at δ = 1e-05, example-level, with noise multiplier {charge['sigma']:g}, each example "
        "clipped to 1 and drawn with probability 0.25, 4 steps\n"
    ) in run.output
    assert f"spent: ε = {said:.3g} at δ = 1e-05, example-level, in 4 steps" in run.output


def test_the_adapter_tells_its_privacy_and_nothing_else_of_its_data(run: Run) -> None:
    folder = run.place / "mine.lora"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["privacy"]["epsilon"] == pytest.approx(spent(run.ledger()), rel=1e-9)
    kept_back = ("training_samples", "accuracy", "dataset_digest", "evaluation")
    assert [metadata[name] for name in kept_back] == [None, None, "", None]
    assert "example-level" in (folder / "README.md").read_text()


def test_what_a_run_leaves_beside_its_adapter_is_closed_to_others_and_to_git(run: Run) -> None:
    records = run.place / ".neuralforge" / "mine"
    assert (records / "metrics.jsonl").exists()
    assert stat.S_IMODE(records.stat().st_mode) == 0o700
    subprocess.run(["git", "init", "--quiet"], cwd=run.place, check=True)
    listed = subprocess.run(["git", "status", "--short"], cwd=run.place, check=True, capture_output=True, text=True)
    assert ".neuralforge" not in listed.stdout


def test_a_second_run_is_refused_where_it_would_learn_nothing_with_what_is_left(run: Run, refused: Refused) -> None:
    before = run.ledger()
    line = refused("train", *PRIVATE, "--max-steps", 4, "--name", "mine", cwd=run.place, **run.home)
    assert line.startswith("mine.lora has spent ε = 8 of 8 at δ = 1e-05, example-level: what is left allows 4 steps")
    assert run.ledger() == before


def test_steps_that_another_ledger_was_charged_for_are_not_gone_on_with(run: Run, refused: Refused) -> None:
    checkpoints = run.place / ".neuralforge" / "mine"
    resumed = (*PRIVATE, "--max-steps", 4, "--resume", "auto", "--target-epsilon", 20)
    other = (*resumed, "--name", "other", "--checkpoint-dir", checkpoints)
    line = refused("train", *other, cwd=run.place, **run.home)
    assert f"the checkpoints in {checkpoints} are of adapter {run.place.resolve() / 'mine.lora'}, whose steps" in line
    elsewhere = {"NEURALFORGE_HOME": str(run.place / "elsewhere")}
    line = refused("train", *resumed, "--name", "mine", cwd=run.place, **elsewhere)
    assert "mine holds 4 steps, and the ledger of this adapter knows of 0" in line


def test_a_dry_run_plans_and_leaves_no_trace(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(DATASET)
    arguments = ("train", *PRIVATE, "--noise-multiplier", 1, "--target-epsilon", 2, "--epochs", 5, "--dry-run")
    done = cli(*arguments, cwd=tmp_path, NEURALFORGE_HOME=str(tmp_path / "home"))
    assert (done.returncode, done.stderr) == (0, "")
    allowed = int(re.search(r"20 steps, of which ε = 2 at .* allows (\d+): the run stops there", done.stdout)[1])
    steps = Steps(sample_rate=0.25, noise_multiplier=1, count=allowed)
    assert epsilon([steps], 1e-5) <= 2
    assert "4 steps an epoch, 20 steps in all" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with_at_a_price_and_ends_within_its_budget(
    cli: Cli, program: Path, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(DATASET)
    home = {"NEURALFORGE_HOME": str(tmp_path / "home")}
    (tmp_path / "c.yaml").write_text("training:\n  checkpoint_steps: 4\n")
    arguments = ("train", "--config", "c.yaml", *PRIVATE, "--max-steps", 16, "--resume", "auto", "--name", "mine")
    process = subprocess.Popen(
        [str(program), *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | home | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    saved = tmp_path / ".neuralforge" / "mine" / "checkpoint-00000004.safetensors"
    try:
        end = time.monotonic() + 120
        while not saved.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = Run(tmp_path, "", home).ledger()
    assert process.returncode == -signal.SIGKILL
    assert sum(charge["steps"] for charge in before) in (4, 8, 12, 16)
    done = cli(*arguments, cwd=tmp_path, **home)
    assert done.returncode == 0, done.stdout + done.stderr
    after = Run(tmp_path, done.stdout, home).ledger()
    assert after[: len(before)] == before, "nothing is refunded"
    assert {charge["sigma"] for charge in after} == {before[0]["sigma"]}, "it is the same run"
    assert spent(after) <= 8
    repeated = sum(charge["steps"] for charge in before) > 4
    assert ("the budget is spent: " in done.stdout) == repeated


@pytest.mark.slow
def test_a_private_adapter_goes_on_with_new_data_and_an_open_one_cannot(
    cli: Cli, refused: Refused, adapter: Path, tmp_path: Path
) -> None:
    home = {"NEURALFORGE_HOME": str(tmp_path / "home")}
    lines = DATASET.splitlines(keepends=True)
    (tmp_path / "d.jsonl").write_text("".join(lines[:30]))
    begun = cli("train", *PRIVATE, "--max-steps", 4, "--name", "mine", "--remember", cwd=tmp_path, **home)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    (tmp_path / "d.jsonl").write_text(DATASET)
    more = ("train", *PRIVATE, "--max-steps", 4, "--eval-fraction", 0)
    done = cli(*more, "--continue-from", "mine.lora", cwd=tmp_path, **home)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = Run(tmp_path, done.stdout, home).ledger()
    assert (first["cohorts"].keys(), second["cohorts"].keys()) == ({"1"}, {"2"})
    assert first["sigma"] == second["sigma"], "new data has a budget of its own"
    assert "EWC at 0.5" in done.stdout
    assert f"spent: ε = {spent([second]):.3g} at δ = 1e-05, example-level, in 8 steps" in done.stdout
    shutil.copytree(adapter, tmp_path / "open.lora")
    line = refused("train", "--private", "--dataset", "d.jsonl", "--continue-from", "open.lora", cwd=tmp_path, **home)
    assert "open.lora was learnt without privacy: what it tells of that data cannot be taken back" in line
