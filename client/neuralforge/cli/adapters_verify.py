"""`adapters verify`: who signed an adapter, and whether every byte is still theirs."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "verify"
SUMMARY = "Tell who signed an adapter, and refuse it where a byte, a file or the signer is not as it should be."
EXAMPLES = """\
  neuralforge adapters verify ./their-adapter.lora
  neuralforge adapters verify ./their-adapter.lora --team my-company
  neuralforge adapters verify ./their-adapter.lora --key ./their.pub"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the .lora folder, with its model.sig")
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--key", type=Path, metavar="FILE", help="believe this public key and no other")
    trust.add_argument(
        "--trusted", type=Path, metavar="KEYRING", help="a keyring (~/.neuralforge/trusted-signers.json)"
    )
    parser.add_argument("--team", metavar="NAME", help="believe those alone who are trusted as members of this team")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Verify and tell."""
    from datetime import UTC, datetime

    from neuralforge.federation.home import client_home
    from neuralforge_common.errors import UsageError
    from neuralforge_common.signing.keyring_file import KEYRING, read_keyring
    from neuralforge_common.signing.keys import PublicKey, read_public_key
    from neuralforge_common.signing.verify import only, verify_adapter

    if args.key is not None:
        if args.team is not None:
            raise UsageError("--team goes with a keyring: a key alone says nothing of teams")
        verified = verify_adapter(args.adapter, only(read_public_key(args.key)))
        signer = None
    else:
        keyring = read_keyring(args.trusted if args.trusted is not None else client_home() / KEYRING)
        now = datetime.now(UTC)

        def trusted(fingerprint: str) -> PublicKey:
            return keyring.trusted(fingerprint, team=args.team, now=now).key

        verified = verify_adapter(args.adapter, trusted)
        signer = keyring.find(verified.key.fingerprint)
    metadata = verified.adapter.metadata
    if args.json:
        import json

        facts = {
            "adapter": str(args.adapter),
            "name": metadata.name,
            "version": metadata.version,
            "digest": verified.manifest.digest,
            "files": dict(verified.manifest.files),
            "fingerprint": verified.key.fingerprint,
            "signer": signer and signer.name,
            "teams": list(signer.teams) if signer else [],
        }
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    who = "the owner of the key that was given" if signer is None else signer.name
    teams = f" ({', '.join(signer.teams)})" if signer is not None and signer.teams else ""
    print(f"verified {args.adapter}: {metadata.name} {metadata.version}, signed by {who}{teams}")
    print(f"files        {len(verified.manifest.files)}, every byte of them, and no other")
    print(f"digest       sha256:{verified.manifest.digest}")
    print(f"fingerprint  sha256:{verified.key.fingerprint}")
    for notice in verified.adapter.notices:
        print(f"note: {notice}")
    return 0
