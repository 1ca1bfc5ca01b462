"""`create-dataset`: source files to training examples."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuralforge.cli.cleaning import Explanation, chosen_quality, configure_cleaning
from neuralforge.cli.numbers import positive, whole
from neuralforge_common.errors import UsageError

NAME = "create-dataset"
SUMMARY = "Parse code files into a JSONL dataset: redacted, without near-duplicates."
EXAMPLES = """\
  neuralforge create-dataset --source ./src --pattern "*.java" --output dataset.jsonl
  neuralforge create-dataset --source ./src --output train.jsonl --eval-output eval.jsonl
  neuralforge create-dataset --source ./src --output d.jsonl --license-allow mit,apache-2.0 --without-rule data-rows
  neuralforge create-dataset --source ./src --explain app/models.py
  neuralforge create-dataset --list-rules"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--source", type=Path, action="append", required=True, metavar="DIR", help="a folder of code")
    parser.add_argument("--pattern", action="append", default=[], help="only files like this, e.g. '*.java'")
    parser.add_argument("--languages", default="", help="only these, e.g. java,python,js")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the examples go, as JSONL")
    parser.add_argument("--eval-output", type=Path, metavar="FILE", help="hold out a tenth of the files, into this")
    parser.add_argument("--max-samples", type=positive, metavar="N", help="at most N examples to learn from")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the draw of what is held out (0)")
    configure_cleaning(parser)
    parser.add_argument(
        "--explain", metavar="ID", help="write nothing: say what became of this file or example, and why"
    )


def run(args: argparse.Namespace) -> int:
    """Read, clean, split, write."""
    from neuralforge.cli.console import plain_console
    from neuralforge.cli.present import dataset_table
    from neuralforge.data.decision import nobody
    from neuralforge.data.gather import gather
    from neuralforge.data.jsonl import write_examples

    if args.output is None and args.explain is None:
        raise UsageError("nothing says where the examples go", hint="--output dataset.jsonl, or --explain ID")
    if (
        args.eval_output is not None
        and args.output is not None
        and args.eval_output.absolute() == args.output.absolute()
    ):
        raise UsageError(
            f"--eval-output is --output ({args.output}): what is held out would replace the rest",
            hint="name two files",
        )
    explanation = Explanation(args.explain) if args.explain is not None else None
    console = plain_console()
    dataset = gather(
        sources=args.source,
        patterns=args.pattern,
        languages=tuple(name.strip() for name in args.languages.split(",") if name.strip()),
        eval_fraction=0.1 if args.eval_output else 0.0,
        max_samples=args.max_samples,
        max_eval_samples=None,
        seed=args.seed,
        quality=chosen_quality(args),
        balance=args.balance,
        watch=explanation or nobody,
    )
    if explanation is not None:
        explanation.show(console)
        return 0
    console.print(dataset_table(dataset.report))
    for path, examples in ((args.output, dataset.train), (args.eval_output, dataset.evaluation)):
        if path is not None and examples:
            write_examples(path, examples)
            console.print(f"wrote {len(examples):,} examples to {path}")
    return 0
