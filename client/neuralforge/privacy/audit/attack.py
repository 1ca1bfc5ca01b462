"""The white-box attacker on one private step: knows everything but whether the canary takes part, and sees the sum.

The step is `PrivateGradient` itself, with the engine, the sampler and the noise of a real run. The attacker of DP's
definition chooses the canary's gradient (Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning",
§4), measures without noise what the canary does to the sum, and projects the noised sums on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from neuralforge.data.batch import Batch
from neuralforge.privacy.audit.bounds import Scored, Scores, lowest_rate
from neuralforge.privacy.audit.canaries import LOUDNESS, Crowd, Remembering, Staged, Unit
from neuralforge.privacy.audit.parts import StepClaim, StepParts
from neuralforge.privacy.sampling import Population
from neuralforge.privacy.step import Drawer, PrivateGradient
from neuralforge.training.engine import Engine
from neuralforge_common.errors import PrivacyError

Units = Sequence[Unit]
Halves = tuple[Scored, Scored]
"""Draws that choose the attack, and draws that judge it."""

MANY = 1024
"""All examples of a step go through the model at once, where they could meet."""

LUCK = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`step` and each that is a multiple of `every` later; in so many of those that were watched the canary was."""

    step: int
    every: int
    hits: int
    trials: int

    def rate(self, *, miss: float) -> float:
        """A lower bound on how often the canary is drawn, wrong with this probability."""
        return lowest_rate(self.hits, self.trials, miss=miss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Of `draws` noised sums: the variance of a value of the noise over (σC)², and how many sums came twice."""

    draws: int
    variance: float
    repeated: int


class Attack:
    """The canary in its crowd, and the direction in which it moves the sum.

    Raises:
        PrivacyError: it moves nothing.
    """

    def __init__(self, parts: StepParts, claim: StepClaim, crowd: Crowd) -> None:
        self._claim = claim
        self._crowd = crowd
        self._spread = claim.noise_multiplier * claim.clip
        self._plain = replace(parts, engine=cast(Engine, Remembering(parts.engine)))
        self.trained = parts.flat.vector.numel() if parts.trainable is None else int(parts.trainable.sum())
        # The others are just not clipped: clipping hides nothing of what happens to them.
        theirs = _gradient_of(crowd.others, parts)
        norm = float(torch.linalg.vector_norm(theirs))
        staged = Staged(
            parts.engine,
            canary=crowd.canary,
            gradient=_apart_from(theirs, parts.trainable) * (LOUDNESS * claim.clip),
            quieter=claim.clip / norm if norm > 0 else 1.0,
        )
        self._parts = replace(parts, engine=cast(Engine, Remembering(staged)))
        self._without = _quiet_sum(self._parts, crowd.others)
        moved = _quiet_sum(self._parts, crowd.everybody) - self._without
        distance = float(torch.linalg.vector_norm(moved))
        if not distance > 0:
            raise PrivacyError(
                f"the audit is blind: a gradient of norm {LOUDNESS:g} C leaves the sum where it was",
                hint="nothing is learnt from anybody, which is a defect: please report it",
            )
        self._seen = moved / distance

    def moves(self) -> dict[str, float]:
        """By how much a unit more moves the sum, over C: whatever its gradient, its length, its number of texts."""
        canary = self._crowd.canary
        units = {
            "with a loud gradient": (self._parts, canary),
            "with several texts": (self._plain, canary),
            "with a long text": (self._plain, canary[:1]),
            "with a short text": (self._plain, canary[1:2]),
        }
        found = {}
        for what, (parts, unit) in units.items():
            moved = _quiet_sum(parts, (*self._crowd.others, unit)) - _quiet_sum(parts, self._crowd.others)
            found[what] = float(torch.linalg.vector_norm(moved)) / self._claim.clip
        return found

    def always(self, draws: int) -> tuple[Halves, Noise]:
        """Scores of steps that draw everybody, half of them with the canary; and the noise of the other half."""
        worlds: list[Scores] = []
        squares = 0.0
        for units in (self._crowd.others, self._crowd.everybody):
            drawer = self._parts.sampler(_population(units, 1.0))
            scores = np.empty(draws // 2)
            for i, total in enumerate(_sums(self._parts, drawer, range(draws // 2))):
                away = (total - self._without) / self._spread
                scores[i] = float(away @ self._seen)
                squares += float(away @ away) if units is self._crowd.others else 0.0
            worlds.append(scores)
        without = worlds[0]
        noise = Noise(
            draws=without.size,
            variance=squares / (without.size * self.trained),
            repeated=without.size - np.unique(without).size,
        )
        return _halves(worlds), noise

    def watch(self, draws: int) -> Place:
        """When the canary is drawn most often, in any step or at one place of each epoch; and how often it really is.

        Places are alike where each step is drawn anew. Where an order is fixed, whoever knows it looks at one step.
        One half of the epochs chooses, the other counts.
        """
        epoch = round(1 / self._claim.sample_rate)
        epochs = max(4, draws // epoch)
        drawer = self._parts.sampler(_population(self._crowd.everybody, self._claim.sample_rate))
        last = len(self._crowd.others)
        drawn = [any(draw.unit == last for draw in drawer.draw(step)) for step in range(epochs * epoch)]
        by_epoch = np.array(drawn).reshape(epochs, epoch)
        first, second = by_epoch[: epochs // 2], by_epoch[epochs // 2 :]
        busiest = int(np.argmax(first.sum(0)))

        def at(place: int | None, epochs: npt.NDArray[np.bool_]) -> Place:
            watched = epochs if place is None else epochs[:, place]
            step, every = (0, 1) if place is None else (place, epoch)
            return Place(step=step, every=every, hits=int(watched.sum()), trials=watched.size)

        # The busiest of many places is mostly so by luck: it has to be so beyond doubt.
        return at(max((None, busiest), key=lambda place: at(place, first).rate(miss=LUCK)), second)

    def sampled(self, draws: int, place: Place) -> Halves:
        """Scores of steps with the real sampler, at that place; half of them with the canary."""
        steps = range(place.step, place.step + draws // 2 * place.every, place.every)
        worlds: list[Scores] = []
        for units in (self._crowd.others, self._crowd.everybody):
            drawer = self._parts.sampler(_population(units, self._claim.sample_rate))
            sums = _sums(self._parts, drawer, steps)
            worlds.append(np.array([float(total @ self._seen) / self._spread for total in sums]))
        return _halves(worlds)


def _gradient_of(others: Units, parts: StepParts) -> torch.Tensor:
    """What each of the others has: they all have the same text."""
    examples = tuple(unit[0] for unit in others)
    rows = parts.flat.gradient.new_zeros(len(examples), parts.flat.vector.numel())
    parts.engine.accumulate_each(
        Batch(examples=examples),
        rows,
        owners=range(len(examples)),
        scales=[1 / example.targets for example in examples],
        sides=parts.sides,
        seed=0,
    )
    return rows[0] if parts.trainable is None else rows[0] * parts.trainable


def _apart_from(theirs: torch.Tensor, trained: torch.Tensor | None) -> torch.Tensor:
    """A unit vector at right angles to `theirs`, zero where nothing is trained."""
    direction = torch.from_numpy(np.random.default_rng().standard_normal(len(theirs))).to(theirs)
    if trained is not None:
        direction = direction * trained
    squared = float(theirs @ theirs)
    if squared > 0:
        direction = direction - theirs * (float(theirs @ direction) / squared)
    direction.div_(torch.linalg.vector_norm(direction))
    return direction


def _quiet_sum(parts: StepParts, units: Units) -> torch.Tensor:
    quiet = replace(parts, mechanism=replace(parts.mechanism, noise_multiplier=0.0))
    (total,) = _sums(quiet, parts.sampler(_population(units, 1.0)), range(1))
    return total


def _sums(parts: StepParts, drawer: Drawer, steps: range) -> Iterator[torch.Tensor]:
    """The noised sums of real steps, float64 on the CPU: float32 scores would come twice by chance."""
    gradient = PrivateGradient(
        parts.engine,
        parts.flat,
        drawer,
        parts.mechanism,
        noise=parts.noise,
        chunk=MANY,
        sides=parts.sides,
        trainable=parts.trainable,
        examples=(),
        steps_per_epoch=len(steps),
    )
    for step in steps:
        gradient(step)
        yield parts.flat.gradient.to("cpu", torch.float64) * parts.mechanism.divisor


def _population(units: Units, rate: float) -> Population:
    return Population(units={str(place): unit for place, unit in enumerate(units)}, sample_rate=rate)


def _halves(worlds: Sequence[Scores]) -> Halves:
    middle = worlds[0].size // 2
    return (
        Scored(without=worlds[0][:middle], with_it=worlds[1][:middle]),
        Scored(without=worlds[0][middle:], with_it=worlds[1][middle:]),
    )
