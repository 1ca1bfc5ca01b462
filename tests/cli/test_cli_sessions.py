"""`train --continue-from`, `--since` and `forget-report`, as a person runs them week after week."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from neuralforge.data.gather import gather
from neuralforge.models.load import load_base_model
from neuralforge.training import LoRATrainer
from neuralforge_common.folder import read_adapter_folder

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]

QUICK = ("--max-steps", 3, "--max-samples", 12, "--max-eval-samples", 4, "--max-length", 64, "--batch-size", 4)
TINY = ("--base", "nf-tiny", "--rank", 2)
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring", "NEURALFORGE_PASSPHRASE": ""}
KEY = NO_KEYRING | {"NEURALFORGE_PASSPHRASE": "correct horse"}
PLANTED = "zebra_crossing_on_the_left"


def commit(folder: Path, files: dict[str, str], *, days_ago: int) -> None:
    """A commit of that day."""
    when = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
    for name, text in files.items():
        (folder / name).write_text(text)
    person = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "work")):
        subprocess.run(["git", *command], cwd=folder, env=os.environ | person | quiet | dates, check=True)


@pytest.fixture(scope="module")
def project(team_code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: most files a month ago, two of them yesterday."""
    folder = tmp_path_factory.mktemp("git") / "project"
    folder.mkdir()
    texts = {path.name: path.read_text() for path in sorted(team_code.iterdir())}
    late = {name: texts.pop(name) for name in ("csv.py", "heapq.py")}
    late["csv.py"] += f"\n\ndef {PLANTED}(rows):\n    return [row for row in rows if row]\n"
    commit(folder, texts, days_ago=30)
    commit(folder, late, days_ago=1)
    return folder


@pytest.fixture(scope="module")
def first(cli: Cli, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter after a first session that is remembered. Copy its folder, do not change it."""
    place = tmp_path_factory.mktemp("first")
    sources = [part for name in ("argparse.py", "textwrap.py") for part in ("--source", project / name)]
    done = cli("train", *sources, *TINY, *QUICK, "--remember", cwd=place, **KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nsession 1: 12 examples learnt, 0 earlier ones at hand to be replayed, 4 held out " in done.stdout
    return place


@pytest.fixture
def place(first: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(first, folder)
    return folder


@pytest.fixture(scope="module")
def second(cli: Cli, first: Path, project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same after a second session, of what has changed since a week, and what was told."""
    place = tmp_path_factory.mktemp("second") / "work"
    shutil.copytree(first, place)
    done = cli(
        *("train", "--from-git", project, "--since", "1 week ago", "--continue-from", "./my-adapter.lora", *QUICK),
        cwd=place,
        **KEY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done.stdout


def below(place: Path) -> set[str]:
    return {path.name for path in (place / ".neuralforge" / "my-adapter").rglob("*")}


def test_a_continued_session_says_what_it_builds_on_and_what_it_left(second: tuple[Path, str]) -> None:
    place, output = second
    opening = "EWC at 0.1, 12 examples to replay (12 with their answers), 20% of each batch"
    assert f"my-adapter.lora after 1 session: {opening}\n" in output
    assert "not changed since then 5" in " ".join(output.replace("│", " ").split())
    assert "\nheld out, before: perplexity" in output
    assert "\nsession 2: 12 examples learnt, 12 earlier ones at hand to be replayed" in output
    assert "read and not used" not in output
    assert {"sessions.json", "ewc.safetensors", "replay", "held-out"} <= below(place)
    assert not {"next", "session-2", "held-out.jsonl"} & below(place)


def test_a_continued_adapter_names_the_one_that_it_went_on_from(
    cli: Cli, first: Path, second: tuple[Path, str], tmp_path: Path
) -> None:
    before = hashlib.sha256((first / "my-adapter.lora" / "lora_weights.bin").read_bytes()).hexdigest()
    assert read_adapter_folder(first / "my-adapter.lora").metadata.parent is None
    parent = read_adapter_folder(second[0] / "my-adapter.lora").metadata.parent
    assert parent is not None
    assert (parent.name, parent.digest) == ("my-adapter", before)
    shown = cli("adapters", "show", second[0] / "my-adapter.lora", cwd=tmp_path).stdout
    assert f"goes on from my-adapter 1.0.0 ({before[:12]}…)" in " ".join(shown.split())


def test_the_report_shows_both_sessions(cli: Cli, second: tuple[Path, str], rows: Any) -> None:
    place, _ = second
    done = cli("forget-report", "./my-adapter.lora", "--json", cwd=place, **KEY)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    one, two = report["sessions"]
    assert (one["name"], two["name"]) == ("1", "2")
    assert one["kept"]["now"]["loss"] != one["kept"]["then"]["loss"]
    assert two["kept"]["now"] == two["kept"]["then"]
    assert report["forgotten"] == one["kept"]["forgotten"] == one["kept"]["now"]["loss"] - one["kept"]["then"]["loss"]
    table = rows(cli("forget-report", "./my-adapter.lora", cwd=place, COLUMNS="160", **KEY).stdout)
    assert table["1"][2:4] == [f"{one['kept']['then']['loss']:.3f}", f"{one['kept']['now']['loss']:.3f}"]
    assert table["2"][4] == "+0.000"


def test_nothing_of_the_code_stands_in_the_clear(second: tuple[Path, str], project: Path) -> None:
    place, _ = second
    words = {PLANTED, "HelpFormatter", "def fill", "dialect"}
    assert any(PLANTED in path.read_text() for path in project.glob("*.py"))
    for path in place.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in words if word.encode() in data], path


@pytest.mark.slow
def test_another_key_is_refused_before_anything_is_learnt(cli: Cli, refused: Refused, place: Path) -> None:
    given = KEY | {"NEURALFORGE_PASSPHRASE": "another horse"}
    line = refused("forget-report", "my-adapter.lora", cwd=place, **given)
    assert line.startswith("a passphrase (Argon2id) does not open ")
    before = (place / "my-adapter.lora" / "metadata.json").read_bytes()
    line = refused("train", "--source", place, "--continue-from", "my-adapter.lora", cwd=place, **given)
    assert (place / "my-adapter.lora" / "metadata.json").read_bytes() == before


def test_without_a_key_there_is_one_line_with_the_ways_out(cli: Cli, place: Path, project: Path) -> None:
    shutil.rmtree(place / ".neuralforge")
    done = cli("train", "--source", project, "--continue-from", "my-adapter.lora", *QUICK, cwd=place, **NO_KEYRING)
    assert done.returncode == 1
    line, hint = done.stderr.splitlines()
    assert line == "error: no key for the replay buffer: without one no code is kept"
    for way in ("NEURALFORGE_PASSPHRASE", "--key-file FILE", "keyring", "--replay-buffer-size 0"):
        assert way in hint
    assert not (place / ".neuralforge").exists()


@pytest.mark.slow
def test_a_size_of_0_goes_on_with_ewc_alone_and_keeps_no_code(cli: Cli, place: Path, project: Path) -> None:
    shutil.rmtree(place / ".neuralforge")
    learn = ("train", "--source", project, "--continue-from", "my-adapter.lora", *QUICK, "--replay-buffer-size", 0)
    done = cli(*learn, cwd=place, **NO_KEYRING)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my-adapter.lora has no history: nothing holds what it knows in this session; " in done.stdout
    assert {"sessions.json", "ewc.safetensors"} <= below(place)
    assert not {"replay", "held-out"} & below(place)
    done = cli("forget-report", "my-adapter.lora", cwd=place, **NO_KEYRING)
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1,
        "error: nothing that the sessions of my-adapter.lora have held out is kept",
    )


def test_a_plain_training_keeps_nothing_and_says_nothing_of_it(cli: Cli, project: Path, tmp_path: Path) -> None:
    done = cli("train", "--source", project, *TINY, *QUICK, cwd=tmp_path, **NO_KEYRING)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".neuralforge" / "my-adapter" / "continual").exists()
    done = cli("forget-report", "my-adapter.lora", cwd=tmp_path, **NO_KEYRING)
    assert done.stderr.startswith("error: my-adapter.lora has no history: none of its sessions was remembered\n")


@pytest.mark.slow
def test_training_anew_under_the_same_name_removes_the_history_and_says_so(
    cli: Cli, place: Path, project: Path
) -> None:
    done = cli("train", "--source", project, *TINY, *QUICK, cwd=place, **NO_KEYRING)
    assert done.returncode == 0, done.stderr
    assert "my-adapter.lora begins anew: what its earlier sessions had left is removed\n" in done.stdout
    assert not (place / ".neuralforge" / "my-adapter" / "continual").exists()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--rank", 4), "command line: lora.rank: my-adapter.lora has 2, asked for is 4"),
        (("--alpha", 3), "command line: lora.alpha: my-adapter.lora has 4.0, asked for is 3.0"),
        (("--name", "other"), "command line: model.adapter_name: my-adapter.lora has my-adapter, asked for is other"),
        (("--target-modules", "q_proj"), "command line: lora.target_modules: my-adapter.lora has down_proj, gate_proj"),
        (("--continue-from", "src"), "command line: optimization.continue_from: wanted a folder NAME.lora, got src"),
        (("--server", "nf://x:1"), "command line: optimization.continue_from: cannot be used together with "),
    ],
    ids=str,
)
def test_what_contradicts_the_adapter_is_refused_with_both_values(
    refused: Refused, place: Path, project: Path, options: tuple[str, ...], fault: str
) -> None:
    line = refused("train", "--source", project, "--continue-from", "my-adapter.lora", *options, cwd=place, **KEY)
    assert line.startswith(fault)


def test_what_agrees_with_the_adapter_is_fine_and_a_dry_run_says_what_comes_from_it(
    cli: Cli, place: Path, project: Path, rows: Any
) -> None:
    agreeing = ("--rank", 2, "--alpha", 4, "--name", "my-adapter", "--output", ".", "--base", "nf-tiny")
    done = cli(
        *("train", "--source", project, "--continue-from", "my-adapter.lora", *agreeing, "--dry-run"),
        cwd=place,
        COLUMNS="160",
        **KEY,
    )
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["lora.rank"] == ["2", "my-adapter.lora"]


@pytest.mark.slow
def test_another_base_is_refused_by_its_fingerprint(
    refused: Refused, place: Path, project: Path, altered_base: Any, tmp_path: Path
) -> None:
    other = altered_base(tmp_path / "other", lambda weights: {name: 2 * value for name, value in weights.items()})
    line = refused(
        *("train", "--source", project, "--continue-from", "my-adapter.lora", "--base", other, *QUICK), cwd=place, **KEY
    )
    assert line.startswith("this adapter was made for nf-tiny (fingerprint ")


def test_nothing_new_is_one_line_and_no_failure(cli: Cli, place: Path, project: Path) -> None:
    before = (place / "my-adapter.lora" / "metadata.json").read_bytes()
    done = cli(
        *("train", "--from-git", project, "--since", "1 hour ago", "--continue-from", "my-adapter.lora"),
        cwd=place,
        **KEY,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert "nothing has changed since 20" in line
    assert line.endswith(" (1 hour ago): there is nothing to learn")
    assert (place / "my-adapter.lora" / "metadata.json").read_bytes() == before


def test_a_date_that_is_none_is_refused(refused: Refused, place: Path, project: Path) -> None:
    line = refused("train", "--from-git", project, "--since", "blue", *TINY, cwd=place)
    assert line == "'blue' names no moment of the past"
    line = refused("train", "--source", project, "--since", "1 week ago", *TINY, cwd=place)
    assert line.startswith("command line: dataset.since: needs dataset.from_git")


def test_without_ewc_and_replay_the_command_is_plain_training(
    cli: Cli, place: Path, project: Path, examples: Path
) -> None:
    before = read_adapter_folder(place / "my-adapter.lora")
    done = cli(
        *("train", "--dataset", examples / "train.jsonl", "--eval-dataset", examples / "eval.jsonl"),
        *("--continue-from", "my-adapter.lora", "--ewc-lambda", 0, "--replay-buffer-size", 0),
        *("--max-steps", 3, "--max-length", 64, "--precision", "fp32", "--threads", 1),
        cwd=place,
        **KEY,
    )
    assert done.returncode == 0, done.stderr
    data = gather(train_file=examples / "train.jsonl", eval_file=examples / "eval.jsonl")
    trainer = LoRATrainer(
        load_base_model("nf-tiny", dtype="float32", device="cpu"), rank=2, max_length=64, state=before.state
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer.train(data.train, data.evaluation, max_steps=3)
    torch.set_num_threads(threads)
    assert read_adapter_folder(place / "my-adapter.lora").state == trainer.state()


@pytest.mark.slow
def test_a_session_in_a_block_of_its_own_leaves_one_adapter_that_peft_loads(
    cli: Cli, place: Path, project: Path, rows: Any
) -> None:
    sources = [part for name in ("csv.py", "heapq.py") for part in ("--source", project / name)]
    options = ("--continue-from", "my-adapter.lora", "--progressive", "--orthogonal-lambda", 0.1)
    done = cli("train", *sources, *options, *QUICK, cwd=place, **KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my-adapter.lora after 1 session: a new block beside 1 frozen, 12 examples to replay" in done.stdout
    told = re.search(r"\n2 blocks, merged into one adapter of rank 2: ([\d.]+)% of", done.stdout)
    assert told is not None, done.stdout
    record = json.loads((place / ".neuralforge" / "my-adapter" / "continual" / "sessions.json").read_text())
    assert record["blocks"] == [2, 2]
    assert 100 * record["sessions"][1]["merged"] == pytest.approx(float(told[1]), abs=0.06)
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    loaded = PeftModel.from_pretrained(base.model, place / "my-adapter.lora")
    weights = {name.replace(".default.", "."): value for name, value in loaded.named_parameters() if ".lora_" in name}
    saved = read_adapter_folder(place / "my-adapter.lora").state
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], torch.tensor(saved[name])) for name in saved)
    report = rows(cli("forget-report", "my-adapter.lora", cwd=place, COLUMNS="160", **KEY).stdout)
    assert report["2"][4] == "+0.000"


@pytest.mark.slow
def test_the_keys_of_the_guide_are_used_by_a_continued_session(cli: Cli, place: Path, project: Path) -> None:
    (place / "c.yaml").write_text(
        "optimization:\n  continue_from: my-adapter.lora\n  ewc_lambda: 2.5\n  replay_buffer_size: 7\n"
    )
    done = cli("train", "--config", "c.yaml", "--source", project, *QUICK, cwd=place, **KEY)
    assert done.returncode == 0, done.stderr
    assert "EWC at 2.5" in done.stdout
    assert "read and not used" not in done.stdout
    shown = cli("replay", "show", "my-adapter.lora", cwd=place, **KEY).stdout
    assert "at most 7 kept" in shown
