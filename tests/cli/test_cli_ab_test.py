"""`ab-test`: two adapters on the same samples, with a verdict."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.signed_adapters import write_small_adapter

from neuralforge_common.adapter import AdapterState
from neuralforge_common.folder import AdapterMetadata, read_adapter_folder, write_adapter_folder

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Rows = Callable[[str], dict[str, list[str]]]


@pytest.fixture(scope="module")
def held_out(adapter: Path) -> Path:
    """The samples that the adapter's training has held out."""
    return adapter.parent / ".neuralforge" / "team" / "held-out.jsonl"


@pytest.fixture(scope="module")
def worse(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter with noise on every number, ten times as strong as the numbers themselves."""
    folder = read_adapter_folder(adapter)
    generator = np.random.default_rng(0)
    noisy = {
        name: (matrix + generator.normal(scale=10 * matrix.std(), size=matrix.shape)).astype(np.float32)
        for name, matrix in folder.state.items()
    }
    path = tmp_path_factory.mktemp("worse") / "worse.lora"
    write_adapter_folder(path, spec=folder.spec, state=AdapterState(noisy), metadata=AdapterMetadata(name="worse"))
    return path


def compared(cli: Cli, a: Path, b: Path, data: Path, *options: object) -> tuple[dict[str, Any], str]:
    arguments = ("--adapter-a", a, "--adapter-b", b, "--test-data", data, "--max-length", 96, "--generate", 2)
    done = cli("ab-test", *arguments, *options, "--json", cwd=a.parent, timeout=240)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, done.stderr


def test_the_better_adapter_wins_on_either_side(cli: Cli, adapter: Path, worse: Path, held_out: Path) -> None:
    first, _ = compared(cli, adapter, worse, held_out, "--metrics", "perplexity", "--limit", 24)
    second, _ = compared(cli, worse, adapter, held_out, "--metrics", "perplexity", "--limit", 24)
    assert (first["verdict"], second["verdict"]) == ("A better (perplexity)", "B better (perplexity)")
    (forth,), (back,) = first["metrics"], second["metrics"]
    assert (forth["a"], forth["b"]) == (back["b"], back["a"])
    assert 1 + forth["change"] == pytest.approx(1 / (1 + back["change"]))
    low, high = forth["interval"]
    assert low < forth["change"] < high < 0
    assert forth["a"] / forth["b"] - 1 == pytest.approx(forth["change"])


@pytest.mark.slow
def test_an_adapter_is_not_better_than_itself(cli: Cli, rows: Rows, adapter: Path, held_out: Path) -> None:
    arguments = ("--adapter-a", adapter, "--adapter-b", adapter, "--test-data", held_out, "--max-length", 64)
    options = ("--metrics", "accuracy,perplexity,speed,memory,syntax,edit_similarity", "--limit", 3, "--generate", 1)
    done = cli("ab-test", *arguments, *options, cwd=adapter.parent, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "A and B hold the same weights\n"
    table = rows(done.stdout)
    assert {name: cells[-1] for name, cells in table.items() if name != "Metric"} == {
        **dict.fromkeys(("token accuracy", "exact match", "perplexity", "a token"), "inconclusive"),
        **dict.fromkeys(("edit similarity", "syntax valid"), "inconclusive"),
        "weights": "the same",
    }
    assert table["perplexity"][0] == table["perplexity"][1]
    assert done.stdout.splitlines()[-1].startswith("verdict: inconclusive: no difference was seen")


def test_what_cannot_be_decided_says_how_many_samples_are_missing(
    cli: Cli, adapter: Path, worse: Path, held_out: Path
) -> None:
    # Five samples or fewer decide nothing, however clear they are.
    answer, notice = compared(cli, adapter, worse, held_out, "--metrics", "accuracy,perplexity,memory", "--limit", 5)
    assert notice == ""
    by_name = {row["metric"]: row for row in answer["metrics"]}
    assert list(by_name) == ["accuracy", "perplexity", "exact_match", "memory"]
    assert by_name["perplexity"]["verdict"] == "inconclusive"
    assert by_name["perplexity"]["more"] >= 1
    assert by_name["memory"]["p"] is None
    assert by_name["exact_match"]["samples"] == 2
    assert re.match(r"inconclusive, about [\d,]+ more samples needed", answer["verdict"])


def test_adapters_of_two_bases_are_refused(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    write_small_adapter(tmp_path / "other.lora")
    (tmp_path / "t.jsonl").write_text('{"context": "a", "completion": "b"}\n')
    arguments = ("--adapter-a", adapter, "--adapter-b", "other.lora", "--test-data", "t.jsonl")
    message = refused("ab-test", *arguments, cwd=tmp_path, timeout=10)
    assert message == f"the adapters were made for two bases: {adapter} for nf-tiny, other.lora for acme/tiny"


def test_bad_input_is_told_before_a_base_is_loaded(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    same = ("--adapter-a", adapter, "--adapter-b", adapter)
    message = refused("ab-test", *same, "--test-data", "empty.jsonl", cwd=tmp_path, timeout=10)
    assert message == "empty.jsonl: no examples: got an empty file, wanted at least one line"
    wrong = ("--adapter-a", adapter, "--adapter-b", "no.lora", "--test-data", "empty.jsonl")
    message = refused("ab-test", *wrong, cwd=tmp_path, timeout=10)
    assert message == "no.lora: cannot open the adapter: no such folder"


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--metrics", "accuracy,sped", "wanted any of accuracy,perplexity,exact_match,edit_similarity,syntax,"),
        ("--alpha", "1.5", "wanted a number between 0 and 1, got '1.5'"),
        ("--generate", "0", "wanted a whole number ≥ 1, got '0'"),
    ],
)
def test_what_an_option_does_not_take_is_a_usage_error(
    cli: Cli, tmp_path: Path, option: str, value: str, wanted: str
) -> None:
    arguments = ("--adapter-a", "a", "--adapter-b", "b", "--test-data", "c", option, value)
    done = cli("ab-test", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert wanted in done.stderr
