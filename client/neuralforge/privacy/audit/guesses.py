"""How many canaries of one run may be guessed right under (ε, δ)-DP (Steinke, Nasr & Jagielski 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from neuralforge.privacy.audit.bounds import Scores, binomial

HIGHEST = 100.0
"""No ε above this is looked for: as many guesses as a machine can count do not tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """Of `canaries` whose fair coins decided who takes part, `made` were guessed, `right` of them as it was."""

    canaries: int
    made: int
    right: int


def guess(scores: Scores, included: np.ndarray[tuple[int], np.dtype[np.bool_]], *, share: float) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, as many each; abstain from the rest.

    `share` of all is guessed: fixed beforehand, as a share chosen by its result would need a correction.
    """
    each = max(1, round(share * scores.size / 2))
    order = np.argsort(scores, kind="stable")
    right = np.count_nonzero(included[order[-each:]]) + np.count_nonzero(~included[order[:each]])
    return Guesses(canaries=scores.size, made=2 * each, right=int(right))


def p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """The most that the probability of so many right guesses can be under (ε, δ)-DP (Theorem 5.2).

    β + 2·m·δ·α: β is the binomial tail of guesses that are each right with probability e^ε / (1 + e^ε); α, the
    largest mean of its i values below `right`, over i, is what δ may add.
    """
    below = binomial(guesses.made, 1 / (1 + math.exp(-epsilon)))
    tail = below[guesses.right :].sum()
    near = np.cumsum(below[: guesses.right][::-1]) / np.arange(1, guesses.right + 1)
    added = 2 * guesses.canaries * delta * near.max(initial=0.0)
    return float(min(1.0, tail + added))


def lower_bound(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """The largest ε that so many right guesses refute at this confidence; 0 where they refute none."""
    low, high = 0.0, HIGHEST
    if p_value(guesses, epsilon=low, delta=delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = p_value(guesses, epsilon=middle, delta=delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def power(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """The highest bound that as many guesses could have given: all of them right."""
    perfect = Guesses(canaries=guesses.canaries, made=guesses.made, right=guesses.made)
    return lower_bound(perfect, delta=delta, confidence=confidence)
