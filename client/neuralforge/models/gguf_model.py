"""A GGUF file of the Llama or Qwen2 family, turned into the folder that transformers loads.

llama.cpp interleaves the rows of Llama's query and key matrices for its rotary embedding; they are put back here. The
tokenizer is rebuilt from the file with the pre-tokenizer that the file names: transformers' own reader ignores that
name and splits digits wrongly for SmolLM2.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from neuralforge.models.gguf import GgufFile
from neuralforge_common.errors import ModelError

_FAMILIES: Mapping[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}

# These are not typed where we call them.
_auto_model: Any = AutoModelForCausalLM
_generation_config: Any = GenerationConfig
_fast_tokenizer: Any = PreTrainedTokenizerFast

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# The regular expressions of llama.cpp's llama-vocab.cpp, by the name in tokenizer.ggml.pre.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTROL, _USER_DEFINED = 3, 4

_LARGEST = 1 << 24


def convert_gguf(path: Path, folder: Path) -> str:
    """Write weights (bfloat16 safetensors), configuration and tokenizer into `folder`; returns the license's name.

    Raises:
        ModelError: the file is damaged, of another family, or uses something that we would get wrong.
    """
    with GgufFile(path) as file:
        config = _config(file)
        names = _hub_names(file, config)
        tokenizer = _tokenizer(file)
        save_file(
            {hub_name: _weights(file, name, config) for name, hub_name in names.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        terms = file.metadata.get("general.license", "")
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _generation_config(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    return terms if isinstance(terms, str) else ""


def _config(file: GgufFile) -> PreTrainedConfig:
    metadata = file.metadata
    family = metadata.get("general.architecture")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ModelError(
            f"{file.path} holds a {family!r} model; read here are {' and '.join(_FAMILIES)}",
            hint="take the model's safetensors folder or hub id instead",
        )
    if metadata.get(f"{family}.rope.scaling.type", "none") != "none" or f"{family}.expert_count" in metadata:
        raise ModelError(
            f"{file.path}: scaled rotary embeddings and experts are not read from GGUF",
            hint="take the model's safetensors folder or hub id instead",
        )

    def whole(key: str, otherwise: int | None = None) -> int:
        value = metadata.get(f"{family}.{key}", otherwise)
        if not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise ModelError(f"{file.path}: damaged GGUF file: {family}.{key} is {value!r}")
        return value

    hidden, heads, layers = whole("embedding_length"), whole("attention.head_count"), whole("block_count")
    head_size = whole("attention.key_length", max(1, hidden // heads))
    if layers > len(file.tensors):
        raise ModelError(f"{file.path}: damaged GGUF file: {layers} blocks in {len(file.tensors)} tensors")
    if head_size % 2:  # rotary embeddings turn pairs
        raise ModelError(f"{file.path}: damaged GGUF file: heads of {head_size} values")
    if whole("rope.dimension_count", head_size) != head_size:
        raise ModelError(f"{file.path}: partial rotary embeddings are not read from GGUF")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: token_embd.weight is missing")
    fields: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": whole("attention.head_count_kv", heads),
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": _shortest(metadata.get(f"{family}.attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _shortest(metadata.get(f"{family}.rope.freq_base", 10000.0)),
        },
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": torch.bfloat16,
    }
    if family == "llama":
        fields["head_dim"] = head_size
        fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    try:
        config: PreTrainedConfig = _FAMILIES[family](**fields)
    except Exception as error:  # transformers checks fields with exceptions of its own
        raise ModelError(f"{file.path}: damaged GGUF file: {str(error).splitlines()[0]}") from error
    config.architectures = [f"{family.capitalize()}ForCausalLM"]
    return config


def _shortest(value: object) -> float:
    """A float32 as people write it: 1e-05, not 9.999999747378752e-06, so that the fingerprint equals the hub's."""
    return float(str(np.float32(value))) if isinstance(value, int | float) else 0.0


def _hub_names(file: GgufFile, config: PreTrainedConfig) -> dict[str, str]:
    """GGUF name -> transformers' name of every tensor; each fits and none is missing, or ModelError."""
    names: dict[str, str] = {}
    for name in file.tensors:
        block, _, rest = name.removeprefix("blk.").partition(".")
        part, _, kind = rest.partition(".")
        if name in _OUTER:
            names[name] = _OUTER[name]
        elif name.startswith("blk.") and block.isdecimal() and part in _INNER and kind in ("weight", "bias"):
            names[name] = f"model.layers.{block}.{_INNER[part]}.{kind}"
        else:
            raise ModelError(f"{file.path}: the tensor {name!r} has no place in a {config.model_type} model")
    with torch.device("meta"):  # shapes without memory
        wanted: dict[str, torch.Tensor] = dict(_auto_model.from_config(config).named_parameters())
    for name, hub_name in names.items():
        shape = file.tensors[name].shape
        if hub_name not in wanted or tuple(wanted[hub_name].shape) != shape:
            expected = tuple(wanted[hub_name].shape) if hub_name in wanted else "nothing"
            raise ModelError(f"{file.path}: {name} has the shape {shape}, the configuration wants {expected}")
    if missing := sorted(set(wanted) - set(names.values())):
        raise ModelError(f"{file.path}: {len(missing)} tensors are missing (first: {missing[0]})")
    return names


def _weights(file: GgufFile, name: str, config: PreTrainedConfig) -> torch.Tensor:
    values = file.read(name)
    if config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, -1)
        values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
    return torch.from_numpy(values).to(torch.bfloat16)


def _tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    metadata = file.metadata
    split = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or not isinstance(split, str) or split not in _SPLITTERS:
        raise ModelError(
            f"{file.path}: its tokenizer ({metadata.get('tokenizer.ggml.model')!r}, split {split!r}) is not read; "
            f"wanted a byte-level BPE split as one of {', '.join(sorted(_SPLITTERS))}",
            hint="take the model's safetensors folder or hub id instead",
        )
    tokens, merges = _strings(file, "tokenizer.ggml.tokens"), _strings(file, "tokenizer.ggml.merges")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(tokens) > file.tensors["token_embd.weight"].shape[0]:
        raise ModelError(f"{file.path}: damaged GGUF file: {len(tokens)} tokens, {len(vocabulary)} different")
    llama3 = split in ("llama-bpe", "llama3")
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, [_pair(merge) for merge in merges], ignore_merges=llama3))
    except Exception as error:  # tokenizers raises Exception itself where merges name unknown tokens
        raise ModelError(f"{file.path}: damaged GGUF file: {error}") from error
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITTERS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", ())
    for token, kind in zip(tokens, kinds if isinstance(kinds, np.ndarray) else (), strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=bool(kind == _CONTROL), normalized=False)
            (tokenizer.add_special_tokens if kind == _CONTROL else tokenizer.add_tokens)([added])
    special = {
        role: tokens[index]
        for role, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if isinstance(index := metadata.get(f"tokenizer.ggml.{key}_token_id"), int) and 0 <= index < len(tokens)
    }
    if metadata.get("tokenizer.ggml.add_bos_token", llama3) and (first := special.get("bos_token")):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, vocabulary[first])]
        )
    length = metadata.get(f"{metadata['general.architecture']}.context_length")
    built: PreTrainedTokenizerFast = _fast_tokenizer(
        tokenizer_object=tokenizer, model_max_length=length, clean_up_tokenization_spaces=False, **special
    )
    return built


def _strings(file: GgufFile, key: str) -> tuple[str, ...]:
    value = file.metadata.get(key)
    if not isinstance(value, tuple):
        raise ModelError(f"{file.path}: damaged GGUF file: {key} is not a list of strings")
    return value


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _words(numbers: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def build() -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS % numbers), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return build


_SPLITTERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _digits,
    "starcoder": _digits,
    "refact": _digits,
    "qwen2": _words(r"\p{N}"),
    "llama-bpe": _words(r"\p{N}{1,3}"),
    "llama3": _words(r"\p{N}{1,3}"),
}
