"""The two gRPC services of protos/neuralforge_common/protocol/enrolment.proto.

`Enrolment` answers strangers: it gives the authority's certificate to anybody and a place to whoever shows a token.
`Membership` answers nodes: TLS has proved that the caller holds the key of a certificate by our authority, and the
registry says, at every call, whether that certificate is still the one of a node that may take part.
"""

from __future__ import annotations

import datetime
import logging
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, NoReturn

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from neuralforge_common import __version__
from neuralforge_common.address import endpoint
from neuralforge_common.certificates import certificate_pem, issue_node_certificate, openssh_public_key, read_request
from neuralforge_common.errors import FederationError, NeuralForgeError
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services
from neuralforge_common.rotation import is_rotation_signed
from neuralforge_common.secagg.keys import KEY_BYTES
from neuralforge_server.identity import Identities
from neuralforge_server.state_folder import ServerState
from neuralforge_server.unreadable import RefuseUnreadable

MAX_MESSAGE_BYTES = 64 * 1024
MAX_TOKEN_CHARACTERS = 128
MAX_REQUEST_BYTES = 8 * 1024
ROTATION_WINDOW = 300.0
"""Seconds by which the time in a signed rotation may differ from ours."""

_LOG = logging.getLogger(__name__)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_connection_age_ms", 600_000),
    # Otherwise a second server on the same port would start without a word and take half of the callers.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the services tell about this federation."""

    federation: str
    member_port: int
    fleet_port: int


class FailureLimit:
    """At most `failures` in `seconds` from one peer; the least recently seen of `peers` are forgotten."""

    def __init__(
        self,
        *,
        failures: int = 10,
        seconds: float = 60.0,
        peers: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures, self._seconds, self._peers, self._clock = failures, seconds, peers, clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def is_reached(self, peer: str) -> bool:
        """Whether the peer has to wait."""
        with self._lock:
            times = self._seen.get(peer, deque())
            while times and times[0] <= self._clock() - self._seconds:
                times.popleft()
            return len(times) >= self._failures

    def count(self, peer: str) -> None:
        """Note a failure."""
        with self._lock:
            self._seen.setdefault(peer, deque(maxlen=self._failures)).append(self._clock())
            self._seen.move_to_end(peer)
            while len(self._seen) > self._peers:
                self._seen.popitem(last=False)


class RunningEnrolment:
    """Both services, answering."""

    def __init__(self, servers: tuple[grpc.Server, grpc.Server], port: int, member_port: int) -> None:
        self._servers = servers
        self.port = port
        self.member_port = member_port

    def stop(self, grace: float = 1.0) -> None:
        """Take no new calls, give those under way `grace` seconds, and return when all is quiet."""
        for stopped in [server.stop(grace) for server in self._servers]:
            stopped.wait()


def serve_enrolment(
    state: ServerState,
    identities: Identities,
    *,
    federation: str,
    host: str,
    port: int,
    member_port: int,
    fleet_port: int,
    clock: Callable[[], float] = time.time,
    limit: FailureLimit | None = None,
) -> RunningEnrolment:
    """Starts both services; a port of 0 takes a free one. The registry stays the caller's to close.

    `limit` is on the joins that fail; without one it is 10 in a minute.

    Raises:
        FederationError: a port is taken, or the host is not one of this machine.
    """
    # 1. Membership first, as Enrolment tells its port.
    membership = _server()
    credentials = grpc.ssl_server_credentials(
        [(state.server_key_pem, state.server_pem)], state.authority_pem, require_client_auth=True
    )
    member_port = listen_on(membership, credentials, host, member_port, "listen.member_port")
    facts = Facts(federation=federation, member_port=member_port, fleet_port=fleet_port)
    services.add_MembershipServicer_to_server(Membership(state, identities, facts, clock), membership)
    # 2. Both ports are ours before either answers.
    enrolment = _server()
    credentials = grpc.ssl_server_credentials([(state.server_key_pem, state.server_pem)])
    port = listen_on(enrolment, credentials, host, port, "listen.port")
    services.add_EnrolmentServicer_to_server(Enrolment(state, identities, facts, clock, limit), enrolment)
    membership.start()
    enrolment.start()
    return RunningEnrolment((enrolment, membership), port, member_port)


class Enrolment(services.EnrolmentServicer):
    """What anybody may ask."""

    def __init__(
        self,
        state: ServerState,
        identities: Identities,
        facts: Facts,
        clock: Callable[[], float] = time.time,
        limit: FailureLimit | None = None,
    ) -> None:
        self._state, self._identities, self._facts, self._clock = state, identities, facts, clock
        self._limit = limit or FailureLimit()

    def Authority(self, request: messages.AuthorityRequest, context: grpc.ServicerContext) -> messages.AuthorityReply:
        """The certificate whose fingerprint clients pin."""
        return messages.AuthorityReply(
            certificate_pem=self._state.authority_pem,
            server_time=self._clock(),
            protocol=PROTOCOL,
            server_version=__version__,
        )

    def Join(self, request: messages.JoinRequest, context: grpc.ServicerContext) -> messages.JoinReply:
        """A token and a key become a node."""
        peer = _peer(context)
        if self._limit.is_reached(peer):
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many tokens failed from here: wait a minute")
        with _answering(context, "join", peer, self._limit):
            if len(request.token) > MAX_TOKEN_CHARACTERS or len(request.signing_request_pem) > MAX_REQUEST_BYTES:
                raise FederationError("the request is larger than any that this program sends")
            key = read_request(request.signing_request_pem)
            serial = x509.random_serial_number()
            # The token is used up and the node registered in one transaction; only who won it gets a certificate.
            name = self._identities.join(
                request.token, openssh_public_key(key), serial, identity=_identity(request.identity)
            )
            certificate = issue_node_certificate(self._state.authority, key, name, serial, _moment(self._clock()))
            _LOG.info("%s joined from %s", name, peer)
            return messages.JoinReply(
                name=name,
                certificate_pem=certificate_pem(certificate),
                federation=self._facts.federation,
                member_port=self._facts.member_port,
                fleet_port=self._facts.fleet_port,
            )


class Membership(services.MembershipServicer):
    """What nodes may ask."""

    def __init__(
        self, state: ServerState, identities: Identities, facts: Facts, clock: Callable[[], float] = time.time
    ) -> None:
        self._state, self._identities, self._facts, self._clock = state, identities, facts, clock

    def Describe(self, request: messages.DescribeRequest, context: grpc.ServicerContext) -> messages.DescribeReply:
        """What a node must know before it takes part."""
        with _answering(context, "describe", _peer(context)):
            name = self._identities.name_of(_caller(context).serial_number)
            return messages.DescribeReply(
                federation=self._facts.federation,
                name=name,
                server_version=__version__,
                protocol=PROTOCOL,
                fleet_port=self._facts.fleet_port,
                server_time=self._clock(),
            )

    def RotateKey(self, request: messages.RotateKeyRequest, context: grpc.ServicerContext) -> messages.RotateKeyReply:
        """The node goes on with another key."""
        peer, now = _peer(context), self._clock()
        with _answering(context, "rotate-key", peer):
            if len(request.signing_request_pem) > MAX_REQUEST_BYTES or len(request.signature) > 1024:
                raise FederationError("the request is larger than any that this program sends")
            # 1. Who asks: by the certificate, which our authority signed.
            caller = _caller(context)
            name = str(caller.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
            # 2. The new key asks for itself, the old one hands over to it, and just now.
            new_key, old_key = read_request(request.signing_request_pem), caller.public_key()
            if not abs(request.time - now) <= ROTATION_WINDOW:
                raise FederationError(f"the rotation was signed {request.time - now:+.0f} s away from this clock")
            if not isinstance(old_key, ec.EllipticCurvePublicKey) or not is_rotation_signed(
                request.signature, old_key, name=name, new_key=new_key, time=request.time
            ):
                raise FederationError("the rotation was not signed by the key that is to be replaced")
            # 3. The registry decides whether the old one still counts.
            serial = self._identities.rotate(
                caller.serial_number, openssh_public_key(new_key), x509.random_serial_number()
            )
            certificate = issue_node_certificate(self._state.authority, new_key, name, serial, _moment(now))
            _LOG.info("%s goes on with another key, from %s", name, peer)
            return messages.RotateKeyReply(certificate_pem=certificate_pem(certificate))


@contextmanager
def _answering(
    context: grpc.ServicerContext, what: str, peer: str, limit: FailureLimit | None = None
) -> Iterator[None]:
    """Turns our errors into answers. Nothing of a request is logged: tokens are secret."""
    try:
        yield
    except FederationError as error:
        if limit is not None:
            limit.count(peer)
        _LOG.warning("%s refused, from %s: %s", what, peer, error.message)
        _refuse(context, grpc.StatusCode.PERMISSION_DENIED, error.message)
    except NeuralForgeError as error:
        # Of this machine's troubles (disk, registry) the caller hears only that there are some.
        _LOG.error("%s failed, from %s: %s", what, peer, error.message)
        _refuse(context, grpc.StatusCode.INTERNAL, "the server cannot use its storage: ask who runs it")


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError  # abort never returns


def _identity(key: bytes) -> bytes | None:
    """The public key that a node will sign with; raises FederationError."""
    if len(key) not in (0, KEY_BYTES):
        raise FederationError(f"the identity: wanted {KEY_BYTES} bytes, got {len(key):,}")
    return key or None


def _caller(context: grpc.ServicerContext) -> x509.Certificate:
    # TLS has verified it; what is read here is what was verified.
    (pem,) = context.auth_context()["x509_pem_cert"]
    return x509.load_pem_x509_certificate(pem)


def _peer(context: grpc.ServicerContext) -> str:
    # ipv4:10.0.0.7:51234, ipv6:%5B::1%5D:51234: a peer is an address, whatever its port.
    return str(context.peer()).rpartition(":")[0]


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _server() -> grpc.Server:
    return grpc.server(
        ThreadPoolExecutor(4, "enrolment"),
        interceptors=(RefuseUnreadable(),),
        options=_OPTIONS,
        maximum_concurrent_rpcs=64,
    )


def listen_on(server: grpc.Server, credentials: Any, host: str, port: int, key: str) -> int:
    """Lets a gRPC server listen; returns the port, a free one for 0. `key` is what a person would change.

    Raises:
        FederationError: the port is taken, or the host is not one of this machine.
    """
    where = endpoint(host, port)
    # Before gRPC tries: it may write lines of its own beside our one.
    reason, bound = _why_not(host, port), 0
    if not reason:
        try:
            bound = server.add_secure_port(where, credentials)
        except RuntimeError:
            bound = 0
    if not bound:
        raise FederationError(
            f"cannot listen on {where}: {reason or _why_not(host, port) or 'the address cannot be used'}",
            hint=f"choose another {key}, or stop what uses it" if port else "choose another listen.host",
        )
    return int(bound)


def _why_not(host: str, port: int) -> str:
    """Why nobody could listen there now, in the system's words; empty where one could."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
