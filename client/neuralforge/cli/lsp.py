"""`lsp`: a language server with inline completions, which an editor starts."""

from __future__ import annotations

import argparse

from neuralforge.cli import serving
from neuralforge.cli.numbers import positive

NAME = "lsp"
SUMMARY = "Complete code as a language server over standard input and output; an editor starts it."
EXAMPLES = """\
  neuralforge lsp --adapter ./my-adapter.lora
  neuralforge lsp --adapter ./my-adapter.lora --max-tokens 32"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    serving.add_options(parser)
    parser.add_argument("--max-tokens", type=positive, default=64, metavar="N", help="longest completion (64)")


def run(args: argparse.Namespace) -> int:
    """Speak the protocol until the editor ends it."""
    import os
    import sys

    serving.check_adapters(args)
    # Standard output is the protocol's alone: whatever else is printed goes to standard error.
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = serving.open_worker(args)

    from neuralforge.serving.lsp import make_language_server

    try:
        make_language_server(worker, max_tokens=args.max_tokens).start_io(stdout=protocol)
    finally:
        worker.close()
    return 0
