"""A node goes on with another key.

    node.key.next written → the server changes over → node.pem replaced → node.key.next becomes node.key

Killed anywhere, the next call or the next opening of the folder finishes it: the server answers the same question
again, and a certificate that came in says which of the two keys belongs to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from neuralforge.federation.channel import Refused, call
from neuralforge.federation.home import CERTIFICATE, KEY, NEXT_KEY, JoinedFederation, open_federation
from neuralforge.federation.membership import describe, membership
from neuralforge_common.atomic import storage_errors, write_bytes_atomically
from neuralforge_common.certificates import (
    certificate_pem,
    create_request,
    is_issued_by,
    private_pem,
    read_certificate,
    read_private_key,
)
from neuralforge_common.errors import FederationError
from neuralforge_common.key_files import read_private_file, write_private_file
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.rotation import sign_rotation


def rotate_key(joined: JoinedFederation, *, clock: Callable[[], float] = time.time) -> JoinedFederation:
    """Makes a new key and certificate, signed for by the old key; the old ones are refused from then on.

    Raises:
        FederationError: unreachable, revoked, or refused for another reason; the old key still counts then, unless the
            answer was lost on the way: call again.
        StorageError: the folder cannot be written.
    """
    path = joined.folder / NEXT_KEY
    goes_on = path.exists()
    if goes_on:
        # The server may know this key already: making another one would shut this machine out.
        new_key = read_private_key(read_private_file(path), str(path))
    else:
        describe(joined, clock=clock)
        new_key = ec.generate_private_key(ec.SECP384R1())
        write_private_file(path, private_pem(new_key, openssh=True))
    now = clock()
    request = messages.RotateKeyRequest(
        signing_request_pem=create_request(new_key),
        time=now,
        signature=sign_rotation(joined.key, name=joined.record.name, new_key=new_key.public_key(), time=now),
    )
    try:
        with membership(joined) as stub:
            reply = call(stub.RotateKey, request, messages.RotateKeyReply)
    except Refused:
        if not goes_on:
            path.unlink()
        raise
    certificate = read_certificate(reply.certificate_pem, "what the server sent")
    authority = read_certificate(joined.authority_pem, "the pinned authority")
    if certificate.public_key() != new_key.public_key() or not is_issued_by(certificate, authority):
        raise FederationError("the server sent a certificate that is not for this machine's new key")
    write_bytes_atomically(joined.folder / CERTIFICATE, certificate_pem(certificate))
    with storage_errors(joined.folder / KEY):
        path.replace(joined.folder / KEY)
    return open_federation(joined.record.address, home=joined.folder.parents[1])
