"""`keygen`: a key to sign adapters with."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "keygen"
SUMMARY = "Make a key that signs adapters: a private file, and a public one beside it for those who verify."
EXAMPLES = """\
  neuralforge keygen
  neuralforge keygen --key ./team.key
  NEURALFORGE_PASSPHRASE=… neuralforge keygen --type ed25519"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--key", type=Path, metavar="FILE", help="~/.neuralforge/private.key; FILE.pub comes with it")
    parser.add_argument(
        "--type", default="p256", metavar="p256|ed25519", help="p256, which OpenSSF's tools verify, too; or ed25519"
    )
    parser.add_argument("--no-passphrase", action="store_true", help="do not lock the key, and do not ask")
    parser.add_argument("--force", action="store_true", help="overwrite a key that is there; it is lost for good")


def run(args: argparse.Namespace) -> int:
    """Make it."""
    from neuralforge.cli.passphrase import new_passphrase
    from neuralforge.federation.home import client_home
    from neuralforge_common.errors import UsageError
    from neuralforge_common.signing.keys import KINDS, check_free, generate_key, public_path, write_key_pair

    if args.type not in KINDS:
        raise UsageError(f"--type: wanted {' or '.join(KINDS)}, got {args.type!r}")
    path = args.key if args.key is not None else client_home() / "private.key"
    if not args.force:
        check_free(path)  # before anybody types a passphrase in vain
    passphrase = None if args.no_passphrase else new_passphrase(path)
    key = generate_key(args.type)
    write_key_pair(path, key, passphrase=passphrase, replace=args.force)
    print(f"private key  {path} ({'locked by a passphrase' if passphrase else 'not locked'}; keep it to yourself)")
    print(f"public key   {public_path(path)} ({args.type}; for those who verify)")
    print(f"fingerprint  sha256:{key.public.fingerprint}")
    return 0
