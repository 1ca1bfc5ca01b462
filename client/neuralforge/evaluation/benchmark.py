"""The guide's four figures, of base and adapter side by side."""

from __future__ import annotations

from collections.abc import Sequence

from neuralforge.data.example import Example
from neuralforge.evaluation.metrics import summarize
from neuralforge.evaluation.opened import OpenedAdapter

LATENCY_CONTEXTS = 6


def benchmark(
    opened: OpenedAdapter, examples: Sequence[Example], *, metrics: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Each metric -> {"base": …, "adapter": …}.

    accuracy: share of next tokens that were the most likely one; perplexity: of completion tokens; latency: median
    milliseconds a generated token; memory: weights in MB (10⁶ bytes).
    """
    figures: dict[str, dict[str, float]] = {}
    if {"accuracy", "perplexity"} & set(metrics):
        base = summarize(opened.score(examples, adapter=False))
        adapted = summarize(opened.score(examples, adapter=True))
        figures["accuracy"] = {"base": base.accuracy, "adapter": adapted.accuracy}
        figures["perplexity"] = {"base": base.perplexity, "adapter": adapted.perplexity}
    if "latency" in metrics:
        base_ms, adapter_ms = opened.latency([e.context for e in examples[:LATENCY_CONTEXTS]])
        figures["latency"] = {"base": base_ms, "adapter": adapter_ms}
    if "memory" in metrics:
        base_bytes, adapter_bytes = opened.weight_bytes()
        figures["memory"] = {"base": base_bytes / 1e6, "adapter": adapter_bytes / 1e6}
    return {metric: figures[metric] for metric in metrics}
