"""`benchmark`: the guide's table, base against adapter."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from neuralforge.cli import judged

NAME = "benchmark"
SUMMARY = "Compare an adapter with its base: accuracy, latency, memory, perplexity."
EXAMPLES = """\
  neuralforge benchmark --adapter ./my-adapter.lora
  neuralforge benchmark --adapter ./my-adapter.lora --metrics accuracy,latency,perplexity
  neuralforge benchmark --adapter ./my-adapter.lora --test-file ./test-samples.jsonl --json"""

METRICS = ("accuracy", "latency", "memory", "perplexity")
TARGETS = {"accuracy": "80%", "latency": "45 ms", "memory": "80 MB", "perplexity": "12.0"}
"""What the Training Guide aims for."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter", type=Path, required=True, help="the .lora folder")
    parser.add_argument("--metrics", type=_metrics, default=METRICS, help="any of accuracy,latency,memory,perplexity")
    judged.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and show."""
    import json

    from rich.table import Table

    from neuralforge.cli.console import plain_console

    opened, samples = judged.open_judged(args)
    from neuralforge.evaluation.benchmark import benchmark

    figures = benchmark(opened, samples.examples, metrics=args.metrics)
    if args.json:
        finite = {
            metric: {who: value if math.isfinite(value) else None for who, value in values.items()}
            for metric, values in figures.items()
        }
        print(json.dumps({"samples": len(samples.examples), "origin": samples.origin, **finite}))
        return 0
    table = Table(title=f"{len(samples.examples)} samples: {samples.origin}", title_justify="left")
    for name in ("metric", "base", "adapter", "the guide's target"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for metric in args.metrics:
        values = figures[metric]
        table.add_row(
            _LABELS[metric], _shown(metric, values["base"]), _shown(metric, values["adapter"]), TARGETS[metric]
        )
    plain_console().print(table)
    return 0


_LABELS = {
    "accuracy": "accuracy (next token)",
    "latency": "latency (a token, median)",
    "memory": "memory (weights)",
    "perplexity": "perplexity (a token)",
}


def _shown(metric: str, value: float) -> str:
    match metric:
        case "accuracy":
            return f"{value:.1%}"
        case "latency":
            return f"{value:.1f} ms"
        case "memory":
            return f"{value:.1f} MB"
    return f"{value:.2f}"


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    strange = [name for name in names if name not in METRICS]
    if strange or not names:
        raise argparse.ArgumentTypeError(f"wanted any of {','.join(METRICS)}, got {text!r}")
    return names
