"""`registry team`: who may publish for a team, and whose signatures count for it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge_server.cli.registry_folder import add_place, opened_database

if TYPE_CHECKING:
    from neuralforge_common.signing.keys import PublicKey
    from neuralforge_server.registry.access import Access

NAME = "team"
SUMMARY = (
    "Add a team, its members and the keys that sign for it; list them; take them away. The registry may be running."
)
EXAMPLES = """\
  nf-server registry team add my-company
  nf-server registry team add my-company --member laptop-7 --scope publish --signer ./alice.pub
  nf-server registry team list
  nf-server registry team remove my-company --member laptop-7 --signer alice"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(
        dest="team_action", metavar="add|list|remove", required=True, parser_class=type(parser)
    )
    add = actions.add_parser("add", help="make a team, or give one more members or keys")
    add.add_argument("team", metavar="TEAM", help="a-z, 0-9 and -")
    add.add_argument("--member", metavar="NAME", help="a machine that has joined the federation, or will")
    add.add_argument("--scope", choices=("read", "publish", "admin"), default="publish", help="of the member (publish)")
    add.add_argument("--signer", type=Path, metavar="KEY.pub", help="a public key that signs for the team")
    add.add_argument("--signer-name", metavar="NAME", help="whose key it is (the name of its file)")
    listed = actions.add_parser("list", help="every team, its members and its keys")
    remove = actions.add_parser("remove", help="take a member out, or a key: what is published stays")
    remove.add_argument("team", metavar="TEAM")
    remove.add_argument("--member", metavar="NAME")
    remove.add_argument(
        "--signer", metavar="NAME|FINGERPRINT", help="never again take what this key signs, for any team"
    )
    for action in (add, listed, remove):
        add_place(action)


def run(args: argparse.Namespace) -> int:
    """Add, list or remove."""
    from neuralforge_common.signing.keyring_file import KEYRING
    from neuralforge_server.registry.access import Access
    from neuralforge_server.registry.place import FOLDER

    with opened_database(args) as database:
        keyring = args.directory / FOLDER / KEYRING
        access = Access(database)
        return {"add": _add, "list": _list, "remove": _remove}[args.team_action](args, access, keyring)


def _add(args: argparse.Namespace, access: Access, keyring: Path) -> int:
    from neuralforge_common.signing.keys import read_public_key

    key = read_public_key(args.signer) if args.signer else None
    made = access.add_team(args.team)
    print(f"{'added' if made else 'there is'} the team {args.team}")
    if args.member:
        access.add_member(args.team, args.member, args.scope)
        print(f"member       {args.member}, {args.scope}")
    if key is not None:
        _add_signer(args.signer_name or args.signer.stem, args.team, key, keyring)
        access.note("team signer", args.team, f"sha256:{key.fingerprint}")
        print(f"signer       {args.signer_name or args.signer.stem}")
        print(f"fingerprint  sha256:{key.fingerprint}")
        print("compare the fingerprint with its owner")
    return 0


def _add_signer(name: str, team: str, key: PublicKey, keyring: Path) -> None:
    import datetime

    from neuralforge_common.signing.keyring_file import change_keyring
    from neuralforge_common.signing.trust import Keyring, Signer

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    def change(before: Keyring) -> Keyring:
        known = before.find(key.fingerprint)
        teams = () if known is None else known.teams
        return before.with_signer(Signer(name=name, key=key, added=now, teams=tuple(dict.fromkeys((*teams, team)))))

    change_keyring(keyring, change)


def _list(args: argparse.Namespace, access: Access, keyring: Path) -> int:
    import datetime

    from neuralforge_common.signing.keyring_file import read_keyring

    now = datetime.datetime.now(datetime.UTC)
    signers = read_keyring(keyring).signers
    teams = access.teams()
    if not teams:
        print("there is no team yet: nf-server registry team add TEAM --member NAME --signer KEY.pub")
    for team in teams:
        print(team.name)
        for member, scope in team.members.items():
            print(f"  member  {member}  {scope}")
        for signer in signers:
            if team.name in signer.teams:
                print(f"  signer  {signer.name}  sha256:{signer.key.fingerprint}  {signer.standing(now)}")
    return 0


def _remove(args: argparse.Namespace, access: Access, keyring: Path) -> int:
    import datetime

    from neuralforge_common.errors import UsageError
    from neuralforge_common.signing.keyring_file import change_keyring, read_keyring

    if not args.member and not args.signer:
        raise UsageError("registry team remove: wanted --member NAME or --signer NAME", hint="a team itself stays")
    if args.signer:
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        gone = read_keyring(keyring).living(args.signer)
        change_keyring(keyring, lambda ring: ring.without(gone.key.fingerprint, now=now, reason=""))
        access.note("team signer revoked", args.team, f"sha256:{gone.key.fingerprint}")
        print(f"revoked      {gone.name}, sha256:{gone.key.fingerprint}: nothing that it signs is taken any more")
    if args.member:
        access.remove_member(args.team, args.member)
        print(f"removed      {args.member} from {args.team}")
    return 0
