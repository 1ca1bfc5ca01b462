"""Which engine trains a model: the fast one where it serves the family, else the general one, with a word why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from neuralforge.models.base import BaseModel
from neuralforge.training.engine import Engine, EngineOptions
from neuralforge.training.fast.build import refusal
from neuralforge.training.fast.engine import FastEngine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.engine import LARGEST_SCALE, GeneralEngine
from neuralforge_common.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Chosen:
    """The engine, and what a person should know about the choice."""

    engine: Engine
    notices: tuple[str, ...]


def make_engine(
    model: PeftModel,
    flat: FlatParameters,
    options: EngineOptions,
    *,
    base: BaseModel,
    max_length: int,
    fp16: bool = False,
    gradient_scaling: bool = True,
) -> Chosen:
    """Choose and build; raises TrainingError where an option asks for what the model cannot have."""
    notices = []
    base_model: Any = model.get_base_model()
    on_gpu = flat.vector.device.type == "cuda"
    if fp16 and not on_gpu:
        precision = str(base_model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        notices.append(f"fp16: not available on {flat.vector.device.type}, computing in {precision}")
    reason = refusal(model, max_length)
    if options.engine in ("general", "opacus"):
        reason = f"the {options.engine} engine was asked for"
    if reason is None:
        return Chosen(FastEngine(model, flat, options), tuple(notices))
    if options.engine == "fast":
        raise TrainingError(f"the fast engine cannot train this: {reason}", hint="use engine: auto")
    if options.int8 != "off" or not options.context_gradients:
        asked = "int8" if options.int8 != "off" else "context_gradients: false"
        raise TrainingError(f"{asked} needs the fast engine, which cannot train this: {reason}", hint="leave it out")
    general = GeneralEngine(
        model,
        flat,
        options,
        is_encoder_decoder=base.is_encoder_decoder,
        pad_token_id=int(base.tokenizer.pad_token_id or 0),
        autocast_fp16=fp16 and on_gpu,
        loss_scale=LARGEST_SCALE if fp16 and on_gpu and gradient_scaling else 1.0,
    )
    if options.engine == "opacus":
        from neuralforge.training.opacus_engine import OpacusEngine  # as heavy as it is rare

        return Chosen(OpacusEngine(general, model, flat, options), tuple(notices))
    return Chosen(general, tuple(notices))
