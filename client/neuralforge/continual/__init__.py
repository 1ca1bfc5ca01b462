"""Learning without forgetting: what keeps old knowledge while a new session is learnt."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.continual.dark import Dark
    from neuralforge.continual.ewc import EWCRegularizer
    from neuralforge.continual.fisher import Fisher, compute_fisher_information
    from neuralforge.continual.incremental import IncrementalLearner
    from neuralforge.continual.mix import Mix, replayed
    from neuralforge.continual.replay import ReplayBuffer

__all__ = [
    "Dark",
    "EWCRegularizer",
    "Fisher",
    "IncrementalLearner",
    "Mix",
    "ReplayBuffer",
    "compute_fisher_information",
    "replayed",
]

_MODULES = {
    "Dark": "dark",
    "EWCRegularizer": "ewc",
    "Fisher": "fisher",
    "IncrementalLearner": "incremental",
    "Mix": "mix",
    "ReplayBuffer": "replay",
    "compute_fisher_information": "fisher",
    "replayed": "mix",
}


def __getattr__(name: str) -> Any:
    """Import late: `--help` must not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
