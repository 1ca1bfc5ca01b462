"""The registry on two ports: TLS for tokens and whoever comes, mutual TLS for nodes of the federation."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from neuralforge_common import __version__
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.protocol import enrolment_pb2, enrolment_pb2_grpc
from neuralforge_common.protocol import registry_pb2_grpc as services
from neuralforge_server.enrolment import listen_on
from neuralforge_server.identity import Identities
from neuralforge_server.registry.callers import by_certificate, by_token
from neuralforge_server.registry.place import Registry
from neuralforge_server.registry.service import MAX_MESSAGE_BYTES, Facts, RegistryService
from neuralforge_server.registry.streams import Streams
from neuralforge_server.state_folder import ServerState
from neuralforge_server.unreadable import RefuseUnreadable

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_connection_age_ms", 1_800_000),
    # A caller who is cut off without a word holds an upload for less than a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Otherwise a second server on the same port would start without a word and take half of the callers.
    ("grpc.so_reuseport", 0),
)
_THREADS = 24
_CALLS_AT_A_TIME = 64


class RunningRegistry:
    """Both ports, answering."""

    def __init__(self, servers: tuple[grpc.Server, grpc.Server], port: int, member_port: int) -> None:
        self._servers = servers
        self.port = port
        self.member_port = member_port

    def stop(self, grace: float = 2.0) -> None:
        """Take no new calls, give those under way `grace` seconds, and return when all is quiet."""
        for stopped in [server.stop(grace) for server in self._servers]:
            stopped.wait()


def serve_registry(
    registry: Registry,
    state: ServerState,
    identities: Identities,
    *,
    host: str,
    port: int,
    member_port: int,
    streams: Streams | None = None,
    clock: Callable[[], float] = time.time,
) -> RunningRegistry:
    """Starts both ports; 0 takes a free one. Registry and identities stay the caller's to close.

    Raises:
        FederationError: a port is taken, or the host is not one of this machine.
    """
    streams = streams if streams is not None else Streams()
    pair = [(state.server_key_pem, state.server_pem)]
    # 1. Members first, as Describe tells their port.
    members = _server("members")
    credentials = grpc.ssl_server_credentials(pair, state.authority_pem, require_client_auth=True)
    member_port = listen_on(members, credentials, host, member_port, "--member-port")
    facts = Facts(registry=registry.name, member_port=member_port)
    service = RegistryService(registry, by_certificate(registry.access, identities), facts, streams, clock=clock)
    services.add_RegistryServicer_to_server(service, members)
    # 2. Both ports are ours before either answers.
    tokens = _server("tokens")
    port = listen_on(tokens, grpc.ssl_server_credentials(pair), host, port, "--port")
    service = RegistryService(registry, by_token(registry.access), facts, streams, clock=clock)
    services.add_RegistryServicer_to_server(service, tokens)
    enrolment_pb2_grpc.add_EnrolmentServicer_to_server(_Authority(state, clock), tokens)
    members.start()
    tokens.start()
    return RunningRegistry((members, tokens), port, member_port)


class _Authority(enrolment_pb2_grpc.EnrolmentServicer):
    """Of enrolment only what a client finds out with whose registry this is: nobody joins here."""

    def __init__(self, state: ServerState, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock

    def Authority(
        self, request: enrolment_pb2.AuthorityRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.AuthorityReply:
        """The certificate whose fingerprint clients pin."""
        return enrolment_pb2.AuthorityReply(
            certificate_pem=self._state.authority_pem,
            server_time=self._clock(),
            protocol=PROTOCOL,
            server_version=__version__,
        )

    def Join(self, request: enrolment_pb2.JoinRequest, context: grpc.ServicerContext) -> enrolment_pb2.JoinReply:
        """Not here."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "this is a registry: join the federation at its own port")
        raise AssertionError  # abort never returns


def _server(name: str) -> grpc.Server:
    return grpc.server(
        ThreadPoolExecutor(_THREADS, name),
        interceptors=(RefuseUnreadable(),),
        options=_OPTIONS,
        maximum_concurrent_rpcs=_CALLS_AT_A_TIME,
    )
