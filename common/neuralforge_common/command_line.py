"""What every program of ours does around its commands: parse, hint at the nearest word, say one line when it fails."""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn, Protocol

from neuralforge_common import __version__
from neuralforge_common.errors import NeuralForgeError


class Command(Protocol):
    """A module that is one command; it imports nothing heavy at its top, so that `--help` answers at once."""

    NAME: str
    SUMMARY: str
    EXAMPLES: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit status."""


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


def run_program(
    arguments: Sequence[str] | None,
    *,
    name: str,
    description: str,
    commands: Iterable[Command],
    environment: Mapping[str, str],
    out_of_memory: str,
) -> int:
    """Runs one command; returns the exit status: 0, 1 for an expected failure, 2 for usage, 130 when interrupted.

    `environment` keeps libraries quiet (what a person has set stays); `out_of_memory` is the hint for that failure.
    """
    for variable, value in environment.items():
        os.environ.setdefault(variable, value)
    # Importing torch and transformers makes a million objects that stay: looked through at Python's 700, a tenth of it.
    gc.set_threshold(10_000, 10, 10)
    parser = _parser(name, description, commands)
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
        print(f"error: out of memory\n  hint: {out_of_memory}", file=sys.stderr)
        return 1


def add_command(subparsers: argparse._SubParsersAction[Parser], command: Command) -> Parser:
    """Declare a command, its help ending with its examples."""
    parser = subparsers.add_parser(
        command.NAME,
        help=command.SUMMARY,
        description=command.SUMMARY,
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    return parser


def add_actions(parser: argparse.ArgumentParser, actions: Iterable[Command]) -> None:
    """Declare the commands of a command, as `adapters show`; which one was asked for is `action`."""
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    for action in actions:
        add_command(subparsers, action)


def run_action(args: argparse.Namespace, actions: Iterable[Command]) -> int:
    """Do what was asked for; returns the exit status."""
    return next(action for action in actions if args.action == action.NAME).run(args)


def _parser(name: str, description: str, commands: Iterable[Command]) -> Parser:
    parser = Parser(prog=name, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in commands:
        add_command(subparsers, command).set_defaults(run=command.run)
    return parser
