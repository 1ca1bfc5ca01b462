"""The one-run audit: canaries that fair coins let into one real training, and a guess which (Steinke et al. 2023).

What is audited is the trained adapter as a whole, the way it will be released: who guesses sees its losses alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuralforge.data.example import Example
from neuralforge.evaluation.metrics import score_all
from neuralforge.privacy.audit.bounds import Scores
from neuralforge.privacy.audit.guesses import guess, lower_bound, power
from neuralforge.privacy.audit.report import Bound, Findings, each_confidence
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.noise import random_words
from neuralforge_common.privacy import LEVELS, PrivacyStatement

Learn = Callable[[LoRATrainer, list[Example]], PrivacyStatement]
"""Train the throw-away adapter on these examples and say what was spent."""

GUESSED = 0.5
"""Share of the canaries that is guessed; fixed, as one chosen by its result would have to be paid for."""

CONTEXT_TOKENS, COMPLETION_TOKENS = 8, 16


def audit_run(
    trainer: LoRATrainer, examples: Sequence[Example], *, canaries: int, learn: Learn, confidence: float
) -> Findings:
    """Train once on `examples` and about half of so many canaries; bound ε by how many are guessed right.

    A canary's score is by how much its loss has fallen. The adapter of `trainer` is spent afterwards.
    """
    made = make_canaries(trainer.base.tokenizer, canaries)
    included = (random_words(canaries) & np.uint64(1)).astype(np.bool_)
    before = _losses(trainer, made)
    claimed = learn(trainer, [*examples, *(canary for canary, goes in zip(made, included, strict=True) if goes)])
    guesses = guess(before - _losses(trainer, made), included, share=GUESSED)
    each = each_confidence(confidence)
    return Findings(
        title="one-run canary audit of a whole training",
        audited={
            "engine": trainer.engine.name,
            "unit": LEVELS[claimed.unit],
            "steps": claimed.steps,
            "examples": len(examples),
            "canaries": canaries,
            "guessed": guesses.made,
            "guessed right": guesses.right,
        },
        bounds=(
            Bound(
                name="the trained adapter",
                lower=lower_bound(guesses, delta=claimed.delta, confidence=each),
                claimed=claimed.epsilon,
                power=power(guesses, delta=claimed.delta, confidence=each),
            ),
        ),
    )


def make_canaries(tokenizer: Any, count: int) -> list[Example]:
    """Random text after random text, each of a file and a repository of its own: nothing but itself tells of it."""
    generator = np.random.default_rng()
    known = np.array(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))

    def text(tokens: int) -> str:
        return str(tokenizer.decode(generator.choice(known, size=tokens).tolist()))

    return [
        Example(
            context=text(CONTEXT_TOKENS), completion=text(COMPLETION_TOKENS), repo=f"canary-{i}", path=f"canary-{i}"
        )
        for i in range(count)
    ]


def _losses(trainer: LoRATrainer, examples: Sequence[Example]) -> Scores:
    return np.array([score.loss for score in score_all(trainer.engine, trainer.tokenize(examples))])
