"""`benchmark`: the guide's table, base against adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    parser.add_argument("--test-file", type=Path, metavar="FILE", help="JSONL samples; default: its held-out ones")
    parser.add_argument("--base", help="the base to open it on, where the one it names is elsewhere")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="at most N samples (200)")
    parser.add_argument("--max-length", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measure and show."""
    import json

    from rich.console import Console
    from rich.table import Table

    from neuralforge.evaluation.benchmark import benchmark
    from neuralforge.evaluation.opened import open_adapter
    from neuralforge.evaluation.samples import samples_for
    from neuralforge_common.folder import read_adapter_folder

    read_adapter_folder(args.adapter)
    samples = samples_for(args.adapter, args.test_file, limit=args.limit)
    opened = open_adapter(args.adapter, base=args.base, device=args.device, max_length=args.max_length)
    figures = benchmark(opened, samples.examples, metrics=args.metrics)
    if args.json:
        print(json.dumps({"samples": len(samples.examples), "origin": samples.origin, **figures}))
        return 0
    table = Table(title=f"{len(samples.examples)} samples: {samples.origin}", title_justify="left")
    for name in ("metric", "base", "adapter", "the guide's target"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for metric in args.metrics:
        values = figures[metric]
        table.add_row(
            _LABELS[metric], _shown(metric, values["base"]), _shown(metric, values["adapter"]), TARGETS[metric]
        )
    Console(soft_wrap=True).print(table)
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
