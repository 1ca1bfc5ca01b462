"""`analyze-dataset`: is this dataset fit to learn from?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.cli.numbers import positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neuralforge.data.analysis import Analysis, Judgement
    from neuralforge.data.example import Example

NAME = "analyze-dataset"
SUMMARY = "Look into a JSONL dataset: leakage, lengths, balance, duplicates, secrets, time to train; a verdict."
EXAMPLES = """\
  neuralforge analyze-dataset ./train.jsonl
  neuralforge analyze-dataset train.jsonl --against eval.jsonl --html report.html
  neuralforge analyze-dataset train.jsonl --base nf-tiny --max-length 512 --json"""

PROBE_STEPS = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", type=Path, metavar="FILE", help="what is to be learnt from, as JSONL")
    parser.add_argument("--against", type=Path, metavar="FILE", help="what is held out: is any of it in there?")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--base", default="smollm2-135m", help="whose tokens and speed count (smollm2-135m)")
    parser.add_argument("--max-length", type=positive, default=256, metavar="TOKENS", help="of training (256)")
    parser.add_argument("--epochs", type=positive, default=3, metavar="N", help="of training (3)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="of training (4)")
    parser.add_argument("--no-probe", action="store_true", help="load no base: no lengths in tokens, no minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read, count, measure, judge; exit 0 whatever the verdict is."""
    from dataclasses import replace

    from neuralforge.data.analysis import analyze, judge
    from neuralforge.data.jsonl import read_examples

    train = list(read_examples(args.dataset))
    against = list(read_examples(args.against)) if args.against is not None else None
    analysis = analyze(train, against)
    steps = -(-len(train) // args.batch_size) * args.epochs
    seconds = None
    if not args.no_probe:
        lengths, seconds = _probe(train, args)
        analysis = replace(analysis, lengths=lengths)
    judgement = judge(analysis, train=str(args.dataset), against=None if args.against is None else str(args.against))
    minutes = None if seconds is None else steps * seconds / 60
    if args.html is not None:
        from neuralforge.data.analysis_page import analysis_page
        from neuralforge_common.atomic import write_bytes_atomically

        page = analysis_page(
            analysis, judgement, name=args.dataset.name, cost=_cost(steps, minutes, args), base=args.base
        )
        write_bytes_atomically(args.html, page.encode())
    if args.json:
        import json

        print(json.dumps(_facts(analysis, judgement, steps, minutes), ensure_ascii=False))
    else:
        _show(analysis, judgement, _cost(steps, minutes, args))
        if args.html is not None:
            print(f"wrote {args.html}")
    return 0


def _probe(train: Sequence[Example], args: argparse.Namespace) -> tuple[Any, float]:
    """Lengths under the base's tokenizer, and seconds a step, by taking a few on an adapter that is thrown away."""
    import time

    from neuralforge.data.analysis import measure_lengths
    from neuralforge.data.tokens import encode
    from neuralforge.models.load import load_base_model
    from neuralforge.training import LoRATrainer

    base = load_base_model(args.base)
    sizes = [
        (len(context), len(completion) + 1)
        for context, completion in zip(
            encode(base.tokenizer, [example.context for example in train], special=True),
            encode(base.tokenizer, [example.completion for example in train], special=False),
            strict=True,
        )
    ]
    trainer = LoRATrainer(base, max_length=args.max_length, batch_size=args.batch_size)
    # Evenly over the file: what stands first may be shorter than the rest.
    chosen = train[:: max(1, len(train) // (PROBE_STEPS * args.batch_size))]
    trainer.train(chosen, epochs=1, max_steps=1)
    began = time.perf_counter()
    taken = trainer.train(chosen, epochs=PROBE_STEPS, max_steps=PROBE_STEPS).steps
    return measure_lengths(sizes, args.max_length), (time.perf_counter() - began) / max(1, taken)


def _cost(steps: int, minutes: float | None, args: argparse.Namespace) -> str:
    told = f"{steps:,} steps ({args.epochs} epochs, batches of {args.batch_size})"
    return told if minutes is None else f"{told}, about {minutes:,.1f} minutes on this machine with {args.base}"


def _facts(analysis: Analysis, judgement: Judgement, steps: int, minutes: float | None) -> dict[str, Any]:
    from dataclasses import asdict, fields

    from neuralforge.data.analysis import Lengths
    from neuralforge.data.leakage import Leakage

    counted = {item.name: getattr(analysis, item.name) for item in fields(analysis)}
    return {
        # (asdict does not know how to copy a Counter)
        **{name: asdict(value) if isinstance(value, Leakage | Lengths) else value for name, value in counted.items()},
        "leakage_share": None if analysis.leakage is None else analysis.leakage.share,
        "steps": steps,
        "minutes": minutes,
        "verdict": judgement.verdict,
        "findings": [asdict(finding) for finding in judgement.findings],
        "next": judgement.next,
    }


def _show(analysis: Analysis, judgement: Judgement, cost: str) -> None:
    from rich.table import Table

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.present import listed

    table = Table(title="dataset", title_justify="left")
    for name in ("", "count", "details"):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    table.add_row("examples", f"{analysis.examples:,}", listed(analysis.languages))
    table.add_row("repositories", f"{len(analysis.repos):,}", listed(analysis.repos))
    table.add_row("files", f"{analysis.files:,}", "")
    table.add_row("licenses", f"{len(analysis.licenses):,}", listed(analysis.licenses))
    table.add_row("duplicates", f"{sum(analysis.duplicates.values()):,}", listed(analysis.duplicates))
    table.add_row("secrets", f"{sum(analysis.secrets.values()):,}", listed(analysis.secrets))
    if analysis.leakage is not None:
        leak = analysis.leakage
        table.add_row("leakage", f"{leak.share:.1%}", f"exact {leak.exact:,}, near {leak.near:,} of {leak.examples:,}")
    if analysis.lengths is not None:
        lengths = analysis.lengths
        told = ", ".join(f"{q} % ≤ {value}" for q, value in lengths.quantiles.items())
        table.add_row("tokens", f"{lengths.quantiles[50]:,}", f"median; {told}")
        cut = f"of contexts {lengths.context_cut:.0%}, of completions {lengths.completion_cut:.0%}"
        table.add_row("cut", f"{lengths.completion_cut:.0%}", f"at {lengths.max_length} tokens: {cut}")
    console = plain_console()
    console.print(table)
    console.print(cost)
    console.print(f"verdict: {judgement.verdict}", style="bold")
    for finding in judgement.findings:
        console.print(f"  {'!' if finding.severe else '-'} {finding.text}")
    if judgement.next:
        console.print(f"next: {judgement.next}")
