"""Who a call is from: on one port by a token or nobody in particular, on the other by the node's certificate."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from cryptography import x509

from neuralforge_common.errors import FederationError, RegistryError
from neuralforge_server.identity import Identities
from neuralforge_server.registry.access import Access, Caller

Who = Callable[[grpc.ServicerContext], Caller]


def by_token(access: Access) -> Who:
    """Callers by `authorization: Bearer …`; those without are nobody in particular.

    Failures are not counted: a token has 256 random bits, and others may be behind the same address.
    """

    def who(context: grpc.ServicerContext) -> Caller:
        given = [value for key, value in context.invocation_metadata() if key == "authorization"]
        if not given:
            return Caller()
        scheme, _, token = str(given[0]).partition(" ")
        caller = access.by_token(token) if len(given) == 1 and scheme.lower() == "bearer" else None
        if caller is None:
            raise RegistryError(
                "the token does not count here: it is unknown, has expired or was revoked",
                hint="whoever runs the registry makes another: nf-server registry token",
                status="UNAUTHENTICATED",
            )
        return caller

    return who


def by_certificate(access: Access, identities: Identities) -> Who:
    """Callers by the certificate of their node, which TLS has verified; whether it counts, the federation knows."""

    def who(context: grpc.ServicerContext) -> Caller:
        (pem,) = context.auth_context()["x509_pem_cert"]
        serial = x509.load_pem_x509_certificate(pem).serial_number
        try:
            return access.by_member(identities.name_of(serial))
        except FederationError as error:
            raise RegistryError(error.message, status="UNAUTHENTICATED") from error

    return who


def peer_of(context: grpc.ServicerContext) -> str:
    """The address of a caller, without its port."""
    return str(context.peer()).rpartition(":")[0]
