"""`neuralforge` and `nf-client`: one program, two names."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn

from neuralforge.cli import benchmark, create_dataset, test_adapter, train
from neuralforge_common import __version__
from neuralforge_common.errors import NeuralForgeError

COMMANDS = (train, create_dataset, test_adapter, benchmark)
"""Modules with `NAME`, `SUMMARY`, `EXAMPLES`, `configure(parser)` and `run(args) -> exit status`.

They import nothing heavy at their top: `--help` answers at once.
"""

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No telemetry, and no chatter of libraries between our lines; what a person has set stays."""


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest option named where one is misspelt."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Refuse what is not known here: argparse would leave a command's options to the parser above, which has none.

        Returns:
            As argparse: the namespace, and an empty list.
        """
        namespace, strange = super().parse_known_args(args, namespace)
        if strange:
            guesses = (_nearest(word.partition("=")[0], self._option_string_actions) for word in strange)
            self.error(f"unrecognized arguments: {' '.join(strange)}{next(filter(None, guesses), '')}")
        return namespace, strange

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to get help; exit 2."""
        if choice := _CHOICE.search(message):
            message += _nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        print(f"{self.prog}: error: {message}\n  hint: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


# The words of argparse: "argument COMMAND: invalid choice: 'trian' (choose from 'train', …)".
_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an expected failure, 2 for usage, 130 when interrupted."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return int(args.run(args))
    except NeuralForgeError as error:
        if getattr(args, "debug", False):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        print("error: out of memory\n  hint: lower --batch-size or --max-length, or a smaller base", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser(
        prog="neuralforge",
        description="LoRA adapters that write code as your team does, trained where the code is.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.SUMMARY,
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
