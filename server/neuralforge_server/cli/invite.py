"""`invite`: a one-use token for a machine to join with."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from neuralforge_server.cli.folder import add_directory, opened, read_listen

NAME = "invite"
SUMMARY = "Make a one-use token, and print the line with which a developer's machine joins."
EXAMPLES = """\
  nf-server invite laptop-7
  nf-server invite build-agent --valid 10m"""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="NAME", help="what the machine is called: a-z, 0-9 and -")
    parser.add_argument("--valid", type=_seconds, default=3600, metavar="TIME", help="such as 90s, 60m, 8h (60m)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="where the port stands (DIRECTORY/server.yaml)")
    add_directory(parser)


def run(args: argparse.Namespace) -> int:
    """Make the token and print it: the only time that it can be seen."""
    from neuralforge_server.state_folder import CONFIG

    with opened(args.directory) as (state, identities):
        port = read_listen(args.config or args.directory / CONFIG).port
        token = identities.invite(args.name, life=args.valid)
        print(f"token for {args.name}, for one use within {_words(args.valid)}: {token}")
        print("on that machine:\n")
        print(f"  nf-client join '{state.address(port)}' {token}\n")
    return 0


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,7})([smhd]?)", text)
    seconds = int(found[1]) * _UNITS[found[2] or "m"] if found else 0
    if not 1 <= seconds <= 30 * _UNITS["d"]:
        raise argparse.ArgumentTypeError(f"wanted a time from 1s to 30d, such as 60m, got {text!r}")
    return seconds


def _words(seconds: int) -> str:
    for name, unit in (("hours", 3600), ("minutes", 60)):
        if seconds % unit == 0:
            return f"{seconds // unit} {name[: -1 if seconds == unit else None]}"
    return f"{seconds} seconds"
