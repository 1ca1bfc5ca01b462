"""LoRA training: `LoRATrainer`, `MultiTaskTrainer`, schedulers, losses and engines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.tasks.multi_task import MultiTaskTrainer
    from neuralforge.training.schedule import ConstantScheduler, CosineScheduler, LinearScheduler
    from neuralforge.training.trainer import LoRATrainer

__all__ = ["ConstantScheduler", "CosineScheduler", "LinearScheduler", "LoRATrainer", "MultiTaskTrainer"]


def __getattr__(name: str) -> Any:
    """Import late: the guide's names live here, and `--help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {"LoRATrainer": f"{__name__}.trainer", "MultiTaskTrainer": "neuralforge.tasks.multi_task"}
    return getattr(importlib.import_module(modules.get(name, f"{__name__}.schedule")), name)
