"""Tiny models of several families with random weights, adapters on them, and batches for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample
from neuralforge.models.lora import attach_lora
from neuralforge_common.adapter import AdapterSpec

VOCABULARY = 97
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

MODELS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**_DECODER, tie_word_embeddings=True)), ALL_LINEAR),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**_DECODER, sliding_window=None)), ALL_LINEAR),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**_DECODER)), ALL_LINEAR),
    "starcoder2": (
        lambda: Starcoder2ForCausalLM(Starcoder2Config(**_DECODER, residual_dropout=0.0, embedding_dropout=0.0)),
        ("c_fc", "c_proj", "k_proj", "o_proj", "q_proj", "v_proj"),
    ),
    "gemma2": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**_DECODER, head_dim=8, final_logit_softcapping=5.0)),
        ALL_LINEAR,
    ),
    "gpt_neox": (
        lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=VOCABULARY,
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=2,
                num_attention_heads=6,
                max_position_embeddings=128,
            )
        ),
        ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"),
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY,
                d_model=48,
                d_kv=8,
                d_ff=80,
                num_layers=2,
                num_heads=6,
                decoder_start_token_id=0,
                pad_token_id=0,
            )
        ),
        ("k", "o", "q", "v", "wi", "wo"),
    ),
}


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of the family, frozen and in eval mode, biases not zero where it has any."""
    torch.manual_seed(seed)
    model = MODELS[family][0]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.dim() == 2:
                parameter.normal_(std=0.15)
    return model.to(dtype).eval().requires_grad_(False)


def tiny_spec(family: str, **changes: object) -> AdapterSpec:
    """An adapter on every linear map of the family."""
    values: dict[str, object] = {
        "base": family,
        "rank": 4,
        "alpha": 6.0,
        "target_modules": MODELS[family][1],
        "task": "seq2seq" if family == "t5" else "causal",
    }
    return AdapterSpec(**(values | changes))  # type: ignore[arg-type]


def with_adapter(model: PreTrainedModel, spec: AdapterSpec, *, seed: int = 1) -> PeftModel:
    """LoRA on the model, B not zero, so that A has a gradient as well."""
    peft = attach_lora(model, spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return peft


def tiny_batch(*, count: int = 5, seed: int = 3, longest: int = 40, seq2seq: bool = False) -> Batch:
    """Examples of unlike lengths, some alike, one with a single token of context."""
    generator = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        context = 1 if index == 0 else int(generator.integers(2, longest))
        completion = int(generator.integers(1, longest // 2))
        ids = generator.integers(1, VOCABULARY, size=context + completion).tolist()
        examples.append(
            TokenizedExample(
                index=index,
                tokens=tuple(ids[context:] if seq2seq else ids),
                start=0 if seq2seq else context,
                context=tuple(ids[:context]) if seq2seq else (),
            )
        )
    return Batch(examples=tuple(examples))
