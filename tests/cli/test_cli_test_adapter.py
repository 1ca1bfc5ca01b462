"""`test-adapter`: an adapter judged sample by sample, and refused where it is not what it says."""

import json
import math
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


@pytest.fixture(scope="module")
def judged(cli: Cli, adapter: Path, examples: Path) -> dict[str, Any]:
    """What `--json` says about the held-out examples."""
    options = ("--test-file", examples / "eval.jsonl", "--max-length", 128, "--show", 1, "--json")
    done = cli("test-adapter", adapter, *options, cwd=examples)
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_json_has_a_row_for_every_sample_and_their_sum(judged: dict[str, Any], examples: Path) -> None:
    samples, summary = judged["samples"], judged["summary"]
    assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
    assert summary["samples"] == 4
    assert summary["origin"] == str(examples / "eval.jsonl")
    for who in ("base", "adapter"):
        tokens = [sample["tokens"] for sample in samples]
        losses = [math.log(sample[who]["perplexity"]) for sample in samples]
        mean = sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)
        assert summary[who]["perplexity"] == pytest.approx(math.exp(mean))
        assert 0 < summary[who]["accuracy"] < 1
    better = [sample["adapter"]["perplexity"] < sample["base"]["perplexity"] for sample in samples]
    assert summary["better"] == sum(better)


def test_json_has_as_many_completions_as_were_asked_for(judged: dict[str, Any], examples: Path) -> None:
    first = json.loads((examples / "eval.jsonl").read_text().splitlines()[0])
    (shown,) = judged["completions"]
    assert (shown["context"], shown["wanted"]) == (first["context"], first["completion"])
    assert isinstance(shown["base"], str)
    assert isinstance(shown["adapter"], str)


def test_what_was_written_is_compared_with_the_wanted_text(judged: dict[str, Any]) -> None:
    (shown,) = judged["completions"]
    written = judged["summary"]["written"]
    assert written["samples"] == 1
    for who in ("base", "adapter"):
        figures = shown["figures"][who]
        assert figures["exact_match"] == (shown[who].rstrip() == shown["wanted"].rstrip())
        assert written[who]["edit_similarity"]["value"] == pytest.approx(figures["edit_similarity"])
        assert written[who]["syntax"]["value"] == float(figures["syntax"])
        low, high = written[who]["exact_match"]["interval"]
        assert low < high  # one sample tells next to nothing
        low, high = judged["summary"][who]["interval"]["perplexity"]
        assert low < judged["summary"][who]["perplexity"] < high


@pytest.mark.slow
def test_more_samples_are_written_than_are_shown_where_so_asked(
    cli: Cli, rows: Rows, adapter: Path, examples: Path
) -> None:
    options = ("--test-file", "eval.jsonl", "--max-length", 96, "--show", 0, "--rows", 0, "--generate", 2)
    done = cli("test-adapter", adapter, *options, cwd=examples, COLUMNS="160")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 samples written, intervals at 95%\n")
    table = rows(done.stdout)
    for name in ("exact match", "first line match", "edit similarity", "syntax valid"):
        assert all(re.fullmatch(r"\d+\.\d% \[.+, .+\]", cell) for cell in table[name])
    assert "[context]" not in done.stdout


def test_without_json_a_person_sees_rows_completions_and_a_summary(
    cli: Cli, rows: Rows, adapter: Path, judged: dict[str, Any], examples: Path
) -> None:
    options = ("--test-file", "eval.jsonl", "--max-length", 128, "--show", 1)
    done = cli("test-adapter", adapter, *options, cwd=examples, COLUMNS="160")
    assert (done.returncode, done.stderr) == (0, "")
    table = rows(done.stdout)
    for sample in judged["samples"]:
        row = table[str(sample["index"])]
        assert row[:2] == ["python", str(sample["tokens"])]
        assert row[2:4] == [f"{sample[who]['perplexity']:.2f}" for who in ("base", "adapter")]
    summary = judged["summary"]
    assert table["perplexity"][:2] == [f"{summary[who]['perplexity']:.2f}" for who in ("base", "adapter")]
    assert f"{summary['better']} of 4 samples are better with the adapter\n" in done.stdout
    assert re.findall(r"^\[(\w+)\]$", done.stdout, re.MULTILINE) == ["context", "wanted", "base", "adapter"]


def test_without_a_file_it_is_judged_on_what_its_training_held_out(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    options = ("--limit", 2, "--max-length", 64, "--show", 0, "--json")
    done = cli("test-adapter", adapter, *options, cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert answer["summary"]["origin"] == "what its training held out"
    assert answer["summary"]["samples"] == 2
    assert answer["completions"] == []


def of_other_weights(place: Path, nf_tiny: Path, altered_base: Callable[..., Path]) -> None:
    altered_base(place, lambda weights: {name: 1.01 * weight for name, weight in weights.items()})


def of_another_size(place: Path, nf_tiny: Path, altered_base: Callable[..., Path]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig
    sizes = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaForCausalLM(config(**sizes, num_attention_heads=4, bos_token_id=0, eos_token_id=0)).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(nf_tiny / name, place / name)


@pytest.mark.parametrize("make", [of_other_weights, pytest.param(of_another_size, marks=pytest.mark.slow)])
def test_an_adapter_of_another_base_is_refused(
    refused: Refused,
    adapter: Path,
    altered_base: Callable[..., Path],
    nf_tiny: Path,
    tmp_path: Path,
    make: Callable[[Path, Path, Callable[..., Path]], None],
) -> None:
    make(tmp_path / "another", nf_tiny, altered_base)
    message = refused("test-adapter", adapter, "--base", "./another", "--limit", 1, cwd=tmp_path)
    assert re.fullmatch(
        r"this adapter was made for nf-tiny \(fingerprint \S+\), not for another \(fingerprint \S+\)", message
    )


def test_a_base_that_is_not_to_be_found_is_refused(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    message = refused("test-adapter", adapter, "--base", "./elsewhere", "--limit", 1, cwd=tmp_path)
    assert message == "./elsewhere: no such folder or file"


def test_a_flipped_byte_in_the_weights_is_noticed(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(adapter, tmp_path / "copied.lora"))
    for name in ("adapter_model.safetensors", "lora_weights.bin"):
        data = bytearray((copied / name).read_bytes())
        data[-5] ^= 0x10
        (copied / name).write_bytes(data)
    message = refused("test-adapter", copied, cwd=tmp_path)
    assert f"{copied}: " in message
    assert "was changed after the adapter was written: its SHA-256 is " in message


def test_what_is_no_adapter_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert refused("test-adapter", "no.lora", cwd=tmp_path) == "no.lora: cannot open the adapter: no such folder"


def test_a_test_file_that_cannot_be_read_is_named_with_its_line(
    refused: Refused, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('{"context": "a", "completion": "b"}\n{"context": "a"}\n')
    message = refused("test-adapter", adapter, "--test-file", "t.jsonl", cwd=tmp_path)
    assert message == "t.jsonl:2: missing key 'completion': got the keys 'context'"
