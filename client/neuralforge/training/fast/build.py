"""From a transformers model to the fast engine's layers: what it serves, and how weights are fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from neuralforge.training.engine import EngineOptions
from neuralforge.training.fast.attention import Heads
from neuralforge.training.fast.layer import FrozenLayer, Layer
from neuralforge.training.fast.linear import DenseLinear, FrozenLinear, Int8Linear
from neuralforge.training.fast.lora import LoraGroup, Target
from neuralforge.training.flat import FlatParameters

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Projections that share an input are one group, and one matmul."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """All layers, the lowest that carries LoRA, and the shape of attention."""

    layers: tuple[Layer, ...]
    first: int
    heads: Heads


def refusal(model: PeftModel, max_length: int) -> str | None:
    """Why the fast engine cannot serve this model, None where it can."""
    causal: Any = model.get_base_model()
    kind = type(causal).__name__
    if kind not in FAMILIES:
        return f"{kind} is not one of {', '.join(FAMILIES)}"
    config = causal.config
    parameter = causal.lm_head.weight
    if parameter.device.type != "cpu":
        return f"it is made for CPUs, the model is on {parameter.device.type}"
    if parameter.dtype not in (torch.float32, torch.bfloat16):
        return f"it computes in float32 or bfloat16, the model is in {parameter.dtype}"
    if config.hidden_act != "silu" or getattr(config, "attention_dropout", 0.0):
        return "the activation is not silu, or attention has dropout"
    if config.rope_parameters.get("rope_type", "default") in ("dynamic", "longrope"):
        return f"its rotary embedding is {config.rope_parameters['rope_type']}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_length:
        return f"its attention window {window} is shorter than max_length {max_length}"
    if getattr(causal.lm_head, "bias", None) is not None or hasattr(causal.lm_head, "lora_A"):
        return "its head has a bias or an adapter"
    lora = model.peft_config["default"]
    if not isinstance(lora, LoraConfig) or lora.use_dora or lora.use_rslora:
        return "the adapter is not plain LoRA"
    strange = set(lora.target_modules or ()) - {n.rpartition(".")[2] for names in GROUPS.values() for n in names}
    if strange:
        return f"LoRA on {', '.join(sorted(strange))}"
    return None


def build_layers(causal: Any, flat: FlatParameters, options: EngineOptions, *, config: LoraConfig) -> Built:
    """Fuse each layer's frozen weights (the model's own become views of them: no second copy) and find its LoRA."""
    modules: Sequence[nn.Module] = list(causal.model.layers)
    attention: Any = modules[0].self_attn
    heads = Heads(
        queries=causal.config.num_attention_heads,
        keys=causal.config.num_key_value_heads,
        width=int(attention.head_dim),
    )
    adapted = [any(f".layers.{i}." in name for name in flat.places) for i in range(len(modules))]
    first = adapted.index(True)
    layers = []
    for i, module in enumerate(modules):
        groups = {name: g for name in GROUPS if (g := _group(name, i, module, flat, config)) is not None}
        layers.append(Layer(_freeze(i, module, heads, options, learns=i >= first), groups))
    return Built(layers=tuple(layers), first=first, heads=heads)


def _freeze(index: int, module: Any, heads: Heads, options: EngineOptions, *, learns: bool) -> FrozenLayer:
    forward: dict[str, FrozenLinear] = {}
    backward: dict[str, FrozenLinear] = {}
    for name, members in GROUPS.items():
        weight, bias = _fuse([_frozen(module, member) for member in members])
        forward[name] = Int8Linear(weight, bias) if options.int8 == "full" else DenseLinear(weight, bias)
        # Layers under the lowest adapter have no backward: a dense view costs nothing, an int8 copy would.
        int8_back = learns and options.int8 != "off"
        backward[name] = Int8Linear(weight.t().contiguous()) if int8_back else DenseLinear(weight.t())
    return FrozenLayer(
        index=index,
        heads=heads,
        eps=float(module.input_layernorm.variance_epsilon),
        attention_norm=module.input_layernorm.weight.detach(),
        mlp_norm=module.post_attention_layernorm.weight.detach(),
        qkv=forward["qkv"],
        out=forward["out"],
        gate_up=forward["gate_up"],
        down=forward["down"],
        qkv_back=backward["qkv"],
        out_back=backward["out"],
        gate_up_back=backward["gate_up"],
        down_back=backward["down"],
    )


def _fuse(linears: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    if len(linears) == 1:
        bias = linears[0].bias
        return linears[0].weight.detach(), None if bias is None else bias.detach()
    weight = torch.cat([linear.weight.detach() for linear in linears])
    first = 0
    for linear in linears:
        linear.weight.data = weight[first : first + linear.out_features]
        first += linear.out_features
    if all(linear.bias is None for linear in linears):
        return weight, None
    return weight, torch.cat(
        [linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
    ).detach()


def _group(name: str, index: int, module: nn.Module, flat: FlatParameters, config: LoraConfig) -> LoraGroup | None:
    targets = []
    column = 0
    for member in GROUPS[name]:
        width = _frozen(module, member).out_features
        prefix = f".layers.{index}.{member}."
        a = [place for key, place in flat.places.items() if f"{prefix}lora_A." in key]
        b = [place for key, place in flat.places.items() if f"{prefix}lora_B." in key]
        if a and b:
            targets.append(Target(columns=slice(column, column + width), a=a[0], b=b[0]))
        column += width
    if not targets:
        return None
    return LoraGroup(targets, columns=column, scaling=config.lora_alpha / config.r, dropout=float(config.lora_dropout))


def _frozen(module: nn.Module, member: str) -> nn.Linear:
    found: Any = module.get_submodule(member)
    linear: nn.Linear = found.get_base_layer() if hasattr(found, "get_base_layer") else found
    return linear
