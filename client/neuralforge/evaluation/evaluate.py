"""The guide's four figures of an adapter, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuralforge.data.example import Example
from neuralforge.data.jsonl import read_examples
from neuralforge.evaluation.benchmark import benchmark
from neuralforge.evaluation.opened import OpenedAdapter, open_adapter

FIGURES = ("accuracy", "perplexity", "latency", "memory")


def evaluate_adapter(
    adapter: Path | str | OpenedAdapter, test_set: Path | str | Sequence[Example], *, max_length: int = 256
) -> dict[str, float]:
    """Accuracy (share of tokens), perplexity, latency (median ms a token) and memory (MB of weights, base and adapter).

    `adapter` is a folder or one that is open; `test_set` a JSONL file or examples. `benchmark` has the base's figures
    and the intervals beside them. Raises AdapterError, ModelError, DataError.
    """
    examples = tuple(read_examples(Path(test_set))) if isinstance(test_set, Path | str) else tuple(test_set)
    opened = adapter if isinstance(adapter, OpenedAdapter) else open_adapter(Path(adapter), max_length=max_length)
    figures = benchmark(opened, examples, metrics=FIGURES)
    return {name: float(figures[name]["adapter"]) for name in FIGURES}
