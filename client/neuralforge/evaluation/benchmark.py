"""The guide's figures and those of what is written, of base and adapter side by side, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralforge.data.example import Example
from neuralforge.evaluation.generation import Generation
from neuralforge.evaluation.intervals import (
    Interval,
    clusters_of,
    quantile_interval,
    ratio_interval,
    share_interval,
)
from neuralforge.evaluation.latency import Times, Writer, measure, quantiles
from neuralforge.evaluation.memory import PeakMemory
from neuralforge.evaluation.metrics import summarize
from neuralforge.evaluation.opened import OpenedAdapter
from neuralforge.evaluation.written import Written, without_grammar, write_all
from neuralforge.training.engine import ExampleScore

LATENCY_CONTEXTS = 24
MEMORY_EXAMPLES = 8
MEMORY_ROUNDS = 6
"""The fewest of which the smallest and the largest hold a median at 95 %."""
WRITTEN = ("exact_match", "edit_similarity", "syntax")


def benchmark(
    opened: OpenedAdapter,
    examples: Sequence[Example],
    *,
    metrics: Sequence[str],
    seed: int = 0,
    generate: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Each metric -> {"base": …, "adapter": …, "interval": {"base": [low, high], "adapter": …}, …}.

    accuracy: share of next tokens that were the most likely one; perplexity: of completion tokens; latency: median
    milliseconds a generated token, with quantiles of completions, tokens and first tokens; memory: weights in MB (10⁶
    bytes), and the process at its peak; exact_match, edit_similarity, syntax: of what is written for the first
    `generate` examples (all by default). Intervals are at 95 %. An end that the data do not bound is infinite.
    """
    figures: dict[str, dict[str, Any]] = {}
    if {"accuracy", "perplexity"} & set(metrics):
        figures |= _scored(opened, examples, seed=seed)
    if "latency" in metrics:
        figures["latency"] = _latency(opened, examples[:LATENCY_CONTEXTS], seed=seed)
    if "memory" in metrics:
        figures["memory"] = _memory(opened, examples[:MEMORY_EXAMPLES])
    if set(WRITTEN) & set(metrics):
        figures |= _written(opened, examples[:generate], seed=seed)
    return {metric: figures[metric] for metric in metrics}


def writer_of(opened: OpenedAdapter, *, adapter: bool = True) -> Writer:
    """What `measure` times: this adapter, or its base."""

    def write(example: Example, max_new_tokens: int) -> Generation:
        return opened.complete(
            example.context, suffix=example.suffix, adapter=adapter, max_new_tokens=max_new_tokens, to_the_end=True
        )

    return write


def clusters_by_file(examples: Sequence[Example]) -> tuple[NDArray[np.intp], bool]:
    """A cluster number for each example, as `clusters_of` says, by repository and path."""
    return clusters_of([f"{e.repo}\n{e.path}" if e.path else "" for e in examples])


def score_intervals(
    scores: Sequence[ExampleScore], examples: Sequence[Example], *, seed: int
) -> tuple[Interval, Interval, bool]:
    """Of accuracy and of perplexity, and whether whole files were resampled."""
    clusters, by_file = clusters_by_file([examples[s.index] for s in scores])
    tokens = [s.tokens for s in scores]
    accuracy = ratio_interval([s.hits for s in scores], tokens, clusters, seed=seed)
    loss = ratio_interval([s.loss for s in scores], tokens, clusters, seed=seed)
    return accuracy, Interval(_exp(loss.low), _exp(loss.high)), by_file


def written_figures(
    rows: Sequence[Written], examples: Sequence[Example], *, seed: int
) -> dict[str, tuple[float, Interval]]:
    """exact_match, line_match, edit_similarity, syntax -> figure and interval; syntax where anything can be judged."""
    found: dict[str, tuple[float, Interval]] = {}
    clusters, by_file = clusters_by_file([examples[row.index] for row in rows])
    groups = clusters if by_file else None
    for name, hits in (("exact_match", [row.exact for row in rows]), ("line_match", [row.line for row in rows])):
        found[name] = float(np.mean(hits)), share_interval(hits, groups)
    similarity = [row.similarity for row in rows]
    ones = np.ones(len(rows))
    found["edit_similarity"] = float(np.mean(similarity)), ratio_interval(similarity, ones, clusters, seed=seed)
    judged = [row for row in rows if row.syntax is not None]
    if judged:
        clusters, by_file = clusters_by_file([examples[row.index] for row in judged])
        valid = [bool(row.syntax) for row in judged]
        found["syntax"] = float(np.mean(valid)), share_interval(valid, clusters if by_file else None)
    else:
        found["syntax"] = math.nan, Interval(math.nan, math.nan)
    return found


def _scored(opened: OpenedAdapter, examples: Sequence[Example], *, seed: int) -> dict[str, dict[str, Any]]:
    accuracy: dict[str, Any] = {"interval": {}}
    perplexity: dict[str, Any] = {"interval": {}}
    for who in ("base", "adapter"):
        scores = opened.score(examples, adapter=who == "adapter")
        whole = summarize(scores)
        accuracy[who], perplexity[who] = whole.accuracy, whole.perplexity
        accuracy["interval"][who], perplexity["interval"][who], by_file = score_intervals(scores, examples, seed=seed)
        accuracy["resampled"] = perplexity["resampled"] = "files" if by_file else "samples"
    return {"accuracy": accuracy, "perplexity": perplexity}


def _latency(opened: OpenedAdapter, examples: Sequence[Example], *, seed: int) -> dict[str, Any]:
    base, adapted = measure([writer_of(opened, adapter=False), writer_of(opened)], examples)
    figure: dict[str, Any] = {"interval": {}, "quantiles": {}, "completions": len(examples)}
    for who, times in (("base", base), ("adapter", adapted)):
        figure[who] = float(np.median(times.token))
        figure["interval"][who] = quantile_interval(times.token, 0.5)
        figure["quantiles"][who] = _named(times, seed=seed)
    return figure


def _named(times: Times, *, seed: int) -> dict[str, Any]:
    return {
        of: {name: {"ms": value, "interval": interval} for name, (value, interval) in found.items()}
        for of, found in quantiles(times, seed=seed).items()
    }


def _memory(opened: OpenedAdapter, examples: Sequence[Example]) -> dict[str, Any]:
    """Weights are counted; the peak is the median of so many runs of the same work that its interval has two ends."""
    base_bytes, adapter_bytes = opened.weight_bytes()
    peak: dict[str, dict[str, Any]] = {}
    for who in ("base", "adapter"):
        seen: dict[str, list[float]] = {"process": [], "device": []}
        for _ in range(MEMORY_ROUNDS):
            with PeakMemory(device=opened.device) as watched:
                opened.score(examples, adapter=who == "adapter")
                opened.complete(examples[0].context, adapter=who == "adapter", max_new_tokens=16)
            seen["process"].append(watched.bytes / 1e6)
            if watched.device_bytes is not None:
                seen["device"].append(watched.device_bytes / 1e6)
        peak[who] = {
            kind: {"mb": float(np.median(values)), "interval": quantile_interval(values, 0.5)}
            for kind, values in seen.items()
            if values
        }
    return {"base": base_bytes / 1e6, "adapter": adapter_bytes / 1e6, "peak": peak}


def _written(opened: OpenedAdapter, examples: Sequence[Example], *, seed: int) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for who in ("base", "adapter"):
        found = written_figures(write_all(opened, examples, adapter=who == "adapter"), examples, seed=seed)
        for name, (value, interval) in found.items():
            figure = figures.setdefault(name, {"interval": {}, "samples": len(examples)})
            figure[who], figure["interval"][who] = value, interval
    figures["exact_match"]["first_line"] = figures.pop("line_match")
    figures["syntax"]["without_grammar"] = without_grammar(examples)
    return figures


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
