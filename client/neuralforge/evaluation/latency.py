"""How long completions take: base and adapter, or two adapters, in turn on the same contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from neuralforge.data.example import Example
from neuralforge.evaluation.generation import Generation
from neuralforge.evaluation.intervals import Interval, grouped_quantile_interval, quantile_interval

QUANTILES = (0.5, 0.95, 0.99)


class Writer(Protocol):
    """Writes exactly so many tokens after an example's context."""

    def __call__(self, example: Example, max_new_tokens: int, /) -> Generation:
        """Write."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds of one writer: a row a completion, each with its first token and the gaps between the others."""

    completions: tuple[float, ...]
    first: tuple[float, ...]
    gaps: tuple[tuple[float, ...], ...]
    tokens: int

    @property
    def token(self) -> tuple[float, ...]:
        """By completion: mean milliseconds a token, the first one with all of the context in it."""
        return tuple(total / self.tokens for total in self.completions)


def measure(
    writers: Sequence[Writer], examples: Sequence[Example], *, max_new_tokens: int = 16, rounds: int = 1
) -> list[Times]:
    """Times of each writer over the examples.

    Every writer writes the first example once before anything is timed. Writers take turns sample by sample, and the
    one that begins changes: what the machine does meanwhile falls on all of them. Of several rounds the fastest counts,
    sample by sample: other work only ever adds to a time.
    """
    found: list[list[Generation]] = [[] for _ in writers]
    for writer in writers if examples else ():
        writer(examples[0], max_new_tokens)
    for i, example in enumerate(examples):
        tries: list[list[Generation]] = [[] for _ in writers]
        for turn in range(rounds):
            order = range(len(writers))
            for who in order if (i + turn) % 2 == 0 else reversed(order):
                tries[who].append(writers[who](example, max_new_tokens))
        for who, made in enumerate(tries):
            found[who].append(min(made, key=lambda g: g.seconds))
    return [_times(generations, max_new_tokens) for generations in found]


def quantiles(times: Times, *, seed: int) -> dict[str, dict[str, tuple[float, Interval]]]:
    """completion, first_token, token -> p50, p95, p99 with its interval, in milliseconds.

    Of completions and first tokens by order statistics; of tokens (the gaps after the first) by resampling whole
    completions.
    """
    result: dict[str, dict[str, tuple[float, Interval]]] = {}
    for name, values in (("completion", times.completions), ("first_token", times.first)):
        result[name] = {
            f"p{100 * q:.0f}": (float(np.quantile(values, q)), quantile_interval(values, q)) for q in QUANTILES
        }
    pool = [gap for gaps in times.gaps for gap in gaps]
    if pool:
        result["token"] = {
            f"p{100 * q:.0f}": (float(np.quantile(pool, q)), grouped_quantile_interval(times.gaps, q, seed=seed))
            for q in QUANTILES
        }
    return result


def _times(generations: Sequence[Generation], tokens: int) -> Times:
    return Times(
        completions=tuple(1000 * g.seconds for g in generations),
        first=tuple(1000 * g.times[0] for g in generations),
        gaps=tuple(tuple(1000 * (b - a) for a, b in zip(g.times, g.times[1:], strict=False)) for g in generations),
        tokens=tokens,
    )
