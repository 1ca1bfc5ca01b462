"""What a node asks its federation for, over mutual TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from neuralforge.federation.channel import Refused, call, check_clock, check_protocol, open_channel
from neuralforge.federation.home import NEXT_KEY, JoinedFederation
from neuralforge_common.certificates import certificate_pem
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationDescription:
    """What the server says of the federation, to a node that may take part."""

    federation: str
    name: str
    server_version: str
    fleet_port: int


@contextmanager
def membership(joined: JoinedFederation) -> Iterator[Any]:
    """The stub of the service, called with this node's certificate."""
    with open_channel(
        joined.record.host,
        joined.record.member_port,
        roots=joined.authority_pem,
        key=joined.key_pem,
        certificate=certificate_pem(joined.certificate),
    ) as channel:
        yield services.MembershipStub(channel)


def describe(joined: JoinedFederation, *, clock: Callable[[], float] = time.time) -> FederationDescription:
    """Asks whether this node may take part, and checks that it can: the same protocol, clocks that agree.

    Raises:
        FederationError: unreachable, revoked, replaced, another protocol, or clocks apart.
    """
    try:
        with membership(joined) as stub:
            reply = call(stub.Describe, messages.DescribeRequest(), messages.DescribeReply)
    except Refused as error:
        if (joined.folder / NEXT_KEY).exists():
            error.hint = (
                f"finish the change of keys: nf-client rotate-key --server nf://{joined.record.address.endpoint}"
            )
        raise
    check_clock(reply.server_time, clock())
    check_protocol(reply.protocol, reply.server_version)
    return FederationDescription(
        federation=reply.federation,
        name=reply.name,
        server_version=reply.server_version,
        fleet_port=reply.fleet_port,
    )
