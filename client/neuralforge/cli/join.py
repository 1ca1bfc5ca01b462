"""`join`: this machine becomes a node of a federation."""

from __future__ import annotations

import argparse

NAME = "join"
SUMMARY = "Join a federation, with the line that its server's `nf-server invite` printed."
EXAMPLES = """\
  neuralforge join 'nf://build-box:8470#sha256:9f86d0…' nfj_4uSx…
  neuralforge join 'nf://[2001:db8::7]:8470#sha256:9f86d0…' nfj_4uSx…"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("address", metavar="ADDRESS", help="nf://host:port#sha256:…, in quotes")
    parser.add_argument("token", metavar="TOKEN", help="the invitation: it works once, for an hour unless said else")


def run(args: argparse.Namespace) -> int:
    """Join and say what comes next."""
    from neuralforge.federation.home import client_home
    from neuralforge_common.address import FederationAddress

    address = FederationAddress.parse(args.address)
    from neuralforge.federation.join import join
    from neuralforge_common.secagg.keys import fingerprint, public_bytes

    joined = join(address, args.token, home=client_home())
    print(f"joined {joined.record.federation} as {joined.record.name}; keys are in {joined.folder}")
    if (identity := joined.identity) is not None:
        print(f"its fingerprint under secure aggregation, for the others: {fingerprint(public_bytes(identity))}")
    print(f"next: nf-client train --server nf://{address.endpoint} --source .")
    return 0
