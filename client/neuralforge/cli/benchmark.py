"""`benchmark`: the guide's table, base against adapter, each figure with its interval."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuralforge.cli import judged
from neuralforge.cli.numbers import positive, whole

NAME = "benchmark"
SUMMARY = "Compare an adapter with its base: accuracy, latency, memory, perplexity, and what both write."
EXAMPLES = """\
  neuralforge benchmark --adapter ./my-adapter.lora
  neuralforge benchmark --adapter ./my-adapter.lora --metrics accuracy,latency,perplexity
  neuralforge benchmark --adapter ./my-adapter.lora --metrics exact_match,edit_similarity,syntax --generate 50
  neuralforge benchmark --adapter ./my-adapter.lora --test-file ./test-samples.jsonl --json"""

DEFAULT = ("accuracy", "latency", "memory", "perplexity")
METRICS = (*DEFAULT, "exact_match", "edit_similarity", "syntax")
TARGETS = {"accuracy": "80%", "latency": "45 ms", "memory": "80 MB", "perplexity": "12.0"}
"""What the Training Guide aims for."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter", type=Path, required=True, help="the .lora folder")
    parser.add_argument(
        "--metrics", type=_metrics, default=DEFAULT, metavar="NAMES", help=f"any of {','.join(METRICS)}"
    )
    parser.add_argument(
        "--generate", type=positive, metavar="N", help="samples that are written for the last three (all)"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the resampling behind intervals (0)")
    judged.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and show."""
    import json

    from rich.table import Table

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.figures import LABELS, plain, shown

    opened, samples = judged.open_judged(args)
    from neuralforge.evaluation.benchmark import benchmark

    figures = benchmark(opened, samples.examples, metrics=args.metrics, seed=args.seed, generate=args.generate)
    if args.json:
        print(json.dumps({"samples": len(samples.examples), "origin": samples.origin, **plain(figures)}))
        return 0
    table = Table(title=f"{len(samples.examples)} samples: {samples.origin}", title_justify="left")
    for name in ("Metric", "Baseline", "Target", "Your Adapter"):
        table.add_column(name, justify="left" if name == "Metric" else "right")
    for metric in args.metrics:
        figure = figures[metric]
        base, adapted = (shown(metric, figure[who], figure.get("interval", {}).get(who)) for who in ("base", "adapter"))
        table.add_row(LABELS[metric], base, TARGETS.get(metric, ""), adapted)
    console = plain_console()
    console.print(table)
    for line in _beneath(figures):
        console.print(line)
    return 0


def _beneath(figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What the table has no room for."""
    from neuralforge.cli.figures import shown

    if any("interval" in figure for figure in figures.values()):
        yield "The baseline is the adapter's base, measured here; intervals are at 95%."
    resampled = {figure["resampled"] for figure in figures.values() if "resampled" in figure}
    if "samples" in resampled:
        yield (
            "Intervals take samples as independent (files unknown, one sample each, or too few): "
            "they are too narrow where samples of a file are alike."
        )
    if latency := figures.get("latency"):
        for who in ("base", "adapter"):
            for of, found in latency["quantiles"][who].items():
                parts = [f"{name} {shown('latency', f['ms'], f['interval'])}" for name, f in found.items()]
                yield f"latency, {who}, {of.replace('_', ' ')}: {', '.join(parts)}"
    if peak := figures.get("memory", {}).get("peak"):
        for kind, name in (("process", "whole process"), ("device", "GPU")):
            if kind in peak["base"]:
                base, adapted = (
                    shown("memory", peak[who][kind]["mb"], peak[who][kind]["interval"]) for who in ("base", "adapter")
                )
                yield f"memory at its peak, {name}: base {base}, adapter {adapted}"
    if missing := figures.get("syntax", {}).get("without_grammar"):
        names = ", ".join(f"{name} ({count})" for name, count in missing.items())
        yield f"syntax: no grammar here for {names}; those samples are left out"


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    strange = [name for name in names if name not in METRICS]
    if strange or not names:
        raise argparse.ArgumentTypeError(f"wanted any of {','.join(METRICS)}, got {text!r}")
    return names
