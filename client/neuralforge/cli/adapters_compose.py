"""`adapters compose`: several adapters of one base as one adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli.numbers import positive, whole

if TYPE_CHECKING:
    from neuralforge.composition.learnt import LearntWeights
    from neuralforge.composition.method import Method
    from neuralforge.composition.parents import Part

NAME = "compose"
SUMMARY = "Join adapters of one base into one, by weights that you choose or that are learnt on a few samples."
EXAMPLES = """\
  neuralforge adapters compose ./spring.lora ./team.lora --weights 0.7,0.3 -o ./both.lora
  neuralforge adapters compose ./a.lora ./b.lora ./c.lora --method svd --rank 8 -o ./abc.lora
  neuralforge adapters compose ./a.lora ./b.lora --method ties --density 0.3 -o ./ab.lora
  neuralforge adapters compose ./a.lora ./b.lora --learn-weights samples.jsonl -o ./ab.lora"""

METHODS = ("linear", "ties", "dare", "svd", "cat")
OWN_OPTIONS = {"rank": "svd", "density": "ties", "drop_rate": "dare", "seed": "dare"}
"""Options that mean something to one method alone."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER", help="two or more .lora or PEFT folders")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the result goes")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=_weights, metavar="W,W", help="a factor for each adapter, may be negative (equal shares of 1)"
    )
    weights.add_argument(
        "--learn-weights", type=Path, metavar="FILE", help="learn them on JSONL samples that nothing was trained on"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="cat",
        help="cat: the exact sum, ranks add up (default); svd: the best of a rank; linear, ties, dare: as in PEFT",
    )
    parser.add_argument("--rank", type=positive, metavar="R", help="svd: the rank to keep (the largest adapter's)")
    parser.add_argument("--density", type=float, metavar="D", help="ties: the share of values that is kept (0.5)")
    parser.add_argument("--drop-rate", type=float, metavar="P", help="dare: the share of values that is dropped (0.5)")
    parser.add_argument("--seed", type=whole, metavar="N", help="dare: what is dropped (0)")
    parser.add_argument("--base", help="--learn-weights: the base, where the one that the adapters name is elsewhere")
    parser.add_argument("--limit", type=positive, default=64, metavar="N", help="--learn-weights: at most so many (64)")
    parser.add_argument(
        "--max-length", type=positive, default=256, metavar="TOKENS", help="--learn-weights: cut samples to this (256)"
    )
    parser.add_argument("--device", default="auto", help="--learn-weights: auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read all adapters, compose, write, and tell how far the result is from the weighted sum."""
    from dataclasses import replace
    from datetime import UTC, datetime

    _check(args)

    from neuralforge.composition.compose import compose
    from neuralforge.composition.parents import Part, unproven
    from neuralforge.composition.record import record_of
    from neuralforge_common.folder import check_replaceable, read_adapter_folder, write_adapter_folder

    method = _method(args)
    check_replaceable(args.output)
    parents = [read_adapter_folder(path) for path in args.adapters]
    weights = args.weights or (1 / len(parents),) * len(parents)
    parts = [
        Part(label=str(path), spec=parent.spec, state=parent.state, weight=weight)
        for path, parent, weight in zip(args.adapters, parents, weights, strict=True)
    ]
    learnt = _learn(args, parts) if args.learn_weights is not None else None
    if learnt is not None:
        weights = learnt.weights
        parts = [replace(part, weight=weight) for part, weight in zip(parts, weights, strict=True)]
    composed = compose(parts, method)
    record = record_of(
        parents,
        weights,
        method,
        name=args.output.absolute().name.removesuffix(".lora"),
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        learnt_on=learnt.samples if learnt else None,
    )
    write_adapter_folder(
        args.output,
        spec=composed.spec,
        state=composed.state,
        metadata=record.metadata,
        tokenizer_json=record.tokenizer_json,
    )
    for notice in (*unproven(parts), *record.notices):
        print(notice, file=sys.stderr)
    if args.json:
        _print_json(args.output, method, weights, composed.spec.rank, composed.error, learnt)
    else:
        _print_lines(args, method, weights, composed.spec.rank, composed.error, learnt)
    return 0


def _check(args: argparse.Namespace) -> None:
    from neuralforge_common.errors import UsageError

    for option, owner in OWN_OPTIONS.items():
        if getattr(args, option) is not None and args.method != owner:
            raise UsageError(f"--{option.replace('_', '-')} is for --method {owner}, got --method {args.method}")
    count = len(args.adapters)
    if count < 2:
        raise UsageError("one adapter was named, wanted two or more")
    if args.weights is not None and len(args.weights) != count:
        raise UsageError(f"{len(args.weights)} weights for {count} adapters", hint="--weights 0.7,0.3 for two")
    if any(args.output.resolve() == path.resolve() for path in args.adapters):
        raise UsageError(f"{args.output} is one of the adapters that are to be joined", hint="name another -o FOLDER")
    if args.learn_weights is not None and args.method not in ("cat", "svd"):
        raise UsageError(
            f"weights are learnt for the weighted sum, which --method {args.method} does not make",
            hint="--method cat, or svd",
        )


def _method(args: argparse.Namespace) -> Method:
    from neuralforge.composition.dare import Dare
    from neuralforge.composition.exact import Cat, Svd
    from neuralforge.composition.linear import Linear
    from neuralforge.composition.ties import Ties

    if args.method == "svd":
        return Svd(rank=args.rank)
    if args.method == "ties":
        return Ties() if args.density is None else Ties(density=args.density)
    if args.method == "dare":
        dropped = {} if args.drop_rate is None else {"drop_rate": args.drop_rate}
        return Dare(**dropped, seed=args.seed or 0)
    return Cat() if args.method == "cat" else Linear()


def _learn(args: argparse.Namespace, parts: list[Part]) -> LearntWeights:
    from itertools import islice

    from neuralforge.composition.parents import joint_spec
    from neuralforge.data.jsonl import read_examples

    # What is wrong with the input is told before torch is imported and a base loaded.
    spec = joint_spec(parts, parts[0].spec.rank)
    examples = list(islice(read_examples(args.learn_weights), args.limit))

    from neuralforge.composition.learnt import learn_weights
    from neuralforge.models.load import load_base_model

    base = load_base_model(
        args.base or spec.base, revision=None if args.base else spec.base_revision, device=args.device
    )
    return learn_weights(parts, base, examples, max_length=args.max_length)


def _print_lines(
    args: argparse.Namespace,
    method: Method,
    weights: tuple[float, ...],
    rank: int,
    error: float | None,
    learnt: LearntWeights | None,
) -> None:
    print(f"{args.output}: rank {rank}, {method.describe()}")
    for index, (path, weight) in enumerate(zip(args.adapters, weights, strict=True)):
        alone = f"   loss alone {learnt.alone[index]:.4f}" if learnt else ""
        print(f"  {weight:8.4f} × {path}{alone}")
    if learnt:
        print(f"  loss on {learnt.samples:,} samples {learnt.loss:.4f}, with equal weights {learnt.equal:.4f}")
    if error is None:
        print("  the weighted sum is zero")
    else:
        print(f"  differs from the weighted sum by {error:.2g} of it")
    print("  not evaluated: neuralforge benchmark --adapter " + str(args.output))


def _print_json(
    path: Path,
    method: Method,
    weights: tuple[float, ...],
    rank: int,
    error: float | None,
    learnt: LearntWeights | None,
) -> None:
    import json
    from dataclasses import asdict

    document = {
        "path": str(path),
        "method": method.describe(),
        "weights": list(weights),
        "rank": rank,
        "error": error,
        "learnt": asdict(learnt) if learnt else None,
    }
    print(json.dumps(document, ensure_ascii=False))


def _weights(text: str) -> tuple[float, ...]:
    """Finite numbers with commas between them, as argparse's `type`."""
    import math

    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"wanted numbers with commas between them, got {text!r}")
    return numbers
