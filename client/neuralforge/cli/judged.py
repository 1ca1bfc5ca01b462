"""What the commands that judge an adapter share: which adapter, on which samples, on which base."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli.numbers import positive

if TYPE_CHECKING:
    from neuralforge.evaluation.opened import OpenedAdapter
    from neuralforge.evaluation.samples import Samples


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the shared options; `adapter` is the command's own to declare."""
    parser.add_argument("--test-file", type=Path, metavar="FILE", help="JSONL samples; default: its held-out ones")
    add_opening_options(parser)


def add_opening_options(parser: argparse.ArgumentParser) -> None:
    """Declare how much is judged, and on which base and device."""
    parser.add_argument("--base", help="the base to open it on, where the one it names is elsewhere")
    parser.add_argument("--limit", type=positive, default=200, metavar="N", help="at most N samples (200)")
    parser.add_argument(
        "--max-length", type=positive, default=256, metavar="TOKENS", help="cut samples to this length (256)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def open_judged(args: argparse.Namespace) -> tuple[OpenedAdapter, Samples]:
    """Validate folder and samples, then open the adapter on its base; notices go to standard error."""
    from neuralforge.evaluation.samples import samples_for
    from neuralforge.models.origin import find
    from neuralforge_common.folder import read_adapter_folder

    # What is wrong with the input is told before torch is imported and a base loaded.
    read_adapter_folder(args.adapter)
    if args.base is not None:
        find(args.base)
    samples = samples_for(args.adapter, args.test_file, limit=args.limit)

    from neuralforge.evaluation.opened import open_adapter

    opened = open_adapter(args.adapter, base=args.base, device=args.device, max_length=args.max_length)
    for notice in (*opened.folder.notices, *opened.base.notices):
        print(notice, file=sys.stderr)
    return opened, samples
