"""`sign-adapter`: vouch for every byte of an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "sign-adapter"
SUMMARY = "Sign an adapter: whoever trusts the key can tell that every byte is as it was signed."
EXAMPLES = """\
  neuralforge sign-adapter ./my-adapter.lora
  neuralforge sign-adapter ./my-adapter.lora --key ~/.neuralforge/private.key"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the .lora folder; model.sig is put into it")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the private key (~/.neuralforge/private.key)")


def run(args: argparse.Namespace) -> int:
    """Check, sign, tell."""
    from neuralforge.cli.passphrase import known_passphrase
    from neuralforge.federation.home import client_home
    from neuralforge_common.errors import StorageError
    from neuralforge_common.folder import SIGNATURE
    from neuralforge_common.key_files import read_private_file
    from neuralforge_common.signing.keys import MAX_KEY_BYTES, decode_signing_key, is_encrypted
    from neuralforge_common.signing.sign import sign_adapter

    path = args.key if args.key is not None else client_home() / "private.key"
    if not path.exists():
        raise StorageError(f"no key at {path}", hint="neuralforge keygen makes one")
    pem = read_private_file(path, limit=MAX_KEY_BYTES)
    key = decode_signing_key(pem, str(path), known_passphrase(path) if is_encrypted(pem) else None)
    signed = sign_adapter(args.adapter, key)
    for notice in signed.adapter.notices:
        print(f"note: {notice}")
    count = len(signed.manifest.files)
    print(f"signed {args.adapter}: {count} files, in {SIGNATURE}")
    print(f"digest       sha256:{signed.manifest.digest}")
    print(f"fingerprint  sha256:{key.public.fingerprint}")
    if signed.replaced is not None:
        print(f"it takes the place of a signature by sha256:{signed.replaced}")
    if key.public.kind != "p256":
        print(f"note: OpenSSF's model_signing does not read {key.public.kind} signatures, neuralforge does")
    return 0
