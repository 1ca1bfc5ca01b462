"""Federations on loopback whose enrolment answers: real state folders, real TLS, a clock that a test can turn."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from neuralforge.federation.home import JoinedFederation
from neuralforge.federation.join import join
from neuralforge_common.address import FederationAddress
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services
from neuralforge_server.enrolment import RunningEnrolment, serve_enrolment
from neuralforge_server.identity import Identities
from neuralforge_server.state_folder import ServerState, create_state_folder


class Clock:
    """The time, and `ahead` seconds more."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass
class Rig:
    """A federation whose server answers."""

    state: ServerState
    identities: Identities
    running: RunningEnrolment
    clock: Clock

    @property
    def address(self) -> FederationAddress:
        return self.state.address(self.running.port)

    def joined(self, name: str, home: Path) -> JoinedFederation:
        """A node that has joined."""
        return join(self.address, self.identities.invite(name), home=home)


@contextmanager
def rig(place: Path, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Iterator[Rig]:
    state = create_state_folder(place / "nf-server", hosts=hosts, config="", now=now())
    clock = Clock()
    identities = Identities(state.identities_path, clock=clock)
    running = serve_enrolment(
        state,
        identities,
        **{"federation": "team", "host": "127.0.0.1", "port": 0, "member_port": 0, "fleet_port": 8472, "clock": clock},
    )
    try:
        yield Rig(state, identities, running, clock)
    finally:
        running.stop(0)
        identities.close()


@dataclass
class Impostor(services.EnrolmentServicer):
    """Claims an authority, and writes down every token that reaches it."""

    authority_pem: bytes
    protocol: int = PROTOCOL
    tokens: list[str] = field(default_factory=list)
    asked: int = 0

    def Authority(self, request: object, context: object) -> messages.AuthorityReply:
        self.asked += 1
        return messages.AuthorityReply(
            certificate_pem=self.authority_pem, server_time=time.time(), protocol=self.protocol, server_version="9.9"
        )

    def Join(self, request: messages.JoinRequest, context: grpc.ServicerContext) -> None:
        self.tokens.append(request.token)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "thank you")


@contextmanager
def impostor(servicer: Impostor, *, key: bytes, certificate: bytes) -> Iterator[int]:
    """The impostor, answering under a certificate; gives its port."""
    server = grpc.server(ThreadPoolExecutor(2))
    services.add_EnrolmentServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()
