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
  neuralforge test-adapter ./my-adapter.lora --test-file ./test-samples.jsonl --generate 50
  neuralforge test-adapter ./my-adapter.lora --test-file ./test-samples.jsonl --json > results.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, help="the .lora folder")
    parser.add_argument("--rows", type=whole, default=20, metavar="N", help="rows of the table of samples (20)")
    parser.add_argument("--show", type=whole, default=2, metavar="N", help="completions to show (2)")
    parser.add_argument(
        "--generate", type=whole, metavar="N", help="samples to write and compare with the wanted text (those shown)"
    )
    judged.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score, show and sum up."""
    import json

    opened, samples = judged.open_judged(args)

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.figures import plain
    from neuralforge.cli.figures import shown as with_interval
    from neuralforge.cli.progress import before_and_after
    from neuralforge.evaluation.benchmark import score_intervals, written_figures
    from neuralforge.evaluation.metrics import summarize
    from neuralforge.evaluation.written import without_grammar, write_all

    base = opened.score(samples.examples, adapter=False)
    adapted = opened.score(samples.examples, adapter=True)
    written_count = min(max(args.show, args.generate or 0), len(samples.examples))
    chosen = samples.examples[:written_count]
    by_base, by_adapter = (write_all(opened, chosen, adapter=adapter) for adapter in (False, True))
    shown = [
        {
            "index": a.index,
            "context": example.context,
            "wanted": example.completion,
            "base": b.text,
            "adapter": a.text,
            "figures": {"base": _worth(b), "adapter": _worth(a)},
        }
        for example, b, a in zip(chosen, by_base, by_adapter, strict=True)
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
    intervals: dict[str, dict[str, Any]] = {
        who: dict(zip(("accuracy", "perplexity"), score_intervals(scores, samples.examples, seed=0)[:2], strict=True))
        for who, scores in (("base", base), ("adapter", adapted))
    }
    total = {
        who: {**_figures(summarize(scores)), "interval": plain(intervals[who])}
        for who, scores in (("base", base), ("adapter", adapted))
    }
    better = sum(a.loss < b.loss for a, b in zip(adapted, base, strict=True))
    written = {
        who: written_figures(made, chosen, seed=0)
        for who, made in (("base", by_base), ("adapter", by_adapter))
        if chosen
    }
    if args.json:
        summary = {"samples": len(rows), "better": better, "origin": samples.origin, **total}
        if written:
            summary["written"] = {"samples": written_count, **_written_json(written)}
        print(json.dumps({"summary": summary, "samples": rows, "completions": shown}, ensure_ascii=False))
        return 0
    console = plain_console()
    if args.rows:
        console.print(_sample_table(rows[: args.rows], origin=samples.origin, total=len(rows)))
    _print_completions(console, shown[: args.show])
    if written:
        console.print(_written_table(written, count=written_count))
        if missing := without_grammar(chosen):
            console.print(f"syntax: no grammar here for {', '.join(missing)}; those samples are left out")
    title = f"{better} of {len(rows)} samples are better with the adapter"
    console.print(before_and_after(summarize(base), summarize(adapted), title=title))
    for who, scores in (("base", base), ("adapter", adapted)):
        whole = summarize(scores)
        parts = [
            f"{name} {with_interval(metric, getattr(whole, metric), intervals[who][metric])}"
            for metric, name in (("perplexity", "perplexity"), ("accuracy", "token accuracy"))
        ]
        console.print(f"at 95%, {who}: {', '.join(parts)}")
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


def _worth(written: Any) -> dict[str, Any]:
    return {
        "exact_match": written.exact,
        "line_match": written.line,
        "edit_similarity": written.similarity,
        "syntax": written.syntax,
    }


def _written_json(written: Any) -> dict[str, Any]:
    from neuralforge.cli.figures import plain

    return {
        who: {name: {"value": plain(value), "interval": plain(interval)} for name, (value, interval) in found.items()}
        for who, found in written.items()
    }


def _written_table(written: Any, *, count: int) -> Table:
    from rich.table import Table

    from neuralforge.cli.figures import LABELS, shown

    table = Table(title=f"{count} samples written, intervals at 95%", title_justify="left")
    for name in ("", "base", "adapter"):
        table.add_column(name, justify="right" if name else "left")
    for name in written["base"]:
        table.add_row(LABELS[name], *(shown(name, *written[who][name]) for who in ("base", "adapter")))
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
