"""`benchmark`: the guide's table, base against adapter."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Rows = Callable[[str], dict[str, list[str]]]


def test_the_guides_four_figures_stand_in_a_table(cli: Cli, rows: Rows, adapter: Path, tmp_path: Path) -> None:
    options = ("--adapter", adapter, "--limit", 3, "--max-length", 64)
    done = cli("benchmark", *options, cwd=tmp_path, COLUMNS="160")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 samples: what its training held out\n")
    table = rows(done.stdout)
    assert table["Metric"] == ["Baseline", "Target", "Your Adapter"]
    interval = r" \[([\d.]+|\?), ([\d.]+|\?)\]"
    units = {
        "accuracy (a token)": (rf"\d+\.\d%{interval}", "80%"),
        "latency (a token)": (rf"\d+\.\d ms{interval}", "45 ms"),
        "memory (weights)": (r"\d+\.\d MB", "80 MB"),
        "perplexity (a token)": (rf"\d+\.\d\d{interval}", "12.0"),
    }
    for metric, (pattern, target) in units.items():
        base, guides, adapted = table[metric]
        assert re.fullmatch(pattern, base)
        assert re.fullmatch(pattern, adapted)
        assert guides == target
    for who in ("base", "adapter"):
        for of in ("completion", "first token", "token"):
            assert re.search(rf"^latency, {who}, {of}: p50 .* ms .*, p95 .*, p99 ", done.stdout, re.MULTILINE)
    peak = r"^memory at its peak, whole process: base \d+\.\d MB \[\d+\.\d, \d+\.\d\], adapter "
    assert re.search(peak, done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_every_figure_has_its_interval_and_what_is_written_is_compared(
    cli: Cli, adapter: Path, examples: Path, tmp_path: Path
) -> None:
    lines = (examples / "eval.jsonl").read_text().splitlines(keepends=True)[:2]
    (tmp_path / "t.jsonl").write_text("".join([*lines, '{"context": "a", "completion": "b", "language": "haskell"}\n']))
    names = ["accuracy", "perplexity", "latency", "exact_match", "edit_similarity", "syntax"]
    options = ("--test-file", "t.jsonl", "--metrics", ",".join(names), "--max-length", 96, "--json")
    done = cli("benchmark", "--adapter", adapter, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert [*answer] == ["samples", "origin", *names]
    for name in names:
        for who in ("base", "adapter"):
            low, high = answer[name]["interval"][who]
            assert low is None or low <= answer[name][who] + 1e-9
            assert high is None or high >= answer[name][who] - 1e-9
    assert answer["syntax"]["without_grammar"] == {"haskell": 1}
    quantiles = answer["latency"]["quantiles"]["adapter"]
    assert quantiles["first_token"]["p50"]["ms"] < quantiles["completion"]["p50"]["ms"]
    assert answer["latency"]["adapter"] == pytest.approx(quantiles["completion"]["p50"]["ms"] / 16, rel=0.01)


def test_json_has_the_metrics_that_were_asked_for_in_that_order(
    cli: Cli, adapter: Path, examples: Path, nf_tiny: Path
) -> None:
    options = ("--test-file", "eval.jsonl", "--metrics", "memory,perplexity", "--max-length", 64, "--json")
    done = cli("benchmark", "--adapter", adapter, *options, cwd=examples)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert [*answer] == ["samples", "origin", "memory", "perplexity"]
    assert (answer["samples"], answer["origin"]) == (4, "eval.jsonl")
    weights = (nf_tiny / "model.safetensors").stat().st_size / 1e6
    assert answer["memory"]["base"] == pytest.approx(weights, rel=0.01) or (
        # float32 where the processor has no bfloat16
        answer["memory"]["base"] == pytest.approx(2 * weights, rel=0.01)
    )
    assert answer["memory"]["adapter"] - answer["memory"]["base"] == pytest.approx(81_408 * 4 / 1e6)
    for who in ("base", "adapter"):
        peak = answer["memory"]["peak"][who]["process"]
        low, high = peak["interval"]
        assert weights < low <= peak["mb"] <= high
    assert 1 < answer["perplexity"]["adapter"] != answer["perplexity"]["base"] > 1


@pytest.mark.slow
def test_an_adapter_that_plain_peft_saved_is_measured_with_a_word_of_caution(
    cli: Cli, adapter: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, plain / name)
    # Nothing was held out beside it: Python's own library is what it is measured on.
    options = ("--metrics", "accuracy", "--limit", 1, "--max-length", 48, "--json")
    done = cli("benchmark", "--adapter", "plain", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        "plain has no metadata.json, as plain PEFT saves it: whether it fits nf-tiny cannot be checked\n"
    )
    assert json.loads(done.stdout)["origin"].startswith("Python's standard library")


def test_bad_input_is_told_before_a_base_is_loaded(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "no.lora").mkdir()
    message = refused("benchmark", "--adapter", "no.lora", cwd=tmp_path, timeout=3)
    assert message == "no.lora: not an adapter folder: adapter_config.json is missing"
    message = refused("benchmark", "--adapter", adapter, "--test-file", "empty.jsonl", cwd=tmp_path, timeout=3)
    assert message == "empty.jsonl: no examples: got an empty file, wanted at least one line"
