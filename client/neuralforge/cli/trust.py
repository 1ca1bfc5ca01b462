"""`trust`: whose signatures are believed on this machine."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

NAME = "trust"
SUMMARY = "Say whose signatures are believed on this machine, for which team and until when; show it; take it back."
EXAMPLES = """\
  neuralforge trust add ./alice.pub --name alice --team my-company
  neuralforge trust add ./alice.pub --name alice --fingerprint sha256:9f86d0… --expires 2027-06-30
  neuralforge trust list
  neuralforge trust revoke alice --reason 'laptop stolen'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", metavar="add|list|revoke", required=True, parser_class=type(parser))
    add = _action(actions, parser, "add", "believe what a key signs")
    add.add_argument("public_key", type=Path, metavar="KEY.pub", help="the public key, from whom you believe")
    add.add_argument("--name", required=True, metavar="NAME", help="whose it is")
    add.add_argument("--team", action="append", default=[], metavar="NAME", help="a team of theirs; may be repeated")
    add.add_argument("--fingerprint", metavar="SHA256", help="what its owner has told: another key is refused")
    add.add_argument(
        "--expires", metavar="DATE|never", help="the first day (UTC) on which it is not believed; in a year"
    )
    listed = _action(actions, parser, "list", "show everybody who is or was trusted")
    listed.add_argument("--json", action="store_true", help="one JSON object on standard output")
    revoke = _action(actions, parser, "revoke", "never again believe a key, whatever it has signed; this is for good")
    revoke.add_argument("who", metavar="NAME|FINGERPRINT", help="whose key, or which")
    revoke.add_argument("--reason", default="", metavar="TEXT", help="kept with it, and shown when it is refused")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    parser: argparse.ArgumentParser,
    name: str,
    summary: str,
) -> argparse.ArgumentParser:
    action = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=parser.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action.add_argument("--trusted", type=Path, metavar="KEYRING", help="~/.neuralforge/trusted-signers.json")
    return action


def run(args: argparse.Namespace) -> int:
    """Add, list or revoke."""
    from datetime import UTC

    from neuralforge.federation.home import client_home
    from neuralforge_common.signing.keyring_file import KEYRING

    path = args.trusted if args.trusted is not None else client_home() / KEYRING
    now = datetime.now(UTC).replace(microsecond=0)
    if args.action == "add":
        return _add(args, path, now)
    if args.action == "list":
        return _list(path, now, as_json=args.json)
    return _revoke(args, path, now)


def _add(args: argparse.Namespace, path: Path, now: datetime) -> int:
    from neuralforge_common.errors import SignatureError
    from neuralforge_common.signing.keyring_file import change_keyring
    from neuralforge_common.signing.keys import read_public_key
    from neuralforge_common.signing.trust import Signer

    key = read_public_key(args.public_key)
    told = args.fingerprint and args.fingerprint.removeprefix("sha256:").lower()
    if told and told != key.fingerprint:
        raise SignatureError(
            f"{args.public_key} is another key: its fingerprint is sha256:{key.fingerprint}, wanted {args.fingerprint}",
            hint="ask its owner again, in another way than the key came",
        )
    signer = Signer(name=args.name, key=key, added=now, teams=tuple(args.team), expires=_expiry(args.expires, now))
    kept = change_keyring(path, lambda keyring: keyring.with_signer(signer)).find(key.fingerprint) or signer
    teams = f" ({', '.join(kept.teams)})" if kept.teams else ""
    print(f"trusted      {kept.name}{teams}, {_until(kept.expires)}")
    print(f"fingerprint  sha256:{key.fingerprint}")
    if not told:
        print("compare the fingerprint with its owner; if it is another: neuralforge trust revoke " + kept.name)
    return 0


def _list(path: Path, now: datetime, *, as_json: bool) -> int:
    from neuralforge_common.signing.keyring_file import read_keyring

    signers = read_keyring(path).signers
    if as_json:
        import json

        entries = [
            {
                "name": signer.name,
                "teams": list(signer.teams),
                "fingerprint": signer.key.fingerprint,
                "type": signer.key.kind,
                "added": signer.added.isoformat(),
                "expires": signer.expires and signer.expires.isoformat(),
                "standing": signer.standing(now),
            }
            for signer in signers
        ]
        print(json.dumps({"keyring": str(path), "signers": entries}, ensure_ascii=False))
    elif not signers:
        print(f"nobody is trusted in {path}")
    for signer in () if as_json else signers:
        standing = signer.standing(now)
        until = f", {_until(signer.expires)}" if standing == "trusted" else ""
        print(f"sha256:{signer.key.fingerprint}  {signer.name}  {', '.join(signer.teams) or '-'}  {standing}{until}")
    return 0


def _revoke(args: argparse.Namespace, path: Path, now: datetime) -> int:
    from neuralforge_common.signing.keyring_file import change_keyring, read_keyring

    gone = read_keyring(path).living(args.who)
    change_keyring(path, lambda keyring: keyring.without(gone.key.fingerprint, now=now, reason=args.reason))
    print(f"revoked      {gone.name}; nothing that this key has signed is believed any more")
    print(f"fingerprint  sha256:{gone.key.fingerprint}")
    return 0


def _expiry(text: str | None, now: datetime) -> datetime | None:
    from datetime import UTC, timedelta

    from neuralforge_common.errors import UsageError

    if text is None:
        return now + timedelta(days=365)
    if text == "never":
        return None
    try:
        expires = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise UsageError(f"--expires: wanted a date like 2027-06-30, or never, got {text!r}") from error
    if expires <= now:
        raise UsageError(f"--expires: {text} has passed")
    return expires


def _until(expires: datetime | None) -> str:
    return f"until {expires:%Y-%m-%d}" if expires else "without end"
