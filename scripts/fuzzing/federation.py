"""The federation whose enrolment `scripts/fuzz.py` calls: real state, real TLS on loopback, and callers of all kinds.

    nobody   without a certificate               alice, bob   members
    forger   with one by another authority       carol        revoked, and invited again
    ghost    with one that was never registered  dave         goes on with another key, and still has the old one

Keys, tokens and the server's time are the same each time, so an input that was found once finds the same again.
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fuzzing.nodes import admit, open_channel
from neuralforge_common.certificates import create_authority, issue_node_certificate, openssh_public_key
from neuralforge_server.enrolment import FailureLimit, serve_enrolment
from neuralforge_server.identity import Identities
from neuralforge_server.state_folder import create_state_folder

CALLERS = ("nobody", "forger", "ghost", "alice", "bob", "carol", "dave")
MEMBERS = ("alice", "bob")
WITHOUT_TLS = ("nobody", "forger")
"""Whom TLS keeps out where a certificate is wanted."""

MOMENT = 1.8e9
"""The server's time, in seconds since 1970."""

TOKENS = {name: f"nfj_{name * 43}"[:47] for name in ("erin", "carol", "spent", "expired")}
"""Those of erin and carol let each of them join; the others are worth nothing any more."""

Rows = dict[str, dict[Any, tuple[Any, ...]]]
"""The tables of the registry of nodes: each row by its first column."""


def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """No secret: the key that somebody has, or would have."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"), ec.SECP384R1())


def called(caller: str) -> str:
    """The name in a caller's certificate."""
    return "alice" if caller in ("forger", "ghost") else caller


class Federation:
    """Both services, answering until the process ends."""

    def __init__(self, place: Path) -> None:
        """`place` is an empty folder."""
        now = datetime.now(UTC)  # TLS looks at the certificates' dates with this machine's clock
        self.state = create_state_folder(place / "state", hosts=("localhost",), config="", now=now)
        self._identities = identities = Identities(self.state.identities_path, clock=lambda: MOMENT)
        self._registry = sqlite3.connect(self.state.identities_path)
        self._registry.execute("PRAGMA synchronous = OFF")
        authority = self.state.authority
        self._pairs: dict[str, tuple[Any, ...]] = {"nobody": ()}
        for name in ("alice", "bob", "carol", "dave"):
            self._pairs[name] = key_of(name), admit(self.state, identities, name, key_of(name))
        for name, signer in (("forger", create_authority(now)), ("ghost", authority)):
            key, serial = key_of(name), x509.random_serial_number()
            self._pairs[name] = key, issue_node_certificate(signer, key.public_key(), called(name), serial, now)
        identities.revoke("carol")
        following, serial = key_of("dave's next").public_key(), x509.random_serial_number()
        identities.rotate(self.serial_of("dave"), openssh_public_key(following), serial)
        self._invite_all()
        self._prepared = sqlite3.connect(":memory:")
        self._registry.backup(self._prepared)
        # Each look at the clock is a minute after the last: the limit is there, and no input comes too soon.
        minutes = itertools.count()
        limit = FailureLimit(clock=lambda: 60.0 * next(minutes))
        self._running = serve_enrolment(
            self.state,
            identities,
            federation="fuzzed",
            host="127.0.0.1",
            port=0,
            member_port=0,
            fleet_port=8472,
            clock=lambda: MOMENT,
            limit=limit,
        )
        self._ports = {"Enrolment": self._running.port, "Membership": self._running.member_port}
        self._channels: dict[tuple[str, str], grpc.Channel] = {}

    def channel(self, caller: str, service: str) -> grpc.Channel:
        """A caller's way to a service."""
        known = self._channels.get((caller, service))
        if known is not None and (caller not in WITHOUT_TLS or service == "Enrolment"):
            return known
        if known is not None:
            known.close()  # gRPC would wait longer after each failure, and say without a try that there is another
        pair = self._pairs[caller]
        opened = self._channels[caller, service] = open_channel(self.state, self._ports[service], *pair)
        return opened

    def serial_of(self, caller: str) -> int:
        """The number of a caller's certificate."""
        return int(self._pairs[caller][1].serial_number)

    def rows(self) -> Rows:
        """Everything that the registry of nodes holds."""
        tables = ("invitations", "credentials", "identities")
        return {table: {row[0]: row for row in self._registry.execute(f"SELECT * FROM {table}")} for table in tables}  # noqa: S608

    def put_back(self) -> None:
        """Makes the registry of nodes what it was in the beginning."""
        self._prepared.backup(self._registry)

    def _invite_all(self) -> None:
        drawn = {name: self._identities.invite(name) for name in ("erin", "carol", "spent")}
        drawn["expired"] = self._identities.invite("expired", life=0)
        self._identities.join(drawn["spent"], openssh_public_key(key_of("spent").public_key()), 1)
        # The registry draws its tokens, and keeps no more of one than this.
        with self._registry:
            for name, token in drawn.items():
                pair = [hashlib.sha256(each.encode()).digest() for each in (TOKENS[name], token)]
                self._registry.execute("UPDATE invitations SET digest = ? WHERE digest = ?", pair)
