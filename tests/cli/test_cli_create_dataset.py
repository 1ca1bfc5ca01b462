"""`create-dataset`: source files in, JSONL out, whole or not at all."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Rows = Callable[[str], dict[str, list[str]]]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_code_becomes_examples_in_the_guides_format(cli: Cli, rows: Rows, team_code: Path, tmp_path: Path) -> None:
    done = cli("create-dataset", "--source", team_code, "--pattern", "*.py", "--output", "d.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    examples = read(tmp_path / "d.jsonl")
    assert len(examples) > 50
    assert f"wrote {len(examples)} examples to d.jsonl\n" in done.stdout
    assert {example["language"] for example in examples} == {"python"}
    assert {example["path"] for example in examples} <= {path.name for path in team_code.iterdir()}
    whole = [(example["path"], example["context"] + example["completion"]) for example in examples]
    plain = [(path, text) for path, text in whole if "<REDACTED" not in text]
    assert len(plain) > 50
    assert [text for path, text in plain if text not in (team_code / path).read_text()] == []
    report = rows(done.stdout)
    assert report["files used"][0] == "7"
    assert report["to learn from"] == [str(len(examples)), f"python {len(examples)}"]


def test_only_files_of_the_pattern_are_read(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    cli("create-dataset", "--source", team_code, "--pattern", "c*.py", "--output", "d.jsonl", cwd=tmp_path)
    assert {example["path"] for example in read(tmp_path / "d.jsonl")} == {"configparser.py", "csv.py"}


def test_several_sources_are_read_together(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    for name in ("csv.py", "heapq.py"):
        (tmp_path / name.removesuffix(".py")).mkdir()
        shutil.copyfile(team_code / name, tmp_path / name.removesuffix(".py") / name)
    cli("create-dataset", "--source", "csv", "--source", "heapq", "--output", "d.jsonl", cwd=tmp_path)
    assert {example["repo"] for example in read(tmp_path / "d.jsonl")} == {"csv", "heapq"}


def test_languages_have_short_names_and_others_are_left_out(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(team_code / "csv.py", source / "csv.py")
    lines = [f"function f{n}(a, b) {{\n  const sum = a + b * {n};\n  return sum - {n * n};\n}}\n" for n in range(40)]
    (source / "app.js").write_text("\n".join(lines))
    cli("create-dataset", "--source", source, "--languages", "js", "--output", "d.jsonl", cwd=tmp_path)
    assert {example["language"] for example in read(tmp_path / "d.jsonl")} == {"javascript"}


def test_held_out_files_share_nothing_with_the_rest(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    options = ("--source", team_code, "--output", "train.jsonl", "--eval-output", "eval.jsonl")
    done = cli("create-dataset", *options, cwd=tmp_path)
    sides = [read(tmp_path / name) for name in ("train.jsonl", "eval.jsonl")]
    assert all(sides)
    paths = [{example["path"] for example in side} for side in sides]
    assert paths[0] & paths[1] == set()
    for name, side in zip(("train", "eval"), sides, strict=True):
        assert f"wrote {len(side)} examples to {name}.jsonl\n" in done.stdout


def test_the_same_seed_gives_the_same_bytes_and_another_draws_anew(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    drawn = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        options = ("--max-samples", 20, "--seed", seed, "--output", name)
        cli("create-dataset", "--source", team_code, *options, cwd=tmp_path)
        drawn.append((tmp_path / name).read_bytes())
    assert len(drawn[0].splitlines()) == 20
    assert drawn[0] == drawn[1] != drawn[2]


def test_secrets_do_not_leave_and_copies_count_once(cli: Cli, rows: Rows, team_code: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(team_code, source)
    shutil.copyfile(source / "csv.py", source / "csv_copy.py")
    key = "AKIA" + "Q3EGRZ7XW5JV2NLP"
    code = (source / "heapq.py").read_text()
    (source / "heapq.py").write_text(code.replace("def heappush(", f'KEY = "{key}"\n\n\ndef heappush(', 1))
    done = cli("create-dataset", "--source", source, "--output", "d.jsonl", cwd=tmp_path)
    assert key not in (tmp_path / "d.jsonl").read_text()
    assert 'KEY = "<REDACTED' in " ".join(example["context"] for example in read(tmp_path / "d.jsonl"))
    assert rows(done.stdout)["files left out"] == ["1", "same content as another file 1"]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("[red]odd[/red] :x: name", "*.py"), ("plain", "[a-z]*.py")],
)
def test_names_are_printed_as_they_are(cli: Cli, team_code: Path, tmp_path: Path, name: str, pattern: str) -> None:
    arguments = ("--source", team_code, "--pattern", pattern, "--output", f"{name}.jsonl")
    done = cli("create-dataset", *arguments, cwd=tmp_path)
    assert re.search(rf"^wrote \d+ examples to {re.escape(name)}\.jsonl$", done.stdout, re.MULTILINE)


def test_what_is_written_can_be_learnt_from(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    cli("create-dataset", "--source", team_code, "--output", "d.jsonl", cwd=tmp_path)
    count = len(read(tmp_path / "d.jsonl"))
    done = cli("train", "--dataset", "d.jsonl", "--eval-fraction", 0, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert f"\n{count} examples, 0 held out; " in done.stdout


def test_one_file_for_both_sides_is_a_usage_error(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    arguments = ("--source", team_code, "--output", "d.jsonl", "--eval-output", tmp_path / "d.jsonl")
    done = cli("create-dataset", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --eval-output is --output (d.jsonl): ")
    assert [*tmp_path.iterdir()] == []


def no_folder(place: Path) -> str:
    return "source: no such folder"


def empty_folder(place: Path) -> str:
    (place / "source").mkdir()
    return "no examples: there are no files there"


def nothing_supported(place: Path) -> str:
    (place / "source").mkdir()
    (place / "source" / "picture.bin").write_bytes(b"\0\1\2")
    (place / "source" / "table.xyz").write_text("1 2 3\n")
    return "no examples: 2 files found, none of use (passed over: 2 × no supported language; suffixes: .bin, .xyz)"


def a_loop(place: Path) -> str:
    (place / "source").symlink_to("source")
    return "source: cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize("make", [no_folder, empty_folder, nothing_supported, a_loop])
def test_a_source_without_anything_to_learn_is_refused_and_the_old_file_stands(
    refused: Refused, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    (tmp_path / "d.jsonl").write_text("old")
    message = make(tmp_path)
    assert refused("create-dataset", "--source", "source", "--output", "d.jsonl", cwd=tmp_path) == message
    assert (tmp_path / "d.jsonl").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"d.jsonl", "source"}


def test_an_unknown_language_is_refused(refused: Refused, team_code: Path, tmp_path: Path) -> None:
    arguments = ("--source", team_code, "--languages", "pythn", "--output", "d.jsonl")
    assert "pythn" in refused("create-dataset", *arguments, cwd=tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file/d.jsonl", "cannot write file/d.jsonl: a part of the path is a file, not a folder"),
        ("folder", "cannot write folder: a folder of this name is in the way"),
        ("/proc/d.jsonl", "cannot write /proc/d.jsonl: its folder vanished or takes no files"),
        ("x" * 300, f"cannot write {'x' * 300}: the name is too long"),
    ],
    ids=["below a file", "a folder", "no real disk", "too long"],
)
def test_a_place_that_takes_no_file_is_refused(
    refused: Refused, team_code: Path, tmp_path: Path, output: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert refused("create-dataset", "--source", team_code, "--output", output, cwd=tmp_path) == message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_disk_that_takes_no_more_leaves_the_old_file(program: Path, team_code: Path, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("old")
    command = f"ulimit -f 8; exec {program} create-dataset --source {team_code} --output d.jsonl"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot write d.jsonl: the file is larger than this place allows\n"
        "  hint: raise the limit (ulimit -f) or choose another place\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]
    assert (tmp_path / "d.jsonl").read_text() == "old"
