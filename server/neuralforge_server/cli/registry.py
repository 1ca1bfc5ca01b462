"""`registry`: the team's marketplace of adapters; each action is a module of its own."""

from __future__ import annotations

import argparse

from neuralforge_common.command_line import Command
from neuralforge_server.cli import registry_audit, registry_start, registry_team, registry_token

NAME = "registry"
SUMMARY = "Run the team's registry of adapters: publish, search, pull; teams, tokens, the audit log."
EXAMPLES = """\
  nf-server registry team add my-company --member laptop-7 --signer ./alice.pub
  nf-server registry token --team my-company --scope publish --expires 90d
  nf-server registry start"""

ACTIONS: tuple[Command, ...] = (registry_start, registry_team, registry_token, registry_audit)


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
