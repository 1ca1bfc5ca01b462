"""`registry`: the team's marketplace of adapters; each action is a module of its own."""

from __future__ import annotations

import argparse

from neuralforge_common.command_line import Command, add_actions, run_action
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
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    return run_action(args, ACTIONS)
