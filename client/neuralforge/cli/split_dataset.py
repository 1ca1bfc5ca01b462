"""`split-dataset`: hold a part of a dataset out."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuralforge.cli.numbers import share, whole
from neuralforge_common.errors import UsageError

NAME = "split-dataset"
SUMMARY = "Divide a JSONL dataset so that nothing held out stands, or nearly stands, in what is learnt from."
EXAMPLES = """\
  neuralforge split-dataset dataset.jsonl
  neuralforge split-dataset dataset.jsonl --by time --eval 0.2
  neuralforge split-dataset dataset.jsonl --by author --train-output train.jsonl --eval-output eval.jsonl"""

WAYS = ("file", "time", "repo", "author", "random")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", type=Path, metavar="FILE", help="the dataset, as JSONL")
    parser.add_argument("--by", choices=WAYS, default="file", help="what is held out whole (file); time: the newest")
    parser.add_argument("--eval", type=share, default=0.1, metavar="F", help="hold out this share (0.1)")
    parser.add_argument("--train-output", type=Path, metavar="FILE", help="default: FILE with .train before .jsonl")
    parser.add_argument("--eval-output", type=Path, metavar="FILE", help="default: FILE with .eval before .jsonl")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the draw (0)")


def run(args: argparse.Namespace) -> int:
    """Read, divide, measure, write."""
    from shlex import quote

    from neuralforge.cli.console import plain_console
    from neuralforge.data.jsonl import read_examples, write_examples
    from neuralforge.data.leakage import measure_leakage
    from neuralforge.data.splitting import split_examples
    from neuralforge_common.errors import DataError

    if not 0 < args.eval < 1:
        raise UsageError(f"--eval: wanted a number between 0 and 1, got {args.eval:g}")
    train, held_out = (
        given or args.dataset.with_name(f"{args.dataset.stem}.{side}.jsonl")
        for given, side in ((args.train_output, "train"), (args.eval_output, "eval"))
    )
    if len({path.absolute() for path in (args.dataset, train, held_out)}) < 3:
        raise UsageError("the dataset and both outputs are three files", hint="name others")
    examples = list(read_examples(args.dataset))
    split = split_examples(examples, by=args.by, fraction=args.eval, seed=args.seed)
    leakage = measure_leakage(split.train, split.evaluation)
    if leakage.share:
        raise DataError(f"{leakage.exact + leakage.near} held-out examples stand in the training side")
    console = plain_console()
    write_examples(train, split.train)
    write_examples(held_out, split.evaluation)
    dropped = ", ".join(f"{name} {count:,}" for name, count in split.dropped.most_common()) or "none"
    console.print(f"{len(examples):,} examples; left out: {dropped}")
    console.print(f"to learn from  {len(split.train):,} in {train}")
    console.print(f"held out       {len(split.evaluation):,} in {held_out}, by {args.by}")
    console.print(f"leakage        {leakage.share:.1%} measured: none of them stands in the training side, nor nearly")
    console.print(f"next: neuralforge analyze-dataset {quote(str(train))} --against {quote(str(held_out))}")
    return 0
