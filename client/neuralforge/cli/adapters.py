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
from neuralforge_common.command_line import Command, add_actions, run_action

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
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    return run_action(args, ACTIONS)
