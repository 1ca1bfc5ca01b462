"""What a plan says of a round under masks: the same for every client, and none of it a secret."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.strict_json import shortened

FEWEST = 3
"""A sum of fewer updates than that is not worth the name."""
MOST_CLIENTS = 10_000
LEAST_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingTerms:
    """How updates are made into whole numbers, and how many clients it takes to unmask their sum.

    At most `clients` take part. Each value is cut to ±`limit` and sent as `bits` bits (see `FixedPoint`); an update's
    Euclidean norm is at most `max_norm`. More than the share `threshold` of those who hold parts of a secret must give
    theirs; above 20 clients these are a client's `neighbours`, in a graph where everybody has as many. `state` is the
    `state_digest` of what everybody begins from: whoever alone was sent a state in which there is something to learn
    would be alone in the sum (Pasquini et al. 2022, "Eluding Secure Aggregation in Federated Learning via Model
    Inconsistency").

    Raises:
        FederationError: a value out of its bounds.
    """

    clients: int
    limit: float
    max_norm: float
    bits: Literal[32, 64] = 32
    threshold: float = LEAST_THRESHOLD
    neighbours: int = 0
    state: str = ""

    def __post_init__(self) -> None:
        for name, holds, what in (
            ("clients", FEWEST <= self.clients <= MOST_CLIENTS, f"from {FEWEST} to {MOST_CLIENTS:,}"),
            ("limit", 0 < self.limit < 1e6, "above 0, below a million"),
            ("max_norm", 0 < self.max_norm < 1e12, "above 0"),
            ("bits", self.bits in (32, 64), "32 or 64"),
            ("threshold", LEAST_THRESHOLD <= self.threshold < 1, f"from {LEAST_THRESHOLD} to below 1"),
            ("neighbours", 0 <= self.neighbours < MOST_CLIENTS, f"from 0 to below {MOST_CLIENTS:,}"),
        ):
            if not holds:
                got = shortened(getattr(self, name))
                raise FederationError(f"secure aggregation: {name}: wanted a number {what}, got {got}")
        for name in ("limit", "max_norm", "threshold"):
            object.__setattr__(self, name, float(getattr(self, name)))


def state_digest(state: FloatArray) -> str:
    """SHA-256 of a flat state as it travels: little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(state, "<f4").data).hexdigest()
