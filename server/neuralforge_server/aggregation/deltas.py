"""What the methods share that average A and B as vectors: the deltas' mean, or a robust rule's centre, is the step.

A client of a lower rank changed nothing in the components that it does not hold: there its delta counts as zero, with
its whole weight (zero padding, Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning", §3.2, without its
re-weighting). So high components move by the share of those who train them, and nobody's product is diluted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_server.aggregation.exact_sum import DoubleArray, ExactSum
from neuralforge_server.aggregation.exactness import Sketch, rounding_error
from neuralforge_server.aggregation.kept import Kept, at_full_rank
from neuralforge_server.aggregation.method import Aggregate, Fold, GlobalState, Update
from neuralforge_server.aggregation.optimizer import ServerOptimizer
from neuralforge_server.aggregation.robust import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaMethod:
    """Round t trains `parts[(t − 1) mod len(parts)]`; `rule` None is the weighted mean, which streams.

    `compares` says whether the served product is to be compared with avg(BA).
    """

    name: str
    parts: tuple[Part, ...]
    rule: Rule | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    compares: bool = True

    @property
    def streaming(self) -> bool:
        """A robust rule needs all updates side by side."""
        return self.rule is None

    def initial(self, layout: AdapterLayout, *, seed: int) -> GlobalState:
        """A fresh adapter."""
        return GlobalState(layout=layout, vector=layout.draw(seed))

    def part(self, round_number: int) -> Part:
        """What clients train in this round."""
        return self.parts[(round_number - 1) % len(self.parts)]

    def begin(self, state: GlobalState, round_number: int) -> Fold:
        """Start a round."""
        part = self.part(round_number)
        if self.rule is not None:
            return _RobustFold(self.rule, self.optimizer, state, part)
        return _MeanFold(self.optimizer, state, part, compares=self.compares)


class _MeanFold:
    def __init__(self, optimizer: ServerOptimizer, state: GlobalState, part: Part, *, compares: bool) -> None:
        self._optimizer = optimizer
        self._state = state
        self._part = part
        self._compares = compares
        self._sum = ExactSum(state.layout.part_size(part))
        self._sketch = Sketch(state.layout) if compares and part == "both" else None
        self._clients: set[str] = set()

    def add(self, update: Update) -> None:
        if update.client in self._clients:
            raise FederationError(f"{update.client} has an update in this round already")
        delta = at_full_rank(update, self._state.layout, self._part)
        self._sum.add(delta, update.weight, norm=update.norm)
        if self._sketch is not None:
            self._sketch.add(delta, update.weight)
        self._clients.add(update.client)

    def finish(self) -> Aggregate:
        start = self._state
        if self._sketch is not None:
            mean = self._sum.mean()
            state = stepped(self._optimizer, start, self._part, mean)
            averaged = state.vector if self._optimizer.is_plain else start.vector + mean
            error = self._sketch.error(averaged, mean)
        else:
            precise = self._sum.precise_mean()
            state = stepped(self._optimizer, start, self._part, precise)
            error = self._rounding(precise) if self._compares else None
        figures = {"total_weight": float(self._sum.total_weight)}
        return Aggregate(state=state, clients=len(self._clients), exactness_error=error, figures=figures)

    def _rounding(self, mean: DoubleArray) -> float | None:
        start = self._state
        where = start.layout.part_slice(self._part)
        exact = start.vector.astype(np.float64)
        exact[where] += mean
        averaged = start.vector.copy()
        averaged[where] += mean.astype(np.float32)
        return rounding_error(start.layout, averaged, exact)


class _RobustFold:
    def __init__(self, rule: Rule, optimizer: ServerOptimizer, state: GlobalState, part: Part) -> None:
        self._rule = rule
        self._optimizer = optimizer
        self._state = state
        self._part = part
        self._kept = Kept(state.layout, part)

    def add(self, update: Update) -> None:
        self._kept.add(update)

    def finish(self) -> Aggregate:
        deltas, weights = self._kept.in_order()
        centre, figures = self._rule(deltas, weights)
        return Aggregate(
            state=stepped(self._optimizer, self._state, self._part, centre),
            clients=len(deltas),
            exactness_error=None,
            figures=figures,
        )


def stepped(optimizer: ServerOptimizer, state: GlobalState, part: Part, delta: DoubleArray | FloatArray) -> GlobalState:
    """The state after the server's step along a delta of that part."""
    vector, moments = optimizer.step(state, part, delta.astype(np.float32, copy=False))
    return replace(state, vector=vector, moments=moments)
