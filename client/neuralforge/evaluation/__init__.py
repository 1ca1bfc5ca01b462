"""How good an adapter is, against its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge.evaluation.evaluate import evaluate_adapter

__all__ = ["evaluate_adapter"]


def __getattr__(name: str) -> object:
    # What reads samples from here must not wait for torch.
    if name == "evaluate_adapter":
        from neuralforge.evaluation.evaluate import evaluate_adapter

        return evaluate_adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
