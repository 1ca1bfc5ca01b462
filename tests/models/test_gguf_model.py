"""A GGUF file as a base: the same model as the folder that it was made from, converted once."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from neuralforge.models.base import BaseModel
from neuralforge.models.embedded import cache_folder, convert_file
from neuralforge.models.fingerprint import fingerprint
from neuralforge.models.load import load_base_model
from neuralforge_common.errors import ModelError, StorageError

Kind = gguf.GGMLQuantizationType
Write = Callable[..., Path]
Make = Callable[..., PreTrainedModel]

pytestmark = pytest.mark.usefixtures("cache")

CODE = "def f(x10):\n    return x10 + 2\n"


def load(path: Path, **more: Any) -> BaseModel:
    return load_base_model(path, device="cpu", **more)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 41).reshape(2, 20)).logits
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_file_gives_the_model_that_its_folder_gives(
    family: str, tied: bool, gguf_model: Make, write_gguf: Write, tmp_path: Path, saved: Callable[[str], Path]
) -> None:
    model = gguf_model(family, tied=tied)
    model.save_pretrained(tmp_path / "folder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(saved("llama") / name, tmp_path / "folder")
    from_file = load(write_gguf(tmp_path / "my-base.gguf", model), dtype="float32")
    from_folder = load(tmp_path / "folder", dtype="float32")
    assert torch.equal(logits(from_file.model), logits(model))
    assert torch.equal(logits(from_file.model), logits(from_folder.model))
    assert from_file.fingerprint == from_folder.fingerprint
    assert (from_file.family, from_file.name, from_file.license) == (family, "my-base", "apache-2.0")
    assert from_file.source == str(tmp_path / "my-base.gguf")
    assert from_file.model.config._name_or_path == from_file.source
    assert str(from_file.revision).startswith("sha256:")


def test_biases_of_queries_and_keys_are_put_back_like_their_rows(
    gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    model = gguf_model("llama", attention_bias=True)
    assert model.model.layers[0].self_attn.q_proj.bias.abs().max() > 0.1
    assert torch.equal(logits(load(write_gguf(tmp_path / "b.gguf", model), dtype="float32").model), logits(model))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantised_weights_are_those_of_the_package(
    kind: gguf.GGMLQuantizationType, gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    model = gguf_model("qwen2")
    path = write_gguf(
        tmp_path / "q.gguf",
        model,
        kinds=lambda name: kind if name.endswith("weight") and "norm" not in name else Kind.F32,
    )
    found = load(path, dtype="float32").model.model.layers[1].mlp
    plain = model.model.layers[1].mlp
    for part in ("up_proj", "down_proj"):
        values = getattr(plain, part).weight.detach().numpy()
        wanted = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).reshape(values.shape)
        assert torch.equal(getattr(found, part).weight, torch.from_numpy(np.array(wanted)).bfloat16().float())


def test_the_configuration_says_what_the_file_says(gguf_model: Make, write_gguf: Write, tmp_path: Path) -> None:
    config = load(write_gguf(tmp_path / "b.gguf", gguf_model("llama"))).model.config
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert config.rms_norm_eps == 1e-5  # the file holds 9.999999747378752e-06
    assert (config.num_key_value_heads, config.max_position_embeddings, config.eos_token_id) == (2, 256, 0)


def test_the_tokenizer_merges_and_splits_as_the_file_says(gguf_model: Make, write_gguf: Write, tmp_path: Path) -> None:
    tokenizer = load(write_gguf(tmp_path / "b.gguf", gguf_model("llama"))).tokenizer
    assert tokenizer.tokenize(CODE) == [
        *("def", "Ġ", "f", "(", "x", "1", "0", ")", ":", "Ċ", "ĠĠ", "Ġ"),
        *("Ġ", "return", "Ġ", "x", "1", "0", "Ġ", "+", "Ġ", "2", "Ċ"),
    ]
    assert tokenizer.decode(tokenizer(CODE).input_ids) == CODE
    assert "10" not in tokenizer.tokenize("x = 10"), "digits stand alone"
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer("<|endoftext|>").input_ids == [0]


def test_another_split_of_digits_merges_them(gguf_model: Make, write_gguf: Write, tmp_path: Path) -> None:
    tokenizer = load(write_gguf(tmp_path / "b.gguf", gguf_model("llama"), split="gpt-2")).tokenizer
    assert "10" in tokenizer.tokenize("x = 10")


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("gpt-2", "x10 12", ["x", "10", "Ġ12"]),
        ("smollm", "x10 12", ["x", "1", "0", "Ġ", "1", "2"]),
        ("qwen2", "x10 12", ["x", "1", "0", "Ġ", "1", "2"]),
        ("llama-bpe", "x1234 12", ["x", "123", "4", "Ġ", "12"]),
        ("qwen2", "don't  (go)\n\n  x", ["don", "'t", "Ġ", "Ġ(", "go", ")ĊĊ", "Ġ", "Ġx"]),
    ],
)
def test_each_split_is_llama_cpps(
    split: str, text: str, pieces: list[str], gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    backend = load(write_gguf(tmp_path / "b.gguf", gguf_model("llama"), split=split)).tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


# --- converted once ---


def test_a_file_is_converted_once_and_the_second_load_is_the_same(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    first = load(path)
    assert [notice.partition(";")[0] for notice in first.notices] == ["converted b.gguf once"]
    (made,) = (cache / "bases").iterdir()
    times = {file.name: file.stat().st_mtime_ns for file in made.iterdir()}
    second = load(path)
    assert second.notices == ()
    assert (second.fingerprint, second.revision, second.license) == (first.fingerprint, first.revision, first.license)
    assert {file.name: file.stat().st_mtime_ns for file in made.iterdir()} == times
    assert [entry.name for entry in (cache / "bases").iterdir()] == [made.name]


def test_other_bytes_under_the_same_name_are_another_base(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    first = load(write_gguf(tmp_path / "b.gguf", gguf_model("llama")))
    second = load(write_gguf(tmp_path / "b.gguf", gguf_model("llama", tied=False)))
    assert first.fingerprint != second.fingerprint
    assert first.revision != second.revision
    assert len(list((cache / "bases").iterdir())) == 2


def test_the_same_bytes_in_another_place_are_not_converted_again(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    load(path)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "b.gguf")
    assert load(moved).notices == ()
    assert load(moved).source == str(moved)


def test_the_cache_lies_where_nf_cache_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("NF_CACHE")
    assert cache_folder().name == "neuralforge"


def test_a_refused_file_leaves_nothing_in_the_cache(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"), leave_out=("blk.1.ffn_up.weight",))
    with pytest.raises(ModelError):
        load(path)
    assert not list((cache / "bases").glob("*"))


def test_no_file_in_the_cache_names_this_machine(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    load(write_gguf(tmp_path / "b.gguf", gguf_model("llama")))
    for file in (cache / "bases").rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_a_cache_that_cannot_be_written_is_said_to_be_so(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("NF_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot write"):
        load(write_gguf(tmp_path / "b.gguf", gguf_model("llama")))


@pytest.mark.slow
def test_a_conversion_killed_halfway_is_done_anew(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    code = (
        "import os, sys, neuralforge.models.gguf_model as module\n"
        "from neuralforge.models.embedded import convert_file\nfrom pathlib import Path\n"
        "module._tokenizer = lambda file: os._exit(9)\nconvert_file(Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert [entry.suffix for entry in (cache / "bases").iterdir()] == [".new"]
    assert load(path).fingerprint == fingerprint(gguf_model("llama"))
    assert len(list((cache / "bases").iterdir())) == 1, "what the dead process left is cleared away"


# --- what is refused ---


def test_converting_prints_nothing(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    capfd.readouterr()
    load(path)
    assert capfd.readouterr() == ("", "")


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "another family": ({"general.architecture": "mamba"}, "holds a 'mamba' model"),
    "a tokenizer of another kind": ({"tokenizer.ggml.model": "llama"}, "its tokenizer .* is not read"),
    "a split of another model": ({"tokenizer.ggml.pre": "dbrx"}, "its tokenizer .* is not read"),
    "no split": ({"tokenizer.ggml.pre": None}, "its tokenizer .* is not read"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "not a list of strings"),
    "no merges": ({"tokenizer.ggml.merges": None}, "not a list of strings"),
    "a merge of unknown tokens": ({"tokenizer.ggml.merges": ["Ω Ω"]}, "damaged GGUF"),
    "a token twice": ({"tokenizer.ggml.tokens": ["a", "a", "b"]}, "3 tokens, 2 different"),
    "more tokens than rows": ({"tokenizer.ggml.tokens": [f"t{n}" for n in range(300)]}, "300 tokens"),
    "scaled rotary embeddings": ({"llama.rope.scaling.type": "yarn"}, "scaled rotary"),
    "experts": ({"llama.expert_count": 8}, "experts"),
    "partial rotary embeddings": ({"llama.rope.dimension_count": 8}, "partial rotary"),
    "no layers": ({"llama.block_count": 0}, "llama.block_count is 0"),
    "layers without number": ({"llama.block_count": 16_000_000}, "16000000 blocks in"),
    "an absurd width": ({"llama.embedding_length": 2**31}, "embedding_length is 2147483648"),
    "another width": ({"llama.embedding_length": 128}, "the configuration wants"),
    "heads that do not divide the width": ({"llama.attention.head_count": 7}, "b.gguf"),
    "more key heads than heads": ({"llama.attention.head_count_kv": 3}, "b.gguf"),
    "heads of an odd size": (
        {"llama.attention.head_count": 64, "llama.attention.head_count_kv": 32},
        "heads of 1 values",
    ),
    "a layer too many": ({"llama.block_count": 3}, "missing"),
    "a layer too few": ({"llama.block_count": 1}, "blk.1"),
    "a width that is text": ({"llama.embedding_length": "64"}, "embedding_length is '64'"),
    "no width": ({"llama.feed_forward_length": None}, "feed_forward_length is None"),
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_a_file_that_we_would_get_wrong_is_refused(
    fault: str, gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    metadata, message = WRONG[fault]
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"), metadata=metadata)
    start = time.monotonic()
    with pytest.raises(ModelError, match=message):
        load(path)
    assert time.monotonic() - start < 5


def test_a_tensor_that_has_no_place_or_is_missing_is_refused(
    gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    model, path = gguf_model("llama"), tmp_path / "b.gguf"
    for add in ({"rope_freqs.weight": np.ones(8, np.float32)}, {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}):
        with pytest.raises(ModelError, match="has no place in a llama model"):
            load(write_gguf(path, model, add=add))
    for name in ("token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight"):
        with pytest.raises(ModelError, match=r"missing|damaged|shape"):
            load(write_gguf(path, model, leave_out=(name,)))


def is_refused(path: Path) -> bool:
    """Whether it was refused; nothing but ModelError may come."""
    try:
        load(path)
    except ModelError as error:
        assert "\n" not in error.message  # noqa: PT017
        return True
    return False


def test_a_file_cut_anywhere_is_refused(gguf_model: Make, write_gguf: Write, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    whole = path.read_bytes()
    generator = random.Random(2)
    for length in [0, 1, 4, 23, 24, 100, len(whole) // 2, *(generator.randrange(len(whole) - 64) for _ in range(20))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            load(path)


def test_a_flipped_bit_in_the_header_is_refused_or_changes_no_shape(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    whole = path.read_bytes()
    header = whole.index(b"output_norm.weight")
    generator = random.Random(6)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(header)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        refused += is_refused(path)
        shutil.rmtree(cache, ignore_errors=True)
    assert refused > 15


@pytest.mark.slow
def test_a_thousand_flipped_bits_never_crash_or_hang(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("qwen2"))
    whole = path.read_bytes()
    header = whole.index(b"output_norm.weight") + 1000
    generator = random.Random(7)
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 1, 1, 2, 5])):
            damaged[generator.randrange(header)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        start = time.monotonic()
        is_refused(path)
        assert time.monotonic() - start < 10
        shutil.rmtree(cache, ignore_errors=True)


def test_a_converted_folder_that_is_damaged_is_refused(
    gguf_model: Make, write_gguf: Write, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "b.gguf", gguf_model("llama"))
    folder = convert_file(path).folder
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(path)


def test_the_converted_folder_is_one_that_transformers_loads_too(
    gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    folder = convert_file(write_gguf(tmp_path / "b.gguf", gguf_model("llama"))).folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert load(folder).fingerprint == fingerprint(gguf_model("llama"))
