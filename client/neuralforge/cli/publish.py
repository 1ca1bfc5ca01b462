"""`publish`: an adapter goes to a registry."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli.registry_choice import add_registry, chosen_registry, transfer

if TYPE_CHECKING:
    from neuralforge_common.signing.verify import Trust

NAME = "publish"
SUMMARY = "Publish a signed adapter that beats its base, for everybody or for a team; a broken upload is gone on with."
EXAMPLES = """\
  neuralforge publish --adapter ./my-adapter.lora --public --tags "spring,java,microservices"
  neuralforge publish --adapter ./my-adapter.lora --team my-company --private
  neuralforge publish --adapter ./my-adapter.lora --team my-company --only-me --language java"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter", type=Path, required=True, metavar="ADAPTER", help="the .lora folder, signed")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--public", action="store_true", help="seen by whoever reaches the registry")
    who.add_argument("--private", action="store_true", help="seen by the team")
    who.add_argument("--only-me", action="store_true", help="seen by whoever publishes it, and the team's admins")
    parser.add_argument("--team", metavar="NAME", help="for this team (the only one that you may publish for)")
    parser.add_argument("--tags", default="", metavar="A,B", help="what it is found by")
    parser.add_argument(
        "--language", action="append", default=[], metavar="NAME", help="a programming language; may be repeated"
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="the private key that it is signed with (~/.neuralforge/private.key)"
    )
    parser.add_argument(
        "--allow-worse",
        action="store_true",
        help="publish it although it does not beat its base: its metadata says so, and it is signed again",
    )
    add_registry(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, ask the gate, send."""
    from neuralforge.federation.home import client_home
    from neuralforge.registry.publish import prepare, publish, publishing_team
    from neuralforge_common.registry.release import check_tags, check_team

    # Whatever can be refused here is refused before anybody is called.
    tags = check_tags(tag.strip().lower() for tag in args.tags.split(",") if tag.strip())
    languages = check_tags(language.lower() for language in args.language)
    team = None if args.team is None else check_team(args.team)
    key = args.key if args.key is not None else client_home() / "private.key"
    if args.allow_worse:
        _allow_worse(args.adapter, key)
    publication = prepare(args.adapter, _known_keys(key))
    with chosen_registry(args) as connection:
        release = publication.release(publishing_team(connection, team))
        with transfer(str(release)) as progress:
            digest = publish(
                connection,
                publication,
                release,
                visibility="public" if args.public else "team" if args.private else "private",
                tags=tags,
                languages=languages,
                progress=progress,
            )
    print(f"published {release}, seen by {_seen_by(args, release.team)}")
    print(f"digest       sha256:{digest}")
    print(f"signed by    sha256:{publication.verified.key.fingerprint}")
    print(f"others: neuralforge adapters pull {release}")
    return 0


def _allow_worse(adapter: Path, path: Path) -> None:
    """Lets the adapter say that it does not beat its base, where it does not, and signs it again."""
    from neuralforge.cli.passphrase import known_passphrase
    from neuralforge.registry.publish import read_claimed_metadata
    from neuralforge.registry.worse import sign_as_worse
    from neuralforge_common.errors import AdapterError, StorageError
    from neuralforge_common.key_files import read_private_file
    from neuralforge_common.registry.gate import check_publishable
    from neuralforge_common.signing.keys import MAX_KEY_BYTES, decode_signing_key, is_encrypted

    metadata = read_claimed_metadata(adapter)
    try:
        check_publishable(metadata, signed=True)
    except AdapterError:
        pass  # what allow_worse does not help, prepare() refuses
    else:
        return
    if not path.exists():
        raise StorageError(
            f"no key at {path}, and --allow-worse signs the adapter again",
            hint="name the private key that it is signed with: --key FILE",
        )
    pem = read_private_file(path, limit=MAX_KEY_BYTES)
    key = decode_signing_key(pem, str(path), known_passphrase(path) if is_encrypted(pem) else None)
    sign_as_worse(adapter, key)
    print(f"{adapter} now says that it does not beat its base; signed again by sha256:{key.public.fingerprint}")


def _known_keys(path: Path) -> Trust:
    """The own key, and those of the keyring that are trusted, whatever their teams: the registry asks for those."""
    from datetime import UTC, datetime

    from neuralforge.federation.home import client_home
    from neuralforge_common.signing.keyring_file import KEYRING, read_keyring
    from neuralforge_common.signing.keys import PublicKey, public_path, read_public_key

    own = read_public_key(public_path(path)) if public_path(path).exists() else None
    keyring = read_keyring(client_home() / KEYRING)

    def trust(fingerprint: str) -> PublicKey:
        if own is not None and own.fingerprint == fingerprint:
            return own
        return keyring.trusted(fingerprint, team=None, now=datetime.now(UTC)).key

    return trust


def _seen_by(args: argparse.Namespace, team: str) -> str:
    if args.public:
        return "everybody who reaches the registry"
    return f"everybody in {team}" if args.private else f"you and the admins of {team}"
