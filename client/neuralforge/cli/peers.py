"""`peers`: whom this machine believes to be whom under secure aggregation."""

from __future__ import annotations

import argparse

NAME = "peers"
SUMMARY = (
    "Show the fingerprints of this machine and of the others under secure aggregation, to compare with their owners."
)
EXAMPLES = """\
  neuralforge peers
  neuralforge peers --close                 # all are compared: believe nobody new from now on
  neuralforge peers --forget laptop-7       # its owner says that it has joined anew"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--server", metavar="ADDRESS", help="nf://host:port (where just one was joined, that one)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--forget", metavar="NAME", help="believe the next identity that a peer of this name shows")
    change.add_argument("--close", action="store_true", help="take part with those shown here alone")
    change.add_argument("--open", action="store_true", help="believe whoever is new, as in the beginning")


def run(args: argparse.Namespace) -> int:
    """Change what is asked for, and show."""
    from dataclasses import replace

    from neuralforge.federation.home import client_home, open_federation
    from neuralforge.federation.secagg.pins import Peers, Pins
    from neuralforge_common.address import FederationAddress
    from neuralforge_common.errors import FederationError
    from neuralforge_common.secagg.keys import fingerprint, public_bytes
    from neuralforge_common.strict_json import shortened

    address = FederationAddress.parse(args.server) if args.server is not None else None
    joined = open_federation(address, home=client_home())
    pins = Pins(joined.peers)

    def changed(peers: Peers) -> Peers:
        if args.forget is not None:
            if args.forget not in peers.keys:
                raise FederationError(f"no peer called {shortened(args.forget)} is known here")
            return replace(peers, keys={name: key for name, key in peers.keys.items() if name != args.forget})
        return replace(peers, closed=bool(args.close)) if args.close or args.open else peers

    peers = pins.change(changed)
    own = {} if joined.identity is None else {joined.record.name: public_bytes(joined.identity)}
    for name, key in {**own, **dict(sorted(peers.keys.items()))}.items():
        print(f"{fingerprint(key)}  {name}{' (this machine)' if name in own else ''}")
    print("nobody else is believed" if peers.closed else "whoever is new is believed; when all are here: peers --close")
    return 0
