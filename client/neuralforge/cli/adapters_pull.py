"""`adapters pull`: an adapter comes from a registry, verified."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuralforge.cli.registry_choice import add_registry, chosen_registry, transfer

NAME = "pull"
SUMMARY = "Bring an adapter from the registry; it is there only after everything about it was verified."
EXAMPLES = """\
  neuralforge adapters pull my-company/spring-boot-expert
  neuralforge adapters pull my-company/spring-boot-expert@1.2.0 -o ./spring.lora"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("release", metavar="TEAM/NAME[@VERSION]", help="which; without a version, the latest")
    parser.add_argument("-o", "--output", type=Path, metavar="ADAPTER", help="the folder to make (./NAME.lora)")
    parser.add_argument("--force", action="store_true", help="replace an adapter that is there")
    parser.add_argument(
        "--trusted", type=Path, metavar="KEYRING", help="whose signatures count (~/.neuralforge/trusted-signers.json)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_registry(parser)


def run(args: argparse.Namespace) -> int:
    """Pull, verify, tell."""
    from datetime import UTC, datetime

    from neuralforge.federation.home import client_home
    from neuralforge.registry.pull import STEPS, pull
    from neuralforge_common.registry.release import ReleaseName
    from neuralforge_common.signing.keyring_file import KEYRING, read_keyring

    wanted = ReleaseName.parse(args.release)
    keyring = read_keyring(args.trusted if args.trusted is not None else client_home() / KEYRING)
    output = args.output if args.output is not None else Path(f"{wanted.name}.lora")
    with chosen_registry(args) as connection, transfer(str(wanted)) as progress:
        pulled = pull(
            connection,
            wanted,
            output,
            keyring=keyring,
            now=datetime.now(UTC),
            replace=args.force,
            progress=progress,
        )
    release, listing = pulled.listing.release, pulled.listing
    if args.json:
        import json

        facts = {
            "adapter": str(output),
            "release": str(release),
            "digest": listing.digest,
            "index": pulled.index.version,
            "fingerprint": pulled.verified.key.fingerprint,
            "signer": pulled.signer.name,
            "yanked": pulled.yanked,
            "allow_worse": pulled.verified.adapter.metadata.allow_worse,
        }
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    print(f"pulled {release} into {output}: {len(STEPS)} steps, all verified")
    print(f"signed by    {pulled.signer.name}, for {release.team}")
    print(f"fingerprint  sha256:{pulled.verified.key.fingerprint}")
    print(f"digest       sha256:{listing.digest}, in index {pulled.index.version}")
    if pulled.yanked:
        why = f": {listing.yank_reason}" if listing.yank_reason else ""
        print(f"warning: this version was yanked{why}; do not build on it")
    if pulled.verified.adapter.metadata.allow_worse:
        print("note: it was published although it does not beat its base")
    for notice in pulled.verified.adapter.notices:
        print(f"note: {notice}")
    return 0
