"""Several adapters and their weights -> one adapter, and how far it is from their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralforge.composition.exact import side_by_side
from neuralforge.composition.method import Method
from neuralforge.composition.parents import Part, joint_spec, terms_by_module
from neuralforge_common.adapter import AdapterSpec, AdapterState, validate_state
from neuralforge_common.errors import AdapterError
from neuralforge_common.lineage import MAX_PARENTS
from neuralforge_common.low_rank import product_norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composed:
    """The result. `error` is ‖B·A − Σ w_i ΔW_i‖ / ‖Σ w_i ΔW_i‖ over all modules, None where that sum is zero."""

    spec: AdapterSpec
    state: AdapterState
    error: float | None


def compose(parts: Sequence[Part], method: Method) -> Composed:
    """Make one adapter of the parts.

    Raises:
        AdapterError: fewer than two parts, a weight that is no number, parts of different bases or shapes, ranks that
            the method does not take.
    """
    if not 2 <= len(parts) <= MAX_PARENTS:
        raise AdapterError(f"wanted 2 to {MAX_PARENTS} adapters to compose, got {len(parts)}")
    for part in parts:
        if not math.isfinite(part.weight):
            raise AdapterError(f"the weight of {part.label} is {part.weight}, wanted a finite number")
    rank = method.rank_of([part.spec.rank for part in parts])
    spec = joint_spec(parts, rank)
    arrays = {}
    missed = whole = 0.0
    for module, terms in terms_by_module(parts):
        a64, b64 = method.combine(module, terms, rank)
        a, b = a64.astype(np.float32), b64.astype(np.float32)
        arrays[f"base_model.model.{module}.lora_A.weight"] = a
        arrays[f"base_model.model.{module}.lora_B.weight"] = b
        exact_a, exact_b = side_by_side(terms)
        # Of the numbers that are written, rounding included.
        missed += product_norm(np.hstack([b.astype(np.float64), -exact_b]), np.vstack([a, exact_a])) ** 2
        whole += product_norm(exact_b, exact_a) ** 2
    state = AdapterState.adopt(arrays)
    validate_state(state, spec)
    return Composed(spec=spec, state=state, error=math.sqrt(missed / whole) if whole > 0 else None)
