"""`registry token`: what a machine that is no node of the federation shows, such as a build."""

from __future__ import annotations

import argparse

from neuralforge_server.cli.registry_folder import add_place, moment, opened_database, seconds

NAME = "token"
SUMMARY = "Make a token for a team, show which there are, or revoke one. The registry may be running."
EXAMPLES = """\
  nf-server registry token --team my-company --scope read
  nf-server registry token --team my-company --scope publish --expires 90d
  nf-server registry token --list
  nf-server registry token --revoke 4f2a91c0"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--team", metavar="TEAM", help="make one for this team")
    what.add_argument(
        "--list", action="store_true", help="show the tokens; not what is secret of them, which is kept nowhere"
    )
    what.add_argument("--revoke", metavar="ID", help="end one")
    parser.add_argument("--scope", choices=("read", "publish", "admin"), default="read", help="what it may do (read)")
    parser.add_argument("--expires", type=seconds, default=30 * 86_400, metavar="TIME", help="such as 12h, 90d (30d)")
    add_place(parser)


def run(args: argparse.Namespace) -> int:
    """Make, list or revoke."""
    import time

    from neuralforge_server.registry.access import Access

    with opened_database(args) as database:
        access = Access(database)
        if args.list:
            for token in access.tokens():
                over = "expired" if token.expires <= time.time() else f"until {moment(token.expires)}"
                print(f"{token.id}  {token.team}  {token.scope}  {'revoked' if token.revoked else over}")
        elif args.revoke:
            access.revoke_token(args.revoke)
            print(f"revoked the token {args.revoke}")
        else:
            token, text = access.make_token(args.team, args.scope, life=args.expires)
            until = moment(token.expires)
            print(f"token {token.id} for {token.team}, {token.scope}, until {until}; it is shown this once:\n")
            print(f"  {text}")
    return 0
