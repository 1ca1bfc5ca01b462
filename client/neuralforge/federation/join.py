"""Joining a federation: a one-use token and a fresh key become a node.

The address pins the authority by its fingerprint, and nothing secret leaves this machine before the server has proved
that it belongs to it.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from neuralforge.federation.channel import TIMEOUT, call, check_clock, check_protocol, open_channel, unreachable
from neuralforge.federation.home import (
    AUTHORITY,
    CERTIFICATE,
    IDENTITY,
    KEY,
    RECORD,
    FederationRecord,
    JoinedFederation,
    federation_folder,
    open_federation,
)
from neuralforge_common.address import FederationAddress
from neuralforge_common.atomic import replace_folder, storage_errors
from neuralforge_common.certificates import (
    certificate_hosts,
    certificate_pem,
    create_request,
    fingerprint,
    is_issued_by,
    private_pem,
    read_certificate,
)
from neuralforge_common.errors import FederationError, StorageError, UsageError
from neuralforge_common.key_files import PRIVATE_FOLDER, make_private_folder, write_private_file
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services
from neuralforge_common.secagg.keys import identity_pem, public_bytes
from neuralforge_common.strict_json import shortened

_IMPOSTOR = "something else may be answering there: compare the address with what `nf-server init` printed"


def join(
    address: FederationAddress, token: str, *, home: Path, clock: Callable[[], float] = time.time
) -> JoinedFederation:
    """Joins the federation at an address; its folder appears whole, or not at all.

    Raises:
        UsageError: the address has no fingerprint.
        FederationError: already joined; unreachable; another authority; a token that does not count; clocks apart.
        StorageError: the home cannot be written, or others may look into it.
    """
    if address.fingerprint is None:
        raise UsageError(
            f"{address} has no fingerprint: wanted {address}#sha256:… to know the server by",
            hint="copy the whole line that `nf-server invite` printed, in quotes",
        )
    folder = federation_folder(home, address)
    make_private_folder(folder.parent)
    with _alone(folder.parent):
        _refuse_joined(folder, address)
        authority = verify_server(address, clock=clock)
        spent = None
        try:
            with replace_folder(folder) as new:
                new.chmod(PRIVATE_FOLDER)
                # What needs the disk comes before the token is spent, as far as it can.
                key = ec.generate_private_key(ec.SECP384R1())
                write_private_file(new / KEY, private_pem(key, openssh=True))
                identity = Ed25519PrivateKey.generate()
                write_private_file(new / IDENTITY, identity_pem(identity))
                (new / AUTHORITY).write_bytes(certificate_pem(authority))
                with open_channel(address.host, address.port, roots=certificate_pem(authority)) as channel:
                    reply = call(
                        services.EnrolmentStub(channel).Join,
                        messages.JoinRequest(
                            token=token, signing_request_pem=create_request(key), identity=public_bytes(identity)
                        ),
                        messages.JoinReply,
                    )
                spent = reply.name
                certificate = read_certificate(reply.certificate_pem, "what the server sent")
                if certificate.public_key() != key.public_key() or not is_issued_by(certificate, authority):
                    raise FederationError("the server sent a certificate that is not for this machine's key")
                record = FederationRecord(
                    federation=reply.federation,
                    name=reply.name,
                    host=address.host,
                    port=address.port,
                    member_port=reply.member_port,
                    fleet_port=reply.fleet_port,
                    fingerprint=address.fingerprint,
                ).to_json()
                FederationRecord.from_json(record, "what the server sent")
                (new / CERTIFICATE).write_bytes(certificate_pem(certificate))
                (new / RECORD).write_bytes(record)
        except StorageError as error:
            if spent is None:
                raise
            hint = f"the token is spent: make room, have {shortened(spent)} revoked and invited again, then join"
            raise StorageError(error.message, hint=hint) from error
    return open_federation(address, home=home)


def verify_server(address: FederationAddress, *, clock: Callable[[], float] = time.time) -> x509.Certificate:
    """Finds the authority that an address pins, and makes sure that the server there belongs to it.

    Nothing secret is sent. Returns the authority's certificate.

    Raises:
        FederationError: unreachable; another authority; a server certificate by somebody else, for another host, or
            out of date; another protocol; clocks apart.
    """
    # 1. The certificate that the server shows. It is not trusted yet.
    try:
        shown_pem = ssl.get_server_certificate((address.host, address.port), timeout=TIMEOUT / 2).encode()
    except ssl.SSLError as error:
        raise FederationError(
            f"what answers at {address.endpoint} does not speak TLS ({error.reason or error})",
            hint="is the port right? wanted the one in the address that `nf-server init` printed",
        ) from error
    except OSError as error:
        raise unreachable(address.host, address.port, error) from error
    shown = read_certificate(shown_pem, "what the server showed")
    # 2. Over a channel that trusts this one certificate, whatever its name: the authority that it claims to be under.
    called = next(iter(certificate_hosts(shown)), None)
    with open_channel(address.host, address.port, roots=shown_pem, called=called) as channel:
        reply = call(services.EnrolmentStub(channel).Authority, messages.AuthorityRequest(), messages.AuthorityReply)
    authority = read_certificate(reply.certificate_pem, "what the server sent as its authority")
    # 3. It is the pinned one.
    if fingerprint(authority) != address.fingerprint:
        raise FederationError(
            f"the server at {address.endpoint} has another authority: its fingerprint is {fingerprint(authority)}, "
            f"the address has {address.fingerprint}; the token was not sent",
            hint=_IMPOSTOR,
        )
    # 4. The authority, whose certificate is no secret, has signed the one that the server can prove to hold.
    if not is_issued_by(shown, authority):
        raise FederationError(
            f"the server at {address.endpoint} shows a certificate that its authority has not signed; "
            "the token was not sent",
            hint=_IMPOSTOR,
        )
    # 5. Only now the server's words count: who it is, when, and how it speaks.
    now = clock()
    check_clock(reply.server_time, now)
    if address.host not in certificate_hosts(shown):
        raise FederationError(
            f"the server's certificate is for {', '.join(certificate_hosts(shown))}, not for {address.host}",
            hint=f"join it by one of those names, or: nf-server init --renew --host {address.host}",
        )
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not shown.not_valid_before_utc <= moment <= shown.not_valid_after_utc:
        raise FederationError(
            f"the server's certificate is valid from {shown.not_valid_before_utc:%Y-%m-%d} "
            f"to {shown.not_valid_after_utc:%Y-%m-%d}, today is {moment:%Y-%m-%d}",
            hint="nf-server init --renew",
        )
    check_protocol(reply.protocol, reply.server_version)
    return authority


def _refuse_joined(folder: Path, address: FederationAddress) -> None:
    if folder.exists():
        raise FederationError(
            f"this machine has joined {address.endpoint} already",
            hint=f"take part: nf-client train --server nf://{address.endpoint}; to join anew, remove {folder} first",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second `join` out: each would replace what the other has put down."""
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FederationError("another join is under way on this machine", hint="wait until it has ended") from error
    try:
        yield
    finally:
        os.close(descriptor)
