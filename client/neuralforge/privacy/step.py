"""The gradient of one private step: drawn units, each clipped, the noised sum (DP-SGD, Abadi et al. 2016)."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample
from neuralforge.privacy.clip import add_clipped, zero_sum
from neuralforge.training.engine import Engine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.gradient import StepGradient
from neuralforge_common.noise import Noise, add_noise

SEED_BITS = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """The sampled Gaussian mechanism's public numbers: σ, C, and the divisor L of the noised sum."""

    noise_multiplier: float
    clip: float
    divisor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A unit that takes part in a step, by its place in the population, and those of its examples that do."""

    unit: int
    examples: tuple[TokenizedExample, ...]


class Drawer(Protocol):
    """Decides who takes part in a step."""

    def draw(self, step: int) -> Sequence[Draw]:
        """The units drawn, each independently of all others; often none."""
        ...


class PrivateGradient:
    """A `GradientSource`: (Σ clipped gradients of the drawn units + C·σ·noise) / L, over the trained values alone.

    A unit's gradient is that of the mean, over its drawn examples, of each example's mean loss a target token:
    it depends on that unit and on nobody else. `charge` is told of each step before anything is drawn, and may raise.
    `noise(n)` gives n standard normals, float64. At most `chunk` examples go through the model at once; a unit with
    more of them is clipped when all have been through. Dropout is seeded by the system's entropy: neither noise nor
    masks can be drawn again from a seed that others know.
    `squares`, where `keeps_squares`, is the sum over all steps so far of this gradient squared, for a Fisher diagonal.
    """

    def __init__(
        self,
        engine: Engine,
        flat: FlatParameters,
        drawer: Drawer,
        mechanism: Mechanism,
        *,
        noise: Noise,
        chunk: int,
        sides: str = "AB",
        trainable: torch.Tensor | None = None,
        charge: Callable[[int], None] = lambda step: None,
        examples: Sequence[TokenizedExample],
        steps_per_epoch: int,
        keeps_squares: bool = False,
    ) -> None:
        self.examples = examples
        self.steps_per_epoch = steps_per_epoch
        self.steps = 0
        self.squares = torch.zeros_like(flat.gradient) if keeps_squares else None
        self._engine = engine
        self._flat = flat
        self._drawer = drawer
        self._mechanism = mechanism
        self._noise = noise
        self._chunk = max(1, chunk)
        self._sides = sides
        self._trained = trainable
        self._charge = charge

    def __call__(self, step: int) -> StepGradient:
        """Charge, draw, clip, sum, noise. With nobody drawn it is noise alone, and `loss` None."""
        self._charge(step)
        draws = [draw for draw in self._drawer.draw(step) if draw.examples]
        gradient = self._flat.gradient
        total = zero_sum(gradient)
        rows = gradient.new_empty(0)
        loss, targets = 0.0, 0
        for group in _groups(draws, self._chunk):
            if len(group) > len(rows):
                rows = gradient.new_empty(len(group), len(gradient))
            mine = rows[: len(group)].zero_()
            losses = self._fill(mine, group)
            for counts, draw, nats in zip(add_clipped(mine, self._mechanism.clip, total), group, losses, strict=True):
                if counts:
                    loss += nats
                    targets += sum(example.targets for example in draw.examples)
        del rows
        self._release(total)
        self.steps += 1
        if self.squares is not None:
            self.squares.addcmul_(gradient, gradient)
        return StepGradient(
            # A run that ends because one example's loss is not finite would tell of that example.
            loss=loss / targets if targets and math.isfinite(loss) else None,
            tokens=sum(example.length for draw in draws for example in draw.examples),
        )

    def digest(self) -> str:
        """Of the public numbers; what is drawn is never the same twice."""
        numbers = f"private {self._mechanism} {self.steps_per_epoch} {self._sides}"
        return hashlib.blake2b(numbers.encode(), digest_size=16).hexdigest()

    def _fill(self, rows: torch.Tensor, group: Sequence[Draw]) -> list[float]:
        """Each unit's gradient into its row of `rows`; the units' summed losses in nats."""
        pairs = [(owner, example) for owner, draw in enumerate(group) for example in draw.examples]
        losses = [0.0] * len(group)
        for first in range(0, len(pairs), self._chunk):
            part = pairs[first : first + self._chunk]
            found = self._engine.accumulate_each(
                Batch(examples=tuple(example for _, example in part)),
                rows,
                owners=[owner for owner, _ in part],
                scales=[1 / (len(group[owner].examples) * example.targets) for owner, example in part],
                sides=self._sides,
                seed=secrets.randbits(SEED_BITS),
            )
            for (owner, _), nats in zip(part, found, strict=True):
                losses[owner] += nats
        if self._trained is not None:
            rows.masked_fill_(~self._trained, 0.0)
        return losses

    def _release(self, total: torch.Tensor) -> None:
        """Into the flat gradient: the trained values of `total`, noised and divided; zero elsewhere."""
        mechanism, gradient, trained = self._mechanism, self._flat.gradient, self._trained
        hidden = total if trained is None else total[trained.to(total.device)]
        spread = mechanism.noise_multiplier * mechanism.clip if mechanism.noise_multiplier > 0 else 0.0
        noised = torch.from_numpy(add_noise(hidden.cpu().numpy(), spread, noise=self._noise)).to(gradient.device)
        if trained is None:
            gradient.copy_(noised)
        else:
            gradient.zero_().masked_scatter_(trained, noised)
        gradient.div_(mechanism.divisor)


def _groups(draws: Sequence[Draw], chunk: int) -> Iterator[list[Draw]]:
    """Units of like length together, as many as have `chunk` examples between them; never half a unit."""
    group: list[Draw] = []
    for draw in sorted(draws, key=lambda d: (max(e.length for e in d.examples), d.unit)):
        if group and sum(len(d.examples) for d in group) + len(draw.examples) > chunk:
            yield group
            group = []
        group.append(draw)
    if group:
        yield group
