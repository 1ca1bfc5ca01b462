"""What the training loop asks of whatever computes losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from neuralforge.data.batch import Batch
from neuralforge.data.soft import TopLogits
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.loss import TokenScores
from neuralforge.training.losses.context import ExampleLoss

EngineName = Literal["auto", "fast", "general", "opacus"]
Int8 = Literal["off", "backward", "full"]
Attention = Literal["auto", "sdpa", "matmul"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How gradients are computed. The defaults are exact; each other value has a measured price.

    `int8`: frozen weights in int8 in backward, or in both passes. `context_gradients=False` drops what context
    tokens pass on through their residual stream. `cache_bytes`: memory for the frozen prefix's activations.
    """

    engine: EngineName = "auto"
    int8: Int8 = "off"
    attention: Attention = "auto"
    context_gradients: bool = True
    gradient_checkpointing: bool = False
    cache_bytes: int = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleScore:
    """One example under the current adapter: summed loss in nats and hits over its code tokens, end mark left out."""

    index: int
    loss: float
    hits: int
    tokens: int


class Engine(Protocol):
    """Losses and gradients of batches, for one model with LoRA attached.

    `apart`: examples that go through together do not change each other's values, rounding included (to 1e-5).
    `loss` takes the place of cross-entropy where it is not None; set it before training.
    """

    name: str
    precision: str
    apart: bool
    loss: ExampleLoss | None

    def accumulate(self, batch: Batch, *, scale: float, seed: int) -> float:
        """Add the gradient of `scale` · summed loss to the flat gradient; return the summed loss in nats.

        The loss is cross-entropy or `loss`, and what `batch.soft` says for the examples that it names.
        """
        ...

    def accumulate_each(
        self,
        batch: Batch,
        rows: torch.Tensor,
        *,
        owners: Sequence[int],
        scales: Sequence[float],
        sides: str = "AB",
        seed: int,
    ) -> list[float]:
        """Add the gradient of `scales[i]` · the summed loss of example i alone to `rows[owners[i]]`.

        `rows` (n, P) is fp32, each row in the order of the flat vector; of matrices that are not of `sides` ("AB", "A",
        "B") nothing is written. Returns the summed losses in nats, in the batch's order. There is no mean over a batch
        anywhere, so no example has a part in another's row.
        """
        ...

    def score(self, batch: Batch) -> list[ExampleScore]:
        """Losses and hits of each example, nothing learnt, no dropout."""
        ...

    def top_logits(self, batch: Batch, *, k: int) -> dict[int, TopLogits]:
        """By example index: the k largest logits at each target, nothing learnt, no dropout."""
        ...

    def unscale(self) -> bool:
        """Undo loss scaling on the flat gradient; False where it overflowed and the step must be skipped."""
        ...


def split_scores(examples: Sequence[TokenizedExample], scores: TokenScores) -> list[ExampleScore]:
    """Scores of concatenated targets -> one score an example, the learnt end mark not counted as code."""
    losses, hits = scores.losses.tolist(), scores.hits.tolist()
    result = []
    first = 0
    for example in examples:
        last = first + example.targets
        counted = last - 1 if example.ended else last
        result.append(
            ExampleScore(
                index=example.index,
                loss=float(sum(losses[first:counted])),
                hits=sum(hits[first:counted]),
                tokens=counted - first,
            )
        )
        first = last
    return result


def split_logits(examples: Sequence[TokenizedExample], ids: torch.Tensor, values: torch.Tensor) -> dict[int, TopLogits]:
    """Ids and values (N, k) of concatenated targets -> those of each example, by its index."""
    numbers = ids.to("cpu", torch.int32).numpy()
    limit = torch.finfo(torch.float16).max
    logits = values.clamp(-limit, limit).to("cpu", torch.float16).numpy()
    result = {}
    first = 0
    for example in examples:
        rows = slice(first, first + example.targets)
        result[example.index] = TopLogits(ids=numbers[rows], values=logits[rows])
        first = rows.stop
    return result


def padded(sequences: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged token lists -> ids (n, longest) filled on the right, and their mask."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[*s, *([fill] * (width - len(s)))] for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], device=device)
    return ids, mask
