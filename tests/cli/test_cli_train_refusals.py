"""`train` on bad input: one clear line, exit 1, nothing half-written and nothing lost."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]

QUICK = ("--base", "nf-tiny", "--max-length", 96, "--batch-size", 2, "--rank", 2, "--max-steps", 2)
GOOD = b'{"context": "a = ", "completion": "1", "language": "python"}\n'

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "truncated": (
        GOOD + GOOD[:30],
        "d.jsonl:2: not valid JSON: Unterminated string starting at at column 21; "
        "the file ends inside this line, so it may have been cut short",
    ),
    "empty": (b"", "d.jsonl: no examples: got an empty file, wanted at least one line"),
    "blank": (b"\n \n", "d.jsonl: no examples: got blank lines only, wanted at least one line"),
    "not UTF-8": (GOOD + b'{"context": "caf\xe9"}\n', "d.jsonl:2: not UTF-8 text: got the byte 0xe9 at byte 17"),
    "UTF-16": ('{"context": "a"}'.encode("utf-16"), "d.jsonl:1: not UTF-8 text: got the byte 0xff at byte 1"),
    "huge line": (
        b'{"context": "' + b"x" * (1 << 20) + b'", "completion": "1"}\n',
        "d.jsonl:1: the line is too long: got over 1,048,576 bytes, wanted fewer",
    ),
    "wrong key": (
        b'{"context": "a", "completions": "1"}\n',
        "d.jsonl:1: missing key 'completion': got the keys 'context', 'completions'; "
        "is 'completions' meant to be 'completion'?",
    ),
    "wrong type": (
        b'{"context": "a", "completion": 3}\n',
        "d.jsonl:1: 'completion' has the wrong type: got a number, wanted text",
    ),
    "a list": (b"[1, 2]\n", "d.jsonl:1: got a list, wanted an object"),
    "nothing to learn": (
        b'{"context": "a", "completion": " "}\n',
        "d.jsonl:1: 'completion' is empty: got ' ', wanted the text to learn",
    ),
    "deep": (
        b'{"context": ' + b"[" * 200_000 + b"\n",
        "d.jsonl:1: not JSON that can be read: got deeply nested brackets",
    ),
}


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_dataset_is_refused_by_file_and_line(refused: Refused, tmp_path: Path, name: str) -> None:
    content, message = BAD_LINES[name]
    (tmp_path / "d.jsonl").write_bytes(content)
    assert refused("train", "--dataset", "d.jsonl", *QUICK, "--output", "out", cwd=tmp_path) == message
    assert names_below(tmp_path) == ["d.jsonl", "out"]


@pytest.mark.parametrize("name", ["truncated", "wrong key"])
def test_a_bad_held_out_file_is_refused_by_file_and_line(refused: Refused, tmp_path: Path, name: str) -> None:
    content, message = BAD_LINES[name]
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    (tmp_path / "d.jsonl").write_bytes(content)
    arguments = ("--dataset", "train.jsonl", "--eval-dataset", "d.jsonl", *QUICK)
    assert refused("train", *arguments, cwd=tmp_path) == message


def no_commit(folder: Path, git: Callable[..., None]) -> str:
    git("init", "--quiet", cwd=folder)
    return "code: the repository has no commit yet"


def nothing_supported(folder: Path, git: Callable[..., None]) -> str:
    (folder / "table.xyz").write_text("1 2 3\n")
    git("init", "--quiet", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "--quiet", "--message", "m", cwd=folder)
    return "no examples: 1 files found, none of use (passed over: 1 × no supported language; suffixes: .xyz)"


def only_an_empty_commit(folder: Path, git: Callable[..., None]) -> str:
    git("init", "--quiet", cwd=folder)
    git("commit", "--quiet", "--allow-empty", "--message", "m", cwd=folder)
    return "no examples: there are no files there"


def no_repository(folder: Path, git: Callable[..., None]) -> str:
    return "code: not a git repository"


def a_damaged_one(folder: Path, git: Callable[..., None]) -> str:
    (folder / "a.py").write_text("def f(x):\n    return x + 1\n" * 20)
    git("init", "--quiet", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "--quiet", "--message", "m", cwd=folder)
    for path in (folder / ".git" / "objects").glob("??/*"):
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    return "code: "


@pytest.mark.parametrize("make", [no_commit, nothing_supported, only_an_empty_commit, no_repository, a_damaged_one])
def test_a_repository_that_teaches_nothing_is_refused(
    refused: Refused,
    make_git: Callable[..., None],
    tmp_path: Path,
    make: Callable[[Path, Callable[..., None]], str],
) -> None:
    (tmp_path / "code").mkdir()
    expected = make(tmp_path / "code", make_git)
    # Only this folder is asked for a repository, not the ones above it.
    environment = {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    message = refused("train", "--from-git", "code", *QUICK, "--output", "out", cwd=tmp_path, **environment)
    assert message.startswith(expected)
    assert names_below(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "file"), "cannot write file: a part of the path is a file, not a folder"),
        (("--output", "file/below"), "cannot write file/below: a part of the path is a file, not a folder"),
        (("--output", "/proc/out"), "cannot write /proc/out: its folder vanished or takes no files"),
        (("--checkpoint-dir", "file/kept"), "cannot write file/kept: a part of the path is a file, not a folder"),
        (("--tensorboard", "file/logs"), "cannot write file/logs: a part of the path is a file, not a folder"),
        (("--name", "taken"), "cannot write the adapter to taken.lora: a file of this name is in the way"),
        (
            ("--name", "mine"),
            "cannot write the adapter to mine.lora: a folder that is not just an adapter is there "
            "(it holds 'thesis.txt')",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_output_that_cannot_be_written_is_refused_before_the_training(
    refused: Refused, examples: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken.lora").touch()
    (tmp_path / "mine.lora").mkdir()
    (tmp_path / "mine.lora" / "thesis.txt").write_text("years of work")
    before = names_below(tmp_path)
    arguments = ("--dataset", examples / "train.jsonl", *QUICK, *options)
    assert refused("train", *arguments, cwd=tmp_path, timeout=10) == message
    assert names_below(tmp_path) == before


@pytest.mark.slow
def test_a_disk_that_takes_no_more_leaves_the_older_adapter_whole(
    program: Path, adapter: Path, examples: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "my-adapter.lora")
    before = {path.name: path.read_bytes() for path in (tmp_path / "my-adapter.lora").iterdir()}
    arguments = " ".join(str(word) for word in QUICK)
    command = f"ulimit -f 100; OMP_NUM_THREADS=1 exec {program} train --dataset {examples / 'train.jsonl'} {arguments}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot write .neuralforge/my-adapter/checkpoint-00000002.safetensors: "
        "the file is larger than this place allows\n"
        "  hint: raise the limit (ulimit -f) or choose another place\n"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "my-adapter.lora").iterdir()} == before
    assert names_below(tmp_path / ".neuralforge") == ["my-adapter", "my-adapter/metrics.jsonl"]


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        ("0.1", "the base gives a loss of nan on the held-out examples before anything was learnt"),
        ("0", "the loss of step 1 is not a finite number (loss nan"),
    ],
)
def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_older_adapter(
    refused: Refused,
    adapter: Path,
    altered_base: Callable[..., Path],
    examples: Path,
    tmp_path: Path,
    held_out: str,
    told: str,
) -> None:
    def broken(weights: dict[str, Any]) -> dict[str, Any]:
        weights["model.layers.3.mlp.down_proj.weight"][0, 0] = float("inf")
        return weights

    base = altered_base(tmp_path / "broken", broken)
    shutil.copytree(adapter, tmp_path / "my-adapter.lora")
    before = {path.name: path.read_bytes() for path in (tmp_path / "my-adapter.lora").iterdir()}
    message = refused(
        "train",
        "--dataset",
        examples / "train.jsonl",
        *QUICK,
        "--base",
        base,
        "--eval-fraction",
        held_out,
        cwd=tmp_path,
    )
    assert message.startswith(told)
    assert {path.name: path.read_bytes() for path in (tmp_path / "my-adapter.lora").iterdir()} == before
    assert names_below(tmp_path / ".neuralforge") == ["my-adapter", "my-adapter/metrics.jsonl"]


def test_an_unknown_base_is_answered_with_the_nearest_one(cli: Cli, examples: Path, tmp_path: Path) -> None:
    done = cli("train", "--dataset", examples / "train.jsonl", *QUICK, "--base", "nf-tinny", cwd=tmp_path)
    assert done.returncode == 1
    line, hint = done.stderr.splitlines()
    assert line == "error: no base model is called 'nf-tinny'"
    assert hint.startswith("  hint: did you mean nf-tiny")
    assert names_below(tmp_path) == []


@pytest.mark.slow
def test_the_checkpoints_of_another_run_are_refused_and_kept(
    cli: Cli, refused: Refused, examples: Path, tmp_path: Path
) -> None:
    arguments = ("train", "--dataset", examples / "train.jsonl", *QUICK, "--resume", "auto")
    assert cli(*arguments, cwd=tmp_path).returncode == 0
    kept = tmp_path / ".neuralforge" / "my-adapter"
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert "checkpoint-00000002.safetensors" in before
    message = refused(*arguments, "--learning-rate", "1e-4", cwd=tmp_path)
    assert message == (
        "the checkpoints in .neuralforge/my-adapter belong to another run: "
        "data, configuration, base or thread count differ"
    )
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target-modules", "q_proj,nothing"), ("no linear layer called 'nothing'",)),
        (("--revision", "main"), ("nf-tiny is part of this installation", "'main'")),
        (("--device", "cuda:7"), ("cuda:7 was asked for",)),
        (("--base", "."), ("no config.json, so this is not a model's folder",)),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_the_base_cannot_give_is_one_line(
    refused: Refused, examples: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = refused("train", "--dataset", examples / "train.jsonl", *QUICK, *options, cwd=tmp_path)
    assert all(word in message for word in words)
    assert names_below(tmp_path) == []
