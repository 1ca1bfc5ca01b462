"""The engines on tiny models of their families."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from tiny import tiny_model, tiny_spec, with_adapter

from neuralforge.training.engine import Engine, EngineOptions
from neuralforge.training.fast.engine import FastEngine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.engine import GeneralEngine
from neuralforge.training.opacus_engine import OpacusEngine

FAST = ("llama", "mistral", "qwen2")
GENERAL = ("llama", "qwen2", "starcoder2", "gemma2", "gpt_neox", "t5")


def engine_of(
    kind: str,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    **spec: Any,
) -> tuple[Engine, FlatParameters]:
    """An engine of that name, and the flat vector of its adapter, B not zero."""
    model = with_adapter(tiny_model(family, dtype=dtype), tiny_spec(family, **spec))
    flat = FlatParameters(model)
    return engine_on(kind, model, flat, seq2seq=family == "t5", options=EngineOptions(**(options or {}))), flat


def engine_on(
    kind: str, model: PeftModel, flat: FlatParameters, *, seq2seq: bool = False, options: EngineOptions | None = None
) -> Engine:
    """An engine of that name on an adapter that is there."""
    options = options or EngineOptions()
    if kind == "fast":
        return FastEngine(model, flat, options)
    general = GeneralEngine(model, flat, options, is_encoder_decoder=seq2seq, pad_token_id=0)
    return general if kind == "general" else OpacusEngine(general, model, flat, options)
