"""LoRA training: `LoRATrainer`, its schedulers, losses and engines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.training.schedule import ConstantScheduler, CosineScheduler, LinearScheduler
    from neuralforge.training.trainer import LoRATrainer

__all__ = ["ConstantScheduler", "CosineScheduler", "LinearScheduler", "LoRATrainer"]


def __getattr__(name: str) -> Any:
    """Import late: the guide's names live here, and `--help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "trainer" if name == "LoRATrainer" else "schedule"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
