"""Attention by batched matmul, registered with transformers for CPUs in bf16.

`scaled_dot_product_attention` in bf16 on a CPU was measured slower than the matmuls it stands for, forward and
backward (docs/performance.md). Grouped queries share keys by a reshape; nothing is repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "neuralforge_matmul"


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query (n, H, T, D), key and value (n, KV, S, D), additive mask (n, 1, T, S) -> output (n, T, H, D)."""
    count, heads, width, depth = query.shape
    keys = key.shape[1]
    scaling = depth**-0.5 if scaling is None else scaling
    grouped = query.reshape(count, keys, heads // keys * width, depth)
    scores = torch.matmul(grouped, key.transpose(2, 3)).mul_(scaling)
    if attention_mask is not None:
        scores.view(count, keys, heads // keys, width, -1).add_(attention_mask[:, :, None])
    probabilities = functional.dropout(torch.softmax(scores, dim=-1), p=dropout, training=module.training)
    out = torch.matmul(probabilities, value).view(count, heads, width, -1)
    return out.transpose(1, 2).contiguous(), None


def use_matmul_attention(model: PreTrainedModel) -> bool:
    """Switch `model` to it; False, and nothing changed, where the model's attention does more than this computes."""
    config = model.config
    capped = any(getattr(config, name, None) for name in ("attn_logit_softcapping", "attention_logit_cap"))
    if config.is_encoder_decoder or capped or not getattr(model, "_supports_attention_backend", False):
        return False
    AttentionInterface.register(NAME, matmul_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    return True
