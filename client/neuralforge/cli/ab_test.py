"""`ab-test`: two adapters on the same samples, with a verdict."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli import judged
from neuralforge.cli.numbers import positive, whole

if TYPE_CHECKING:
    from neuralforge.evaluation.verdict import Compared

NAME = "ab-test"
SUMMARY = "Compare two adapters on the same samples: A better, B better, or how many samples are missing."
EXAMPLES = """\
  neuralforge ab-test --adapter-a ./v1.lora --adapter-b ./v2.lora --test-data ./test.jsonl
  neuralforge ab-test --adapter-a v1.lora --adapter-b v2.lora --test-data test.jsonl --metrics accuracy,speed,memory
  neuralforge ab-test --adapter-a ./v1.lora --adapter-b ./v2.lora --test-data ./test.jsonl --limit 1000 --json"""

METRICS = ("accuracy", "perplexity", "exact_match", "edit_similarity", "syntax", "speed", "memory")
DEFAULT = ("accuracy", "perplexity", "speed", "memory")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter-a", type=Path, required=True, metavar="FOLDER", help="the one .lora folder")
    parser.add_argument("--adapter-b", type=Path, required=True, metavar="FOLDER", help="the other one")
    parser.add_argument(
        "--test-data", type=Path, required=True, metavar="FILE", help="JSONL samples that neither was trained on"
    )
    parser.add_argument(
        "--metrics", type=_metrics, default=DEFAULT, metavar="NAMES", help=f"any of {','.join(METRICS)}"
    )
    parser.add_argument(
        "--generate", type=positive, default=50, metavar="N", help="samples that both write code for (50)"
    )
    parser.add_argument(
        "--alpha", type=_alpha, default=0.05, metavar="P", help="the chance of a wrong verdict that is taken (0.05)"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the resampling (0)")
    judged.add_opening_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure in turn, test, decide."""
    import json

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.figures import plain
    from neuralforge.data.jsonl import read_examples
    from neuralforge.evaluation.one_base import read_pair

    # What is wrong with the input is told before torch is imported and a base loaded.
    folders = read_pair(args.adapter_a, args.adapter_b)
    examples = tuple(read_examples(args.test_data))[: args.limit]

    from neuralforge.evaluation.pair import open_pair

    pair = open_pair(folders, base=args.base, device=args.device, max_length=args.max_length)
    from neuralforge.evaluation.benchmark import clusters_by_file
    from neuralforge.evaluation.comparison import compare
    from neuralforge.evaluation.verdict import overall

    by_file = clusters_by_file(examples)[1]
    for notice in pair.notices:
        print(notice, file=sys.stderr)
    if pair.same_weights:
        print("A and B hold the same weights", file=sys.stderr)
    elif pair.same_shapes and "speed" in args.metrics:
        print("A and B have matrices of the same sizes: neither can be the faster one", file=sys.stderr)
    rows = compare(pair, examples, metrics=args.metrics, generate=args.generate, alpha=args.alpha, seed=args.seed)
    verdict = overall(rows)
    if args.json:
        answer = {
            "samples": len(examples),
            "alpha": args.alpha,
            "resampled": "files" if by_file else "samples",
            "metrics": [{**plain(row), "more": row.more} for row in rows],
            "verdict": verdict,
        }
        print(json.dumps(answer))
        return 0
    console = plain_console()
    _print(rows, title=f"{len(examples)} samples: {args.test_data}")
    unit = "whole files" if by_file else "samples, taken as independent (files unknown, one sample each, or too few)"
    console.print(f"Paired over {unit}; p after Holm's correction; α = {args.alpha:g}.")
    console.print(f"verdict: {verdict}")
    return 0


def _print(rows: list[Compared], *, title: str) -> None:
    from rich.table import Table

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.figures import shown

    table = Table(title=title, title_justify="left")
    for name in ("Metric", "A", "B", "A against B", "p", "Verdict"):
        table.add_column(name, justify="left" if name in ("Metric", "Verdict") else "right")
    for row in rows:
        verdict: str = row.verdict if row.p is not None or row.change else "the same"
        if row.more is not None:
            verdict += f", {row.more:,} more"
        figure = "latency" if row.metric == "speed" else row.metric
        table.add_row(
            _LABELS.get(row.metric, row.metric.replace("_", " ")),
            shown(figure, row.a),
            shown(figure, row.b),
            _change(row),
            "-" if row.adjusted is None else f"{row.adjusted:.3f}",
            verdict,
        )
    plain_console().print(table)


_LABELS = {"accuracy": "token accuracy", "speed": "a token", "memory": "weights", "syntax": "syntax valid"}


def _change(row: Compared) -> str:
    import math

    from neuralforge.cli.figures import SHARES

    unit = " points" if row.metric in SHARES else "%"
    text = f"{100 * row.change:+.1f}{unit}"
    if row.interval is None:
        return text
    ends = [f"{100 * end:+.1f}" if math.isfinite(end) else "?" for end in (row.interval.low, row.interval.high)]
    return f"{text} [{ends[0]}, {ends[1]}]"


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    named = tuple("speed" if name == "latency" else name for name in names)
    strange = [name for name in named if name not in METRICS]
    if strange or not named:
        raise argparse.ArgumentTypeError(f"wanted any of {','.join(METRICS)}, got {text!r}")
    return named


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"wanted a number between 0 and 1, got {text!r}")
    return value
