"""`revoke`: a machine may not take part any more."""

from __future__ import annotations

import argparse

from neuralforge_server.cli.folder import add_directory, opened

NAME = "revoke"
SUMMARY = "Shut a machine out, or void its invitation; the server may be running."
EXAMPLES = """\
  nf-server revoke laptop-7
  nf-server revoke laptop-7 --directory /srv/nf-server"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="NAME", help="what the machine was called when it was invited")
    add_directory(parser)


def run(args: argparse.Namespace) -> int:
    """Revoke and say so."""
    with opened(args.directory) as (_, identities):
        if identities.revoke(args.name):
            print(f"revoked {args.name}: it is refused from now on, and gone from the rounds within one")
        else:
            print(f"the invitation of {args.name} is void")
    return 0
