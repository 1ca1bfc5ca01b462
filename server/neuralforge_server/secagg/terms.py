"""The masks of a round, from a federation's terms: how updates become whole numbers that cannot overflow."""

from __future__ import annotations

import math

from neuralforge_common.secagg.fixed_point import FINE, FixedPoint
from neuralforge_common.secagg.graph import fewest_neighbours
from neuralforge_common.secagg.terms import FEWEST, MaskingTerms

ADAM_STEP = 4.0
"""Adam moves a value by at most (1 − β₁)/√(1 − β₂) ≈ 3.2 learning rates in a step (Kingma & Ba 2015, §2.1)."""


def masking_terms(
    *, asked: int, steps: int, learning_rate: float, max_norm: float, threshold: float, neighbours: int | None
) -> MaskingTerms:
    """For so many clients; 64 bits a value where 32 would be too coarse for a small update.

    No value of an update that was trained as the plan says is cut.
    """
    clients = max(asked, FEWEST)
    limit = min(max_norm, ADAM_STEP * steps * learning_rate)
    is_fine = FixedPoint(limit=limit, clients=clients, bits=32).resolution <= FINE
    return MaskingTerms(
        clients=clients,
        limit=limit,
        # Rounding makes an update a little longer than it was.
        max_norm=math.nextafter(max_norm, math.inf),
        bits=32 if is_fine else 64,
        threshold=threshold,
        neighbours=neighbours if neighbours is not None else fewest_neighbours(clients),
    )
