"""New examples with replayed ones among them, at an exact share, as a source of batches for `LoRATrainer.train`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from neuralforge.continual.dark import Dark, asked
from neuralforge.continual.item import ReplayItem
from neuralforge.continual.sampling import pass_order
from neuralforge.data.batch import Batch
from neuralforge.data.soft import SoftTargets
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.source import EpochSource, examples_digest
from neuralforge_common.errors import DataError, TrainingError

if TYPE_CHECKING:
    from neuralforge.training.trainer import LoRATrainer

SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Items of a buffer as token ids, and by index how they are learnt where that is DER++.

    `stale` counts stored answers that were given on another base or to another cut of the text: they are left out.
    """

    examples: tuple[TokenizedExample, ...]
    soft: Mapping[int, SoftTargets] = field(default_factory=dict)
    stale: int = 0


def replayed(
    items: Iterable[ReplayItem], trainer: LoRATrainer, *, dark: Dark | None = None, without: Collection[str] = ()
) -> Replayed:
    """What a buffer holds, for this trainer; `without` names examples by id, such as the new and the held-out ones."""
    chosen = [item for item in items if item.example.id not in without]
    try:
        tokenized = trainer.tokenize([item.example for item in chosen]) if chosen else []
    except DataError:  # none of them has a target at this length
        tokenized = []
    if dark is None:
        return Replayed(examples=tuple(tokenized))
    soft: dict[int, SoftTargets] = {}
    stale = 0
    for example in tokenized:
        answer = chosen[example.index].answer
        fits = answer is not None and answer.of == asked(example, trainer.base.fingerprint)
        stale += answer is not None and not fits
        soft[example.index] = SoftTargets(
            logits=answer.logits if answer is not None and fits else None, soft=dark.alpha, hard=dark.beta
        )
    return Replayed(examples=tuple(tokenized), soft=soft, stale=stale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """`source=Mix(replayed=…)`: of all examples learnt, `share` are replayed; 0.2 joins one to each four new ones."""

    replayed: Replayed
    share: float = SHARE

    def __call__(
        self, examples: Sequence[TokenizedExample], *, batch_size: int, accumulation: int, seed: int
    ) -> MixedSource:
        """The source of one run; raises TrainingError where the share is not in [0, 1)."""
        new = EpochSource(examples, batch_size=batch_size, accumulation=accumulation, seed=seed)
        return MixedSource(new, self.replayed, share=self.share, seed=seed)


class MixedSource:
    """The batches of `new`, each with the replayed examples that have come due.

    After n new examples ⌊n · share / (1 − share)⌋ replayed ones have joined, whatever the batches' sizes: the share is
    exact over time. They come in passes over all of them, each pass in an order of its own, so that none is learnt
    twice before every other was learnt once. All of it is a function of seed and step.
    """

    def __init__(self, new: EpochSource, old: Replayed, *, share: float, seed: int) -> None:
        if not 0 <= share < 1:
            raise TrainingError(f"the share of replayed examples is a number from 0 to below 1, got {share}")
        part = Fraction(str(share))
        self._ratio = part / (1 - part) if old.examples else Fraction(0)
        self._new = new
        self._seed = seed
        # Indices of their own: caches and soft targets know examples by them.
        first = 1 + max((example.index for example in new.examples), default=-1)
        self._old = tuple(replace(example, index=first + i) for i, example in enumerate(old.examples))
        self._soft = {
            mine.index: old.soft[theirs.index]
            for mine, theirs in zip(self._old, old.examples, strict=True)
            if theirs.index in old.soft
        }
        self._pass: tuple[int, list[int]] = (-1, [])
        self.examples = (*new.examples, *self._old)
        self.steps_per_epoch = new.steps_per_epoch

    def batches(self, step: int) -> list[Batch]:
        """The new examples' micro-batches of this step, with replayed ones at their end."""
        drawn = self._new.drawn(step)
        mixed = []
        for batch in self._new.batches(step):
            due = range(self._due(drawn), self._due(drawn + len(batch.examples)))
            drawn += len(batch.examples)
            joined = tuple(self._nth(number) for number in due)
            soft = {example.index: self._soft[example.index] for example in joined if example.index in self._soft}
            mixed.append(Batch(examples=batch.examples + joined, soft=soft))
        return mixed

    def digest(self) -> str:
        """Of the new examples' source, the replayed examples, the share and how they are learnt."""
        digest = hashlib.blake2b(
            f"mix {self._new.digest()} {self._ratio} {examples_digest(self._old)}".encode(), digest_size=16
        )
        for index, soft in sorted(self._soft.items()):
            digest.update(repr((index, soft.soft, soft.hard)).encode())
            if soft.logits is not None:
                digest.update(soft.logits.ids.tobytes() + soft.logits.values.tobytes())
        return digest.hexdigest()

    def _due(self, new: int) -> int:
        return new * self._ratio.numerator // self._ratio.denominator

    def _nth(self, number: int) -> TokenizedExample:
        turn, place = divmod(number, len(self._old))
        if self._pass[0] != turn:
            self._pass = (turn, pass_order(len(self._old), seed=self._seed, number=turn))
        return self._old[self._pass[1][place]]
