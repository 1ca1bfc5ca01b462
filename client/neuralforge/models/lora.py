"""LoRA on a base model, through PEFT: attach, detach, read and write the adapter's state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.errors import AdapterError, ModelError


def attach_lora(model: PreTrainedModel, spec: AdapterSpec, *, seed: int) -> PeftModel:
    """Wrap a base model with LoRA as `spec` says; A is drawn from `seed`, B is zero (Hu et al. 2021, §4.1).

    The base's modules are changed in place: one adapter at a time. LoRA's parameters are fp32 whatever the base.
    """
    if any(hasattr(module, "lora_A") for module in model.modules()):
        raise ModelError("this base carries an adapter already", hint="detach it first, or load the base anew")
    lora_config: Any = LoraConfig  # its alpha is declared whole and used as any number
    config = lora_config(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.target_modules),
        layers_to_transform=list(spec.layers) if spec.layers is not None else None,
        bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM if spec.task == "seq2seq" else TaskType.CAUSAL_LM,
    )
    # PEFT draws from torch's global generator; fork it, so that the caller's randomness is untouched.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
    if not isinstance(wrapped, PeftModel):
        raise ModelError(f"PEFT returned {type(wrapped).__name__}, wanted a PeftModel")
    _draw(wrapped, seed)
    return wrapped


@torch.no_grad()
def _draw(model: nn.Module, seed: int) -> None:
    # PEFT draws A in the base's number format: a laptop with bf16 and one without would start from different adapters.
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in _lora_parameters(model):
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5  # Kaiming-uniform with a = √5, as PEFT's own
            drawn = torch.empty(parameter.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)


def detach_lora(model: PeftModel) -> None:
    """Give the base its own modules back; the adapter in the model is dropped."""
    model.unload()


def read_state(model: nn.Module) -> AdapterState:
    """The adapter's matrices under PEFT's saved names, fp32 on the CPU."""
    return AdapterState(
        {
            _saved_name(name): parameter.detach().to("cpu", torch.float32).numpy().copy()
            for name, parameter in _lora_parameters(model)
        }
    )


def write_state(model: nn.Module, state: AdapterState) -> None:
    """Overwrite the adapter's matrices; raises AdapterError where names or shapes differ."""
    parameters = {_saved_name(name): parameter for name, parameter in _lora_parameters(model)}
    if set(parameters) != set(state):
        missing, strange = sorted(set(parameters) - set(state)), sorted(set(state) - set(parameters))
        raise AdapterError(
            f"the adapter's matrices do not fit this model: {len(missing)} missing, {len(strange)} unknown "
            f"(first: {(missing + strange)[0]})",
            hint="open it on the base and with the target modules that it was made with",
        )
    # All shapes before the first value: a refused state must not leave half of itself behind.
    for name, parameter in parameters.items():
        if state[name].shape != tuple(parameter.shape):
            raise AdapterError(
                f"{name}: shape {state[name].shape} in the adapter, {tuple(parameter.shape)} in the model"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(state[name].copy()))


def block_count(model: nn.Module) -> int:
    """How many decoder layers the model has; 0 where it does not say."""
    config = getattr(model, "config", None)
    return int(getattr(config, "num_hidden_layers", 0) or 0)


def top_layers(model: nn.Module, count: int | None, *, is_encoder_decoder: bool) -> tuple[int, ...] | None:
    """Indices of the top `count` layers, None for all of them."""
    if count is None:
        return None
    total = block_count(model)
    if is_encoder_decoder or total == 0:
        raise ModelError("lora.top_layers needs a decoder-only base with numbered layers", hint="leave it out")
    if count >= total:
        return None
    return tuple(range(total - count, total))


def _lora_parameters(model: nn.Module) -> Sequence[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]


def _saved_name(name: str) -> str:
    # PEFT saves `…lora_A.default.weight` as `…lora_A.weight`.
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
