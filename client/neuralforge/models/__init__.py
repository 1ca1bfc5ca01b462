"""Base models: found by name, loaded without running foreign code, told apart by a fingerprint.

`load_base_model` is imported when it is first used: torch and transformers take seconds to import, and most
commands never need them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.models.base import BaseModel
    from neuralforge.models.load import load_base_model

__all__ = ["BaseModel", "load_base_model"]


def __getattr__(name: str) -> Any:
    if name == "load_base_model":
        from neuralforge.models.load import load_base_model

        return load_base_model
    if name == "BaseModel":
        from neuralforge.models.base import BaseModel

        return BaseModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
