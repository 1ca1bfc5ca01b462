"""`test-adapter`: how an adapter does, sample by sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "test-adapter"
SUMMARY = "Score an adapter sample by sample against its base, and show what both would write."
EXAMPLES = """\
  neuralforge test-adapter ./my-adapter.lora
  neuralforge test-adapter ./my-adapter.lora --test-file ./test-samples.jsonl
  neuralforge test-adapter ./my-adapter.lora --test-file ./test-samples.jsonl --json > results.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, help="the .lora folder")
    parser.add_argument("--test-file", type=Path, metavar="FILE", help="JSONL samples; default: its held-out ones")
    parser.add_argument("--base", help="the base to open it on, where the one it names is elsewhere")
    parser.add_argument("--limit", type=_positive, default=200, metavar="N", help="at most N samples (200)")
    parser.add_argument("--show", type=int, default=2, metavar="N", help="completions to show (2)")
    parser.add_argument("--max-length", type=_positive, default=512, metavar="TOKENS")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Score, show and sum up."""
    import json

    from neuralforge.evaluation.metrics import summarize
    from neuralforge.evaluation.opened import open_adapter
    from neuralforge.evaluation.samples import samples_for
    from neuralforge_common.folder import read_adapter_folder

    read_adapter_folder(args.adapter)  # a damaged folder is told before a base is loaded
    samples = samples_for(args.adapter, args.test_file, limit=args.limit)
    opened = open_adapter(args.adapter, base=args.base, device=args.device, max_length=args.max_length)
    base = opened.score(samples.examples, adapter=False)
    adapted = opened.score(samples.examples, adapter=True)
    shown = [
        {
            "index": i,
            "context": samples.examples[i].context,
            "wanted": samples.examples[i].completion,
            "base": opened.complete(samples.examples[i].context, adapter=False).text,
            "adapter": opened.complete(samples.examples[i].context, adapter=True).text,
        }
        for i in range(min(args.show, len(samples.examples)))
    ]
    rows = [
        {
            "index": a.index,
            "language": samples.examples[a.index].language,
            "tokens": a.tokens,
            "base": _figures(summarize([b])),
            "adapter": _figures(summarize([a])),
        }
        for b, a in zip(base, adapted, strict=True)
    ]
    total = {"base": _figures(summarize(base)), "adapter": _figures(summarize(adapted))}
    better = sum(a.loss < b.loss for a, b in zip(adapted, base, strict=True))
    if args.json:
        summary = {"samples": len(rows), "better": better, "origin": samples.origin, **total}
        print(json.dumps({"summary": summary, "samples": rows, "completions": shown}, ensure_ascii=False))
        return 0
    _print(rows, shown, summarize(base), summarize(adapted), better, samples.origin)
    return 0


def _figures(evaluation: Any) -> dict[str, float | None]:
    import math

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {"perplexity": finite(evaluation.perplexity), "accuracy": finite(evaluation.accuracy)}


def _print(rows: list[Any], shown: list[Any], base: Any, adapted: Any, better: int, origin: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from neuralforge.cli.progress import before_and_after

    console = Console(soft_wrap=True)
    table = Table(title=f"samples: {origin}", title_justify="left")
    for name in ("sample", "language", "tokens", "perplexity", "with adapter", "accuracy", "with adapter"):
        table.add_column(name, justify="left" if name == "language" else "right")
    for row in rows:
        table.add_row(
            str(row["index"]),
            row["language"],
            str(row["tokens"]),
            *(_cell(row[who][figure], figure) for figure in ("perplexity", "accuracy") for who in ("base", "adapter")),
        )
    console.print(table)
    for sample in shown:
        console.rule(f"sample {sample['index']}", align="left")
        tail = "\n".join(sample["context"].splitlines()[-6:])
        for name, text in (("context", tail), ("wanted", sample["wanted"]), ("base", sample["base"])):
            console.print(f"[{name}]\n{text}", markup=False, highlight=False)
        console.print(f"[adapter]\n{sample['adapter']}", markup=False, highlight=False)
    console.print(before_and_after(base, adapted, title=f"{better} of {len(rows)} samples are better with the adapter"))


def _cell(value: float | None, figure: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if figure == "perplexity" else f"{value:.0%}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number ≥ 1, got {text}")
    return value
