"""Nodes of the federations that `scripts/fuzz.py` makes: how they come in, and how they call."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from neuralforge_common.certificates import certificate_pem, issue_node_certificate, openssh_public_key, private_pem
from neuralforge_server.identity import Identities
from neuralforge_server.state_folder import ServerState


def admit(state: ServerState, identities: Identities, name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Makes an active node, without a call."""
    serial, public_key = x509.random_serial_number(), openssh_public_key(key.public_key())
    identities.join(identities.invite(name), public_key, serial, identity=hashlib.sha256(name.encode()).digest())
    return issue_node_certificate(state.authority, key.public_key(), name, serial, datetime.now(UTC))


def open_channel(
    state: ServerState,
    port: int,
    key: ec.EllipticCurvePrivateKey | None = None,
    certificate: x509.Certificate | None = None,
) -> grpc.Channel:
    """A connection of its own to a server on loopback: a stranger's, or that of who has a certificate."""
    pair = () if key is None or certificate is None else (private_pem(key), certificate_pem(certificate))
    credentials = grpc.ssl_channel_credentials(state.authority_pem, *pair)
    return grpc.secure_channel(f"localhost:{port}", credentials, [("grpc.use_local_subchannel_pool", 1)])
