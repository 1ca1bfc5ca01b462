"""Tiny bases on disk: folders as `save_pretrained` writes them, and GGUF files as llama.cpp's converter writes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model

# Byte-level letters: Ġ is the space, Ċ the newline, printable ASCII stands for itself. As many as tiny.VOCABULARY.
LETTERS = ("<|endoftext|>", "Ġ", "Ċ", *map(chr, range(33, 127)))
WORDS = ("re", "tu", "rn", "retu", "return", "ĠĠ", "de", "def", "10")
MERGES = (("r", "e"), ("t", "u"), ("r", "n"), ("re", "tu"), ("retu", "rn"), ("Ġ", "Ġ"), ("d", "e"), ("de", "f"))

GgufWriting = Callable[..., Path]


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, digits apart: what SmolLM2 and StarCoder2 do."""
    backend = Tokenizer(BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's GGUF files are converted to; nothing lies there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NF_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family; read it, do not change it."""
    place = tmp_path_factory.mktemp("saved")

    def folder_of(family: str) -> Path:
        folder = place / family
        if not folder.exists():
            tiny_model(family).save_pretrained(folder)
            digit_tokenizer().save_pretrained(folder)
        return folder

    return folder_of


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama's folder to tamper with."""
    return Path(shutil.copytree(saved("llama"), tmp_path / "tiny-llama"))


@pytest.fixture(scope="session")
def gguf_model() -> Callable[..., PreTrainedModel]:
    """A tiny model of a family that GGUF files hold; its values are bfloat16's, so that nothing is lost on the way."""

    def make(family: str, *, tied: bool = True, attention_bias: bool = False) -> PreTrainedModel:
        fields: dict[str, Any] = {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": tied,
            "bos_token_id": None,
            "eos_token_id": 0,
        }
        torch.manual_seed(5)
        if family == "llama":
            model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**fields, attention_bias=attention_bias))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.15)
                parameter.copy_(parameter.to(torch.bfloat16))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def write_gguf() -> GgufWriting:
    """Write a model into a GGUF file with the `gguf` package; `metadata`, `kinds`, `leave_out` and `add` tamper."""

    def write(
        path: Path,
        model: PreTrainedModel,
        *,
        kinds: Callable[[str], gguf.GGMLQuantizationType] = lambda name: gguf.GGMLQuantizationType.F32,
        metadata: Mapping[str, object] | None = None,
        leave_out: tuple[str, ...] = (),
        add: Mapping[str, np.ndarray] | None = None,
        split: str = "smollm",
    ) -> Path:
        config = model.config
        family = config.model_type
        words = [*LETTERS, *WORDS]
        facts: dict[str, object] = {
            "general.license": "apache-2.0",
            f"{family}.block_count": config.num_hidden_layers,
            f"{family}.context_length": config.max_position_embeddings,
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.feed_forward_length": config.intermediate_size,
            f"{family}.attention.head_count": config.num_attention_heads,
            f"{family}.attention.head_count_kv": config.num_key_value_heads,
            f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            f"{family}.rope.freq_base": config.rope_parameters["rope_theta"],
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": split,
            "tokenizer.ggml.tokens": words,
            "tokenizer.ggml.token_type": [3, *(1 for _ in words[1:])],
            "tokenizer.ggml.merges": [*(" ".join(pair) for pair in MERGES), "1 0"],
            "tokenizer.ggml.eos_token_id": 0,
            **(metadata or {}),
        }
        architecture = facts.pop("general.architecture", family)
        writer = gguf.GGUFWriter(path, str(architecture))
        for key, value in facts.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_array(key, value)
        tensors = {name: values for name, values in gguf_tensors(model).items() if name not in leave_out}
        for name, values in {**tensors, **(add or {})}.items():
            kind = kinds(name)
            if kind == gguf.GGMLQuantizationType.F32:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def gguf_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """llama.cpp's names and row order, as its convert_hf_to_gguf.py makes them."""
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.LLAMA if model.config.model_type == "llama" else gguf.MODEL_ARCH.QWEN2,
        model.config.num_hidden_layers,
    )
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if model.config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            config = model.config
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        tensors[new] = np.ascontiguousarray(values)
    return tensors


@pytest.fixture(scope="session")
def smollm2_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that `smollm2` is converted into."""
    return tmp_path_factory.mktemp("smollm2") / "cache"


@pytest.fixture(scope="session")
def smollm2(smollm2_cache: Path) -> BaseModel:
    """The embedded base, converted for this session (a second or two) and loaded once. Read it, do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NF_CACHE", str(smollm2_cache))
        return load_base_model("smollm2-135m", device="cpu")
