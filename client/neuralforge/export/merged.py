"""A whole model with the adapter merged in: W₀ + (alpha / rank) · B·A, as `save_pretrained` writes models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neuralforge.export.place import check_free
from neuralforge.models.base import BaseModel
from neuralforge_common.adapter import AdapterSpec, AdapterState, module_of
from neuralforge_common.atomic import replace_folder
from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import PEFT_WEIGHTS, WEIGHTS, AdapterFolder, verify_base


def export_merged(folder: AdapterFolder, base: BaseModel, path: Path) -> None:
    """Merge the adapter into the base (for good: `base` is spent) and write it with its tokenizer.

    Raises:
        AdapterError: the base is another than the adapter's.
        StorageError: something is at `path`, or it cannot be written.
    """
    check_free(path)
    verify_base(folder.spec, base.fingerprint, base.name)
    merge_into(base.model, folder.spec, folder.state)
    model: Any = base.model
    with replace_folder(path) as unfinished:
        model.save_pretrained(unfinished)
        base.tokenizer.save_pretrained(unfinished)
        card = unfinished / "README.md"
        card.write_text(_card(folder, base), encoding="utf-8")
        for weights in unfinished.glob("*.safetensors"):
            weights.chmod(card.stat().st_mode)  # safetensors writes files that only their owner can read


@torch.no_grad()
def merge_into(model: PreTrainedModel, spec: AdapterSpec, state: AdapterState) -> None:
    """Add ΔW to the weights of the model, in float32, rounded to the weights' own format once.

    Raises:
        AdapterError: a module is not there, of another shape, or shares its weights with another.
    """
    found = dict(model.named_modules())
    held = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    # All checks before the first change: a refused adapter must not leave half of itself behind.
    weights = {}
    for module in sorted({module_of(key)[0] for key in state}):
        layer = found.get(module)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise AdapterError(f"{module}: the base has no linear map of this name")
        if held.count(id(layer.weight)) > 1:
            raise AdapterError(
                f"{module} shares its weights with another module, which merging would change as well",
                hint="--to peft keeps the adapter apart",
            )
        d_out, d_in = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
        a, b = (state[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        if (d_out, d_in) != (b.shape[0], a.shape[1]):
            raise AdapterError(f"{module} is {d_out} × {d_in} in the base, {b.shape[0]} × {a.shape[1]} in the adapter")
        weights[module] = layer
    for module, layer in weights.items():
        right, left = (
            torch.from_numpy(state[f"base_model.model.{module}.lora_{side}.weight"].copy()).to(layer.weight.device)
            for side in "AB"
        )
        delta = spec.scaling * (left @ right)
        layer.weight.copy_(layer.weight.float() + (delta if isinstance(layer, nn.Linear) else delta.T))


def _card(folder: AdapterFolder, base: BaseModel) -> str:
    metadata = folder.metadata
    digest = metadata.digests.get(PEFT_WEIGHTS) or metadata.digests.get(WEIGHTS) or "not recorded"
    # Quoted as code: names come from a stranger's metadata.
    name, source = (text.replace("`", "'") for text in (metadata.name, base.source))
    lines = [
        "# A merged model",
        "",
        f"- Base: `{source}`" + (f" at `{base.revision}`" if base.revision else ""),
        f"- Adapter: `{name}` {metadata.version}, SHA-256 of its weights `{digest}`",
        f"- Merged in float32, kept as {str(base.model.dtype).removeprefix('torch.')}",
        f"- License of the base: {base.license or 'not recorded'}",
        f"- License of the adapter: {metadata.license or 'not recorded'}",
    ]
    if metadata.privacy is not None:
        lines.append(f"- The adapter was learnt with differential privacy, {metadata.privacy}")
    return "\n".join(lines) + "\n"
