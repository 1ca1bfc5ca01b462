"""Where a run's batches come from: a function of the step, so that a resumed run sees the very same ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from neuralforge.data.batch import Batch, epoch_batches
from neuralforge.data.tokens import TokenizedExample


class BatchSource(Protocol):
    """Batches of a run, step by step. The same step always gives the same batches, whatever was asked before."""

    @property
    def examples(self) -> Sequence[TokenizedExample]:
        """Everything that may be drawn; no two share an index."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every new example once."""
        ...

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        ...

    def digest(self) -> str:
        """What tells this source from another, so that a checkpoint is not resumed with other batches."""
        ...


class SourceMaker(Protocol):
    """Makes the source of a run, once the run's examples and numbers are known."""

    def __call__(
        self, examples: Sequence[TokenizedExample], *, batch_size: int, accumulation: int, seed: int
    ) -> BatchSource:
        """A source whose new examples are these."""
        ...


class EpochSource:
    """Every example once an epoch, in an order drawn from seed and epoch; see `epoch_batches`."""

    def __init__(self, examples: Sequence[TokenizedExample], *, batch_size: int, accumulation: int, seed: int) -> None:
        self.examples = examples
        self.steps_per_epoch = steps_per_epoch(len(examples), batch_size=batch_size, accumulation=accumulation)
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._seed = seed
        self._epoch: tuple[int, list[tuple[int, ...]]] = (-1, [])

    def batches(self, step: int) -> list[Batch]:
        """The next `accumulation` batches of the epoch that this step is in; its last step may have fewer."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self._accumulation
        chosen = self._order(epoch)[first : first + self._accumulation]
        return [Batch(examples=tuple(self.examples[i] for i in batch)) for batch in chosen]

    def drawn(self, step: int) -> int:
        """How many examples all steps before this one have seen."""
        epoch, place = divmod(step, self.steps_per_epoch)
        before = self._order(epoch)[: place * self._accumulation]
        return epoch * len(self.examples) + sum(len(batch) for batch in before)

    def digest(self) -> str:
        """Of the examples' tokens and the three numbers."""
        numbers = f"epochs {self._batch_size} {self._accumulation} {self._seed} "
        return hashlib.blake2b((numbers + examples_digest(self.examples)).encode(), digest_size=16).hexdigest()

    def _order(self, epoch: int) -> list[tuple[int, ...]]:
        if self._epoch[0] != epoch:
            order = epoch_batches(self.examples, batch_size=self._batch_size, seed=self._seed, epoch=epoch)
            self._epoch = (epoch, order)
        return self._epoch[1]


def steps_per_epoch(examples: int, *, batch_size: int, accumulation: int) -> int:
    """Optimizer steps that see every example once; the last ones may be smaller."""
    return math.ceil(math.ceil(examples / batch_size) / accumulation)


def examples_digest(*parts: Iterable[TokenizedExample]) -> str:
    """32 hex digits that depend on every token of these lists, and on where one list ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for example in part:
            digest.update(repr((example.tokens, example.context, example.start)).encode())
        digest.update(b"|")
    return digest.hexdigest()
