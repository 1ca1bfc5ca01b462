"""`registry audit`: who did what, when."""

from __future__ import annotations

import argparse

from neuralforge_server.cli.registry_folder import add_place, moment, opened_database

NAME = "audit"
SUMMARY = "Show the audit log: who published, pulled and yanked what, and who was let in."
EXAMPLES = """\
  nf-server registry audit
  nf-server registry audit --last 1000 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--last", type=_count, default=100, metavar="N", help="how many entries (100)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_place(parser)


def run(args: argparse.Namespace) -> int:
    """Print them, the newest last."""
    import json
    from dataclasses import asdict

    from neuralforge_server.registry.audit import read

    with opened_database(args) as database:
        for entry in read(database, last=args.last):
            if args.json:
                print(json.dumps(asdict(entry), ensure_ascii=False))
            else:
                detail = f"  ({entry.detail})" if entry.detail else ""
                print(f"{moment(entry.at)}  {entry.who}  {entry.what}  {entry.subject}{detail}")
    return 0


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 to 1,000,000, got {text!r}")
    return int(text)
