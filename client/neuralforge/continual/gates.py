"""The weight of each task's block in an adapter of several: learnt on a few examples, then folded into its B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from neuralforge.continual.order import pairs
from neuralforge.data.batch import evaluation_batches
from neuralforge.data.tokens import TokenizedExample
from neuralforge_common.adapter import AdapterState
from neuralforge_common.errors import AdapterError
from neuralforge_common.layout import AdapterLayout

if TYPE_CHECKING:
    from neuralforge.training.engine import Engine
    from neuralforge.training.flat import FlatParameters
    from neuralforge.training.trainer import Dataset, LoRATrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """One weight for each task's block, in the order in which they were learnt; what they gain on the examples.

    `before` and `after` are the loss in nats a target token, end marks included, with every weight at 1 and with these.
    """

    weights: tuple[float, ...]
    before: float
    after: float


def learn_gates(
    trainer: LoRATrainer, ranks: tuple[int, ...], examples: Dataset, *, steps: int = 10, rate: float = 0.15
) -> Gates:
    """The weight of each block that serves `examples` best, by gradient on the weights; the adapter stays as it is.

    `ranks` is the rank of each task's block. All examples count in every step, so a few (16 to 64) are meant. With
    B_k replaced by w_k · B_k, dL/dw_k is ⟨dL/d(w_k · B_k), B_k⟩, which the flat gradient holds. The answer is the best
    that was met, so it is never worse on these examples than weights of 1; where there is dropout, with the one that
    they were learnt with.

    Raises:
        AdapterError: the blocks do not make up the adapter's rank.
    """
    _bounds(ranks, trainer.spec.rank)
    return search_gates(trainer.engine, trainer.flat, ranks, trainer.tokenize(examples), steps=steps, rate=rate)


def search_gates(
    engine: Engine,
    flat: FlatParameters,
    ranks: tuple[int, ...],
    tokenized: Sequence[TokenizedExample],
    *,
    steps: int = 10,
    rate: float = 0.15,
) -> Gates:
    """`learn_gates` for an adapter that stands in an engine, whoever trains it."""
    bounds = _bounds(ranks, sum(ranks))
    cache = getattr(engine, "cache_prefix", None)
    if cache is not None:
        cache(())  # what an earlier call has cached belongs to other examples with the same indices
    whole = flat.vector.detach().clone()
    weights = torch.nn.Parameter(torch.ones(len(ranks)))
    optimizer = torch.optim.Adam([weights], lr=rate)
    met: list[tuple[float, tuple[float, ...]]] = []
    try:
        for _ in range(steps + 1):
            values = weights.detach()
            flat.load(scaled(flat, whole, bounds, values.tolist()))
            loss, weights.grad = gate_slopes(engine, flat, whole, bounds, tokenized)
            met.append((loss, tuple(values.tolist())))
            optimizer.step()
    finally:
        flat.load(whole)
        flat.gradient.zero_()
    best, chosen = min(met, key=lambda found: found[0])
    return Gates(weights=chosen, before=met[0][0], after=best)


def gated(state: AdapterState, ranks: tuple[int, ...], weights: tuple[float, ...]) -> AdapterState:
    """The adapter with each block's weight folded into its B; raises AdapterError where the blocks are not its own."""
    layout = AdapterLayout.of(state)
    bounds = _bounds(ranks, layout.rank)
    if len(weights) != len(ranks):
        raise AdapterError(f"wanted one weight for each of the {len(ranks)} blocks, got {len(weights)}")
    vector = layout.flatten(state)
    for _, _, b in layout.factors(vector):
        for (first, last), weight in zip(bounds, weights, strict=True):
            b[:, first:last] *= np.float32(weight)
    return layout.unflatten(vector)


def _bounds(ranks: tuple[int, ...], rank: int) -> list[tuple[int, int]]:
    if not ranks or min(ranks) < 1 or sum(ranks) != rank:
        raise AdapterError(f"the blocks' ranks {', '.join(map(str, ranks))} do not make up the adapter's rank {rank}")
    return list(pairwise(accumulate(ranks, initial=0)))


def scaled(
    flat: FlatParameters, vector: torch.Tensor, bounds: Sequence[tuple[int, int]], weights: Sequence[float]
) -> torch.Tensor:
    """A flat vector with the B of each block, components first to last, times its weight."""
    result = vector.clone()
    for _, place in pairs(flat):
        b = place.of(result)
        for (first, last), weight in zip(bounds, weights, strict=True):
            b[:, first:last] *= weight
    return result


def gate_slopes(
    engine: Engine,
    flat: FlatParameters,
    whole: torch.Tensor,
    bounds: Sequence[tuple[int, int]],
    examples: Sequence[TokenizedExample],
) -> tuple[float, torch.Tensor]:
    """L where `flat` stands and its dL/dw of every block, L being the mean over target tokens, `whole` all w at 1.

    The slopes are zero where fp16 overflowed: the engine has lowered its scale for the next call.
    """
    targets = sum(example.targets for example in examples)
    flat.gradient.zero_()
    total = 0.0
    for batch in evaluation_batches(examples, batch_size=8):
        total += engine.accumulate(batch, scale=1 / targets, seed=0)
    usable = engine.unscale()
    slopes = torch.zeros(len(bounds))
    for _, place in pairs(flat):
        products = (place.of(flat.gradient) * place.of(whole)).sum(dim=0)
        slopes += torch.tensor([float(products[first:last].sum()) for first, last in bounds])
    return total / targets, slopes if usable else torch.zeros(len(bounds))
