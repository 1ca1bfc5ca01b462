"""The names that a request may give as its `model`."""

from __future__ import annotations

from dataclasses import dataclass

CURRENT = "neuralforge"
"""The model that is always there: whatever adapter was loaded last."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name, and the adapter behind it; None is the base alone."""

    id: str
    adapter: str | None
