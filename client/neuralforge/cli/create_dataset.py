"""`create-dataset`: source files to training examples."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuralforge.cli.numbers import positive, whole
from neuralforge_common.errors import UsageError

NAME = "create-dataset"
SUMMARY = "Parse code files into a JSONL dataset: redacted, without near-duplicates."
EXAMPLES = """\
  neuralforge create-dataset --source ./src --pattern "*.java" --output dataset.jsonl
  neuralforge create-dataset --source ./src --output train.jsonl --eval-output eval.jsonl"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--source", type=Path, action="append", required=True, metavar="DIR", help="a folder of code")
    parser.add_argument("--pattern", action="append", default=[], help="only files like this, e.g. '*.java'")
    parser.add_argument("--languages", default="", help="only these, e.g. java,python,js")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the examples go, as JSONL")
    parser.add_argument("--eval-output", type=Path, metavar="FILE", help="hold out a tenth of the files, into this")
    parser.add_argument("--max-samples", type=positive, metavar="N", help="at most N examples to learn from")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the draw of what is held out (0)")


def run(args: argparse.Namespace) -> int:
    """Read, clean, split, write."""
    from neuralforge.cli.console import plain_console
    from neuralforge.cli.present import dataset_table
    from neuralforge.data.gather import gather
    from neuralforge.data.jsonl import write_examples

    if args.eval_output is not None and args.eval_output.absolute() == args.output.absolute():
        raise UsageError(
            f"--eval-output is --output ({args.output}): what is held out would replace the rest",
            hint="name two files",
        )
    dataset = gather(
        sources=args.source,
        patterns=args.pattern,
        languages=tuple(name.strip() for name in args.languages.split(",") if name.strip()),
        eval_fraction=0.1 if args.eval_output else 0.0,
        max_samples=args.max_samples,
        max_eval_samples=None,
        seed=args.seed,
    )
    console = plain_console()
    console.print(dataset_table(dataset.report))
    for path, examples in ((args.output, dataset.train), (args.eval_output, dataset.evaluation)):
        if path is not None and examples:
            write_examples(path, examples)
            console.print(f"wrote {len(examples):,} examples to {path}")
    return 0
