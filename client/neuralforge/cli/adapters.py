"""`adapters`: what can be done with adapters once they are there; each action is a module of its own."""

from __future__ import annotations

import argparse

from neuralforge.cli import (
    adapters_compose,
    adapters_export,
    adapters_list,
    adapters_load,
    adapters_login,
    adapters_pull,
    adapters_search,
    adapters_show,
    adapters_verify,
    adapters_yank,
)
from neuralforge_common.command_line import Command

NAME = "adapters"
SUMMARY = "List, look into, verify, join, export, load, search and pull adapters."
EXAMPLES = """\
  neuralforge adapters list
  neuralforge adapters show ./my-adapter.lora
  neuralforge adapters compose ./spring.lora ./team.lora --weights 0.7,0.3 -o ./both.lora
  neuralforge adapters export ./my-adapter.lora --to gguf -o my-adapter.gguf
  neuralforge adapters pull my-company/spring-boot-expert@1.2.0"""

ACTIONS: tuple[Command, ...] = (
    adapters_list,
    adapters_show,
    adapters_verify,
    adapters_compose,
    adapters_export,
    adapters_load,
    adapters_login,
    adapters_search,
    adapters_pull,
    adapters_yank,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    for action in ACTIONS:
        sub = actions.add_parser(
            action.NAME,
            help=action.SUMMARY,
            description=action.SUMMARY,
            epilog=f"examples:\n{action.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.configure(sub)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    return next(action for action in ACTIONS if args.action == action.NAME).run(args)
