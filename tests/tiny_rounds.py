"""Rounds of a federation small enough to be worked out with dense matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralforge_common.layout import AdapterLayout, ModuleShape, Part
from neuralforge_server.aggregation.choose import make_method
from neuralforge_server.aggregation.method import Aggregate, GlobalState, Method, Update
from neuralforge_server.aggregation.serve import served

# Never square, so that a transposed product cannot pass.
LAYOUT = AdapterLayout(
    modules=(
        ModuleShape("layers.0.down", 24, 10),
        ModuleShape("layers.0.up", 10, 17),
        ModuleShape("layers.1.q", 12, 9),
    ),
    rank=4,
)
METHODS = ("mean", "frozen-a", "alternating", "stacking", "residual", "svd", "personal")
OF_DELTAS = ("mean", "frozen-a", "alternating", "personal")
RULES = ("none", "clip", "median", "trimmed-mean", "multi-krum", "geometric-median")
OPTIMIZERS = ("fedavg", "momentum", "nesterov", "fedadam", "fedyogi")

Dense = list[npt.NDArray[np.float64]]


def combinations() -> list[tuple[str, str, str]]:
    """Every method × rule × optimizer that means something."""
    return [
        (method, rule, optimizer)
        for method in METHODS
        for rule in RULES
        for optimizer in OPTIMIZERS
        if (method in OF_DELTAS or rule in ("none", "clip"))
        and (method in (*OF_DELTAS, "residual") or optimizer == "fedavg")
    ]


def method_of(name: str, robust: str = "none", optimizer: str = "fedavg", **more: Any) -> Method:
    return make_method(method=name, robust=robust, optimizer=optimizer, **{"residual_rank": 24} | more)  # type: ignore[arg-type]


def start(method: Method, *, layout: AdapterLayout = LAYOUT, trained: bool = True) -> GlobalState:
    """A state in the middle of a run: B is not zero any more."""
    state = method.initial(layout, seed=3)
    if trained:
        vector = state.vector.copy()
        where = layout.part_slice("B")
        vector[where] = 0.1 * np.random.default_rng(8).standard_normal(layout.size_b, dtype=np.float32)
        state = GlobalState(
            layout=layout, vector=vector, frozen_rank=state.frozen_rank, frozen=state.frozen, moments=state.moments
        )
    return state


def updates_of(
    part: Part,
    count: int = 5,
    *,
    seed: int = 0,
    layout: AdapterLayout = LAYOUT,
    ranks: Sequence[int] | None = None,
    weights: Sequence[int] | None = None,
    scale: float = 0.05,
) -> list[Update]:
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        rank = layout.rank if ranks is None else ranks[index]
        size = layout.with_rank(rank).part_size(part)
        delta = (scale * random.standard_normal(size)).astype(np.float32)
        weight = 1 + 7 * index if weights is None else weights[index]
        found.append(Update(client=f"client-{index}", rank=rank, part=part, delta=delta, weight=weight))
    return found


def run(method: Method, state: GlobalState, updates: Iterable[Update], round_number: int = 1) -> Aggregate:
    fold = method.begin(state, round_number)
    for update in updates:
        fold.add(update)
    return fold.finish()


def dense(layout: AdapterLayout, vector: npt.NDArray[Any]) -> Dense:
    """B·A of every module, (d_out, d_in)."""
    return [b.astype(np.float64) @ a.astype(np.float64) for _, a, b in layout.factors(vector)]


def served_product(state: GlobalState) -> Dense:
    return dense(*served(state))


def client_vector(state: GlobalState, update: Update) -> npt.NDArray[np.float64]:
    """What a client's adapter is after its training, at the federation's rank, in float64."""
    vector = state.vector.astype(np.float64)
    own = state.layout.with_rank(update.rank)
    vector[state.layout.part_slice(update.part)] += own.resized(update.delta, state.layout.rank, part=update.part)
    return vector


def average_product(state: GlobalState, updates: Sequence[Update]) -> Dense:
    """Σ w·B·A / Σ w over the clients' own adapters, plus the frozen product, in float64."""
    total = sum(update.weight for update in updates)
    products = [dense(state.layout, client_vector(state, update)) for update in updates]
    average: Dense = [
        sum(u.weight / total * p[module] for u, p in zip(updates, products, strict=True))  # type: ignore[misc]
        for module in range(len(state.layout.modules))
    ]
    if state.frozen is not None:
        frozen = dense(state.layout.with_rank(state.frozen_rank), state.frozen)
        average = [a + f for a, f in zip(average, frozen, strict=True)]
    return average


def distance(found: Dense, wanted: Dense) -> float:
    """‖found − wanted‖ / ‖wanted‖ over all modules."""
    square = sum(float(np.sum((f - w) ** 2)) for f, w in zip(found, wanted, strict=True))
    return float(np.sqrt(square / sum(float(np.sum(w**2)) for w in wanted)))


def same_bits(one: GlobalState, other: GlobalState) -> bool:
    from neuralforge_server.aggregation.state_file import encode_state

    return encode_state(one) == encode_state(other)
