"""Taking part in a federation: joining it, its rounds, and what this machine knows of the ones that it joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge.federation.client import FederatedClient

__all__ = ["FederatedClient"]


def __getattr__(name: str) -> object:
    # Torch and Flower take seconds to import: only for whoever asks for them.
    if name == "FederatedClient":
        from neuralforge.federation.client import FederatedClient

        return FederatedClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
