"""The registry that `scripts/fuzz.py` calls: real state, real TLS on loopback, and a channel for each caller."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from fuzzing.adapters import KEY
from fuzzing.nodes import admit, open_channel
from neuralforge_common.signing.keyring_file import change_keyring
from neuralforge_common.signing.trust import Signer
from neuralforge_server.identity import Identities
from neuralforge_server.registry.place import Registry, open_registry
from neuralforge_server.registry.serve import serve_registry
from neuralforge_server.state_folder import create_state_folder

CALLERS = ("nobody", "reader", "alice", "boss", "eve")
ALICE = CALLERS.index("alice")
STRANGERS = ("nobody", "reader", "eve")
"""To whom what alice keeps private is not there."""

_MEMBERS = {
    "reader": ("blue", "read"),
    "alice": ("blue", "publish"),
    "boss": ("blue", "admin"),
    "eve": ("red", "admin"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A registry that answers, and a channel for each of `CALLERS`."""

    registry: Registry
    channels: tuple[grpc.Channel, ...]
    kept: tuple[object, ...]
    """What ends the registry when it is forgotten."""


def serve(place: Path) -> Served:
    """A registry in an empty folder, answering until the process ends."""
    folder, now = place / "state", datetime.now(UTC)
    state = create_state_folder(folder, hosts=("localhost",), config="", now=now)
    identities = Identities(state.identities_path)
    opening = open_registry(folder, name="fuzzed")
    registry = opening.__enter__()
    for team in ("blue", "red"):
        registry.access.add_team(team)
    signer = Signer(name="alice", key=KEY.public, added=now, teams=("blue", "red"))
    change_keyring(registry.keyring, lambda ring: ring.with_signer(signer))
    running = serve_registry(registry, state, identities, host="127.0.0.1", port=0, member_port=0)
    channels = []
    for name in CALLERS:
        port, pair = running.port, ()
        if name in _MEMBERS:
            key = ec.generate_private_key(ec.SECP384R1())
            certificate = admit(state, identities, name, key)
            team, scope = _MEMBERS[name]
            registry.access.add_member(team, name, scope)
            port, pair = running.member_port, (key, certificate)
        channels.append(open_channel(state, port, *pair))
    return Served(registry=registry, channels=tuple(channels), kept=(opening, running, identities))
