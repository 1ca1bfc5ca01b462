"""Which linear layers LoRA adapts, by the names that the model's family gives them.

The guide says `q_proj` and `v_proj`; T5 calls them `q` and `v`, GPT-NeoX keeps queries, keys and values in one matrix.
PEFT raises on the first and cannot know the second.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neuralforge_common.errors import ModelError

_NAME = re.compile(r"\w+(\.\w+)*")

# Each role: the names of its own matrix, then of the matrix that it shares with others. `attn.c_proj` is a suffix:
# GPT-2 has a c_proj in its attention and another in its MLP.
_ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "queries": (("q_proj", "q", "query", "q_lin", "wq"), ("query_key_value", "qkv_proj", "c_attn", "Wqkv")),
    "keys": (("k_proj", "k", "key", "k_lin", "wk"), ("query_key_value", "qkv_proj", "c_attn", "Wqkv")),
    "values": (("v_proj", "v", "value", "v_lin", "wv"), ("query_key_value", "qkv_proj", "c_attn", "Wqkv")),
    "attention output": (("o_proj", "o", "out_proj", "attn.c_proj", "attention.dense", "self_attn.dense"), ()),
    "gate": (("gate_proj", "wi_0"), ("gate_up_proj", "wi", "fc1", "c_fc", "dense_h_to_4h")),
    "up": (("up_proj", "wi_1", "wi", "fc1", "c_fc", "dense_h_to_4h"), ("gate_up_proj",)),
    "down": (("down_proj", "wo", "fc2", "mlp.c_proj", "dense_4h_to_h"), ()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Names of modules to adapt, as PEFT takes them, and a line for the person where they are not what was asked."""

    names: tuple[str, ...]
    notice: str = ""


def resolve_targets(model: nn.Module, requested: str | Sequence[str] = "auto") -> Targets:
    """Turn what was asked for into names that this model has.

    `auto` (or `all-linear`) is every linear layer inside the blocks; output heads never are. A string may list names
    with commas. Names of another family are mapped to this one's, and the notice says so.

    Raises:
        ModelError: a name that is a pattern, that exists nowhere and has no counterpart, or nothing to adapt.
    """
    paths = _adaptable(model)
    available = tuple(sorted({path.rpartition(".")[2] for path in paths}))
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not available:
        raise ModelError(f"{family} has no linear layers inside its blocks: LoRA has nothing to adapt")
    names = [part.strip() for part in requested.split(",")] if isinstance(requested, str) else list(requested)
    if names in (["auto"], ["all-linear"]):
        return Targets(names=available)
    if not names:
        raise ModelError("no target modules were named", hint="auto, or some of: " + ", ".join(available))
    resolved: dict[str, None] = {}  # an ordered set
    changed: list[str] = []
    for name in names:
        if not _NAME.fullmatch(name):
            raise ModelError(
                f"target module {name!r} is not a name; patterns are not taken",
                hint="auto, or some of: " + ", ".join(available),
            )
        if _exists(name, paths):
            resolved[name] = None
            continue
        found = _counterpart(name, paths)
        if found is None:
            raise ModelError(
                f"{family} has no linear layer called {name!r} inside its blocks",
                hint="auto, or some of: " + ", ".join(available),
            )
        resolved[found] = None
        changed.append(f"{name} is {found}")
    notice = f"target modules of {family}: {', '.join(changed)}" if changed else ""
    return Targets(names=tuple(resolved), notice=notice)


def _adaptable(model: nn.Module) -> tuple[str, ...]:
    """Paths of the linear layers inside repeated blocks: those with a number on the way, as in `layers.0.mlp.up`."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and any(part.isdecimal() for part in name.split("."))
    )


def _exists(name: str, paths: tuple[str, ...]) -> bool:
    """As PEFT matches: the whole path, or its end from a dot on."""
    return any(path == name or path.endswith(f".{name}") for path in paths)


def _counterpart(name: str, paths: tuple[str, ...]) -> str | None:
    for own, shared in _ROLES.values():
        if name in own:
            return next((other for other in (*own, *shared) if _exists(other, paths)), None)
    return None
