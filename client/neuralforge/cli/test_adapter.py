"""`test-adapter`: how an adapter does, sample by sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.cli import judged
from neuralforge.cli.numbers import whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAME = "test-adapter"
SUMMARY = "Score an adapter sample by sample against its base, and show what both would write."
EXAMPLES = """\
  neuralforge test-adapter ./my-adapter.lora
  neuralforge test-adapter ./my-adapter.lora --test-file ./test-samples.jsonl
  neuralforge test-adapter ./my-adapter.lora --test-file ./test-samples.jsonl --json > results.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, help="the .lora folder")
    parser.add_argument("--rows", type=whole, default=20, metavar="N", help="rows of the table of samples (20)")
    parser.add_argument("--show", type=whole, default=2, metavar="N", help="completions to show (2)")
    judged.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score, show and sum up."""
    import json

    opened, samples = judged.open_judged(args)

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.progress import before_and_after
    from neuralforge.evaluation.metrics import summarize

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
    console = plain_console()
    if args.rows:
        console.print(_sample_table(rows[: args.rows], origin=samples.origin, total=len(rows)))
    _print_completions(console, shown)
    title = f"{better} of {len(rows)} samples are better with the adapter"
    console.print(before_and_after(summarize(base), summarize(adapted), title=title))
    return 0


def _figures(evaluation: Any) -> dict[str, float | None]:
    import math

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {"perplexity": finite(evaluation.perplexity), "accuracy": finite(evaluation.accuracy)}


def _sample_table(rows: list[Any], *, origin: str, total: int) -> Table:
    from rich.table import Table

    count = f"the first {len(rows)} of {total}, --json gives all" if len(rows) < total else f"{total}"
    table = Table(title=f"samples ({count}): {origin}", title_justify="left")
    for name in ("sample", "language", "tokens", "perplexity", "with adapter", "accuracy", "with adapter"):
        table.add_column(name, justify="left" if name == "language" else "right")
    for row in rows:
        table.add_row(
            str(row["index"]),
            row["language"],
            str(row["tokens"]),
            *(_cell(row[who][figure], figure) for figure in ("perplexity", "accuracy") for who in ("base", "adapter")),
        )
    return table


def _print_completions(console: Console, shown: list[Any]) -> None:
    for sample in shown:
        console.rule(f"sample {sample['index']}", align="left")
        tail = "\n".join(sample["context"].splitlines()[-6:])
        texts = {"context": tail, "wanted": sample["wanted"], "base": sample["base"], "adapter": sample["adapter"]}
        for name, text in texts.items():
            console.print(f"[{name}]", style="bold")
            console.print(text)


def _cell(value: float | None, figure: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if figure == "perplexity" else f"{value:.0%}"
