"""Two adapters on the same samples, figure by figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from neuralforge.data.example import Example
from neuralforge.evaluation.benchmark import LATENCY_CONTEXTS, clusters_by_file, writer_of
from neuralforge.evaluation.intervals import Interval, total
from neuralforge.evaluation.latency import measure
from neuralforge.evaluation.metrics import summarize
from neuralforge.evaluation.pair import Pair
from neuralforge.evaluation.paired import (
    Difference,
    beyond,
    hits_interval,
    mcnemar,
    mcnemar_samples_needed,
    paired_difference,
    samples_needed,
    sign_flip,
)
from neuralforge.evaluation.verdict import Compared, decide
from neuralforge.evaluation.written import Written, write_all

SPEED_MARGIN = 0.05
"""A difference in speed up to this is called none: caches and places in memory alone make as much."""
SPEED_ROUNDS = 2
METRICS = ("accuracy", "perplexity", "exact_match", "edit_similarity", "syntax", "speed", "memory")


def compare(
    pair: Pair,
    examples: Sequence[Example],
    *,
    metrics: Sequence[str],
    generate: int,
    alpha: float = 0.05,
    seed: int = 0,
) -> list[Compared]:
    """Rows of figures with their verdicts.

    accuracy: of tokens, and exact match of what is written for the first `generate` examples; perplexity; the other
    figures of what is written; speed: milliseconds a token, in turn; memory: weights in MB.
    """
    wanted = [name for name in METRICS if name in metrics]
    if "accuracy" in wanted and "exact_match" not in wanted:
        wanted.insert(wanted.index("accuracy") + 1, "exact_match")
    # What a single row must reach in the first step of Holm's procedure.
    strict = alpha / max(1, len([name for name in wanted if name != "memory"]))
    rows: list[Compared] = []
    if {"accuracy", "perplexity"} & set(wanted):
        rows += _scored(pair, examples, wanted, alpha=strict, seed=seed)
    if {"exact_match", "edit_similarity", "syntax"} & set(wanted):
        rows += _written(pair, examples[:generate], wanted, alpha=strict, seed=seed)
    if "speed" in wanted:
        rows.append(_speed(pair, examples[:LATENCY_CONTEXTS], alpha=strict, seed=seed))
    if "memory" in wanted:
        a, b = (opened.weight_bytes()[1] / 1e6 for opened in (pair.a, pair.b))
        rows.append(Compared(metric="memory", a=a, b=b, change=a / b - 1, interval=None, sign=-1, samples=1, p=None))
    return decide(rows, alpha=alpha)


def _scored(
    pair: Pair, examples: Sequence[Example], wanted: Sequence[str], *, alpha: float, seed: int
) -> list[Compared]:
    a, b = (opened.score(examples, adapter=True) for opened in (pair.a, pair.b))
    clusters, _ = clusters_by_file([examples[score.index] for score in a])
    tokens = [score.tokens for score in a]
    rows = []
    if "accuracy" in wanted:
        found = paired_difference([s.hits for s in a], [s.hits for s in b], tokens, clusters, seed=seed)
        figures = summarize(a).accuracy, summarize(b).accuracy
        rows.append(_tested("accuracy", *figures, found, sign=1, alpha=alpha))
    if "perplexity" in wanted:
        found = paired_difference([s.loss for s in a], [s.loss for s in b], tokens, clusters, seed=seed)
        rows.append(_ratio("perplexity", summarize(a).perplexity, summarize(b).perplexity, found, alpha=alpha))
    return rows


def _written(
    pair: Pair, examples: Sequence[Example], wanted: Sequence[str], *, alpha: float, seed: int
) -> list[Compared]:
    a, b = (write_all(opened, examples, adapter=True) for opened in (pair.a, pair.b))
    rows = []
    if "exact_match" in wanted:
        values = [float(w.exact) for w in a], [float(w.exact) for w in b]
        rows.append(_hits("exact_match", *values, examples, alpha=alpha, seed=seed))
    if "edit_similarity" in wanted:
        clusters, _ = clusters_by_file(examples)
        mine, other = [w.similarity for w in a], [w.similarity for w in b]
        found = paired_difference(mine, other, np.ones(len(a)), clusters, seed=seed)
        rows.append(_tested("edit_similarity", _mean(mine), _mean(other), found, sign=1, alpha=alpha))
    if "syntax" in wanted:
        judged = [(x, y) for x, y in zip(a, b, strict=True) if x.syntax is not None and y.syntax is not None]
        if judged:
            values = [_valid(x) for x, _ in judged], [_valid(y) for _, y in judged]
            rows.append(_hits("syntax", *values, [examples[x.index] for x, _ in judged], alpha=alpha, seed=seed))
    return rows


def _hits(
    metric: str, a: list[float], b: list[float], examples: Sequence[Example], *, alpha: float, seed: int
) -> Compared:
    clusters, by_file = clusters_by_file(examples)
    found = paired_difference(a, b, np.ones(len(a)), clusters, seed=seed)
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    p, interval = mcnemar(only_a, only_b), hits_interval(only_a, only_b, len(a))
    if by_file and only_a + only_b:  # McNemar takes samples as independent
        p = max(p, sign_flip(total(np.asarray(a) - np.asarray(b), clusters), seed=seed))
        interval = found.interval
    return Compared(
        metric=metric,
        a=_mean(a),
        b=_mean(b),
        change=found.value,
        interval=interval,
        sign=1,
        samples=len(a),
        p=p,
        needed=mcnemar_samples_needed(only_a, only_b, len(a), alpha=alpha),
    )


def _speed(pair: Pair, examples: Sequence[Example], *, alpha: float, seed: int) -> Compared:
    a, b = measure([writer_of(pair.a), writer_of(pair.b)], examples, rounds=SPEED_ROUNDS)
    # Of ratios: a slow machine, or a long context, makes both slower by a factor.
    mine, other = np.log(a.token), np.log(b.token)
    found = paired_difference(mine, other, np.ones(len(examples)), np.arange(len(examples)), seed=seed)
    row = _ratio("speed", float(np.median(a.token)), float(np.median(b.token)), found, alpha=alpha)
    if pair.same_shapes:
        # The same multiplications: what is measured between the two is the machine, however often it is repeated.
        return replace(row, p=1.0, needed=None)
    p = max(found.p, beyond(mine - other, margin=math.log1p(SPEED_MARGIN), seed=seed))
    return replace(row, p=p, needed=row.needed if abs(found.value) > math.log1p(SPEED_MARGIN) else None)


def _tested(metric: str, a: float, b: float, found: Difference, *, sign: int, alpha: float) -> Compared:
    return Compared(
        metric=metric,
        a=a,
        b=b,
        change=found.value,
        interval=found.interval,
        sign=sign,
        samples=found.samples,
        p=found.p,
        needed=samples_needed(found, alpha=alpha),
    )


def _ratio(metric: str, a: float, b: float, found: Difference, *, alpha: float) -> Compared:
    """Of a difference of logarithms; less is better."""
    interval = Interval(math.expm1(found.interval.low), math.expm1(found.interval.high))
    row = _tested(metric, a, b, found, sign=-1, alpha=alpha)
    return replace(row, change=math.expm1(found.value), interval=interval)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _valid(row: Written) -> float:
    return float(bool(row.syntax))
