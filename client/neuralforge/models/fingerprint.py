"""Telling bases apart: an adapter on another revision of its base loads without a word and writes nonsense.

The fingerprint covers the fields of the configuration that decide the function, and of every parameter its name, its
shape and up to 1,024 of its values. It does not see a change that misses all of the sampled values; training, merging
or another revision change all of them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_SAMPLES = 1024

# Sizes show in the shapes. These change the function and no shape. Names that a family does not have are left out, so
# that a field which a later transformers adds elsewhere changes nothing.
_DECISIVE = (
    "activation_function",
    "attn_logit_softcapping",
    "d_kv",
    "decoder_start_token_id",
    "dense_act_fn",
    "embedding_multiplier",
    "feed_forward_proj",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "is_encoder_decoder",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "model_type",
    "n_head",
    "norm_epsilon",
    "num_attention_heads",
    "num_heads",
    "num_key_value_heads",
    "partial_rotary_factor",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
    "use_parallel_residual",
    "use_sliding_window",
)


def fingerprint(model: nn.Module) -> str:
    """`sha256:<hex>` of a base, the same in float32 and bfloat16, with an adapter attached or not.

    Values are rounded to bfloat16 first. Weights loaded as float16 can differ: it has no room for the smallest ones.
    """
    digest = hashlib.sha256(b"neuralforge base 1\n")
    digest.update(json.dumps(_decisive_fields(model), sort_keys=True).encode())
    for name, parameter in sorted(_base_parameters(model)):
        digest.update(f"\n{name} {tuple(parameter.shape)}\n".encode())
        digest.update(_sample(parameter))
    return f"sha256:{digest.hexdigest()}"


def _decisive_fields(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    fields = config if isinstance(config, Mapping) else config.to_dict() if config is not None else {}
    return {name: _plain(fields[name]) for name in _DECISIVE if fields.get(name) is not None}


def _plain(value: Any) -> Any:
    """Numbers as they compare, not as they were written: 10000 and 10000.0 are one rope_theta."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names as they are without PEFT; tied parameters come once."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        yield (
            name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", "."),
            parameter,
        )


def _sample(parameter: torch.Tensor) -> bytes:
    values = parameter.detach().reshape(-1)
    # An odd stride: an even one divides the row length and would look at the same few columns of every row.
    stride = max(1, values.numel() // _SAMPLES) | 1
    return values[::stride][:_SAMPLES].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()
