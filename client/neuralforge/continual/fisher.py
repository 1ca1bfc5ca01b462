"""How much the loss on some data depends on each weight of an adapter: the diagonal of the empirical Fisher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from neuralforge.continual.order import layout_of, to_layout
from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample
from neuralforge_common.adapter import AdapterSpec, FloatArray
from neuralforge_common.errors import TrainingError
from neuralforge_common.layout import AdapterLayout

if TYPE_CHECKING:
    from neuralforge.training.engine import Engine
    from neuralforge.training.flat import FlatParameters
    from neuralforge.training.trainer import Dataset, LoRATrainer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fisher:
    """The diagonal `values` of the Fisher of an adapter at `anchor`, both flat in the order of `layout`."""

    spec: AdapterSpec
    layout: AdapterLayout
    values: FloatArray
    anchor: FloatArray
    examples: int

    @property
    def reach(self) -> float:
        """Σ F · B² over the B: how far, by this Fisher, the adapter stands from its base, where B is zero."""
        b = self.layout.part_slice("B")
        return float(self.values[b].astype(np.float64) @ np.square(self.anchor[b], dtype=np.float64))

    def normalized(self) -> FloatArray:
        """The Fisher over its reach, so that a move as far as the adapter has come from its base costs 1 nat.

        Zero where B is zero: an adapter that has learnt nothing has nothing to keep. The same for an adapter that is
        written otherwise (B/c and c·A) or with another alpha, for a loss in other units, and for more of the same data.
        Made of the Fisher and the adapter alone: where those two are private, it is.
        """
        reach = self.reach
        return np.zeros_like(self.values) if reach == 0 else (self.values / reach).astype(np.float32)


def compute_fisher_information(trainer: LoRATrainer, examples: Dataset, *, limit: int = 200, seed: int = 0) -> Fisher:
    """The mean over examples of the squared gradient of each one's own loss, at the adapter as it stands.

    An example's loss is the mean over its target tokens, so that a long one weighs as much as a short one. Gradients
    are squared example by example: the square of a batch's gradient is another thing, smaller by about its size
    (Kunstner et al. 2019, "Limitations of the Empirical Fisher Approximation", say what this one can and cannot tell).
    `limit` examples are drawn by `seed` where there are more. With dropout it is that of the network as it is trained.

    Raises:
        DataError: there is nothing to learn from.
        TrainingError: a gradient is not finite.
    """
    tokenized = trainer.tokenize(examples)
    chosen = _draw(tokenized, limit, seed)
    # What an earlier call has cached belongs to other examples with the same indices.
    cache = getattr(trainer.engine, "cache_prefix", None)
    if cache is not None:
        cache(())
    diagonal, counted = fisher_diagonal(trainer.engine, trainer.flat, chosen, seed=seed)
    if counted == 0 or not bool(torch.isfinite(diagonal).all()):
        raise TrainingError(
            f"the Fisher information of {len(chosen)} examples is not finite",
            hint="the adapter has diverged: go back to one from before",
        )
    return Fisher(
        spec=trainer.spec,
        layout=layout_of(trainer.flat),
        values=to_layout(trainer.flat, diagonal),
        anchor=to_layout(trainer.flat, trainer.flat.vector),
        examples=counted,
    )


def fisher_diagonal(
    engine: Engine, flat: FlatParameters, examples: Sequence[TokenizedExample], *, seed: int = 0
) -> tuple[torch.Tensor, int]:
    """The mean squared gradient, flat in the model's order and float64, and how many examples it is the mean of.

    Fewer than there are where fp16 overflowed. The flat gradient is zero afterwards.
    """
    # In float64: the sum of many small squares.
    total = torch.zeros(flat.vector.shape, dtype=torch.float64, device=flat.vector.device)
    counted = 0
    for place, example in enumerate(examples):
        flat.gradient.zero_()
        drawn = (seed * 1_000_003 + place) % 2**63
        engine.accumulate(Batch(examples=(example,)), scale=1 / example.targets, seed=drawn)
        if not engine.unscale():
            continue  # the engine has lowered its scale for the next one
        gradient = flat.gradient.to(torch.float64)
        total.addcmul_(gradient, gradient)
        counted += 1
    flat.gradient.zero_()
    return total / max(counted, 1), counted


def _draw(examples: Sequence[TokenizedExample], limit: int, seed: int) -> list[TokenizedExample]:
    if len(examples) <= limit:
        return list(examples)
    generator = np.random.Generator(np.random.Philox(seed))
    return [examples[i] for i in sorted(generator.choice(len(examples), size=limit, replace=False).tolist())]
