"""gRPC calls to a coordinator, whose failures are one line that says what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from neuralforge_common.address import endpoint
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.strict_json import is_plain_text, shortened

TIMEOUT = 20.0
MOST_SKEW = 240.0
"""Seconds between two clocks; Flower refuses signatures of nodes that are 300 s away."""

_MAX_MESSAGE_BYTES = 64 * 1024
_OPTIONS = (
    # Where a proxy is set for the web, an internal machine is still reached directly.
    ("grpc.enable_http_proxy", 0),
    # A call that may have done its work is not made twice behind our back.
    ("grpc.enable_retries", 0),
)
_STRANGER = "ask whoever runs the server for an invitation: nf-server invite NAME"

Reply = TypeVar("Reply")


class Refused(FederationError):
    """The server has answered, and said no: what was asked was not done."""


@contextmanager
def open_channel(
    host: str,
    port: int,
    *,
    roots: bytes,
    key: bytes | None = None,
    certificate: bytes | None = None,
    called: str | None = None,
    most: int = _MAX_MESSAGE_BYTES,
) -> Iterator[grpc.Channel]:
    """A TLS channel that trusts `roots` alone; with a key and its certificate, for mutual TLS.

    `called` is the name that the server's certificate must have, where that is not `host`; a message that comes in
    has at most `most` bytes.

    Raises:
        FederationError: nobody answers there.
    """
    check_reachable(host, port)
    credentials = grpc.ssl_channel_credentials(roots, key, certificate)
    options: tuple[tuple[str, int | str], ...] = (("grpc.max_receive_message_length", most), *_OPTIONS)
    if called is not None:
        options = (*options, ("grpc.ssl_target_name_override", called))
    with grpc.secure_channel(endpoint(host, port), credentials, options=options) as channel:
        yield channel


def check_reachable(host: str, port: int) -> None:
    """Connects once: of what fails here the system knows why, where gRPC would say only "unavailable".

    Raises:
        FederationError: nobody answers there.
    """
    try:
        socket.create_connection((host, port), timeout=TIMEOUT / 2).close()
    except OSError as error:
        raise unreachable(host, port, error) from error


def unreachable(host: str, port: int, error: OSError) -> FederationError:
    """The line for a server that does not answer."""
    reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return FederationError(
        f"cannot reach the server at {endpoint(host, port)}: {reason[:1].lower()}{reason[1:]}",
        hint="is it running (nf-server start), and is the address right?",
    )


def call(method: Any, request: object, reply: type[Reply]) -> Reply:
    """Makes a call.

    Raises:
        Refused: the server said no.
        FederationError: it did not get through, or its answer did not.
    """
    try:
        result = method(request, timeout=TIMEOUT)
    except grpc.RpcError as error:
        raise _refusal(error) from error
    if not isinstance(result, reply):
        raise FederationError(f"the server answered with {type(result).__name__}, wanted {reply.__name__}")
    return result


def check_protocol(protocol: int, version: str) -> None:
    """Checks that the server speaks as we do.

    Raises:
        FederationError: another protocol.
    """
    if protocol != PROTOCOL:
        from neuralforge_common import __version__

        raise FederationError(
            f"the server speaks protocol {protocol} (version {shortened(version)}), "
            f"this client {PROTOCOL} (version {__version__})",
            hint="bring client and server to the same version of neuralforge",
        )


def check_clock(server_time: float, now: float) -> None:
    """Checks that both clocks agree well enough for signatures and certificates.

    Raises:
        FederationError: they differ by more than four minutes.
    """
    skew = server_time - now
    if not abs(skew) <= MOST_SKEW:
        raise FederationError(
            f"this machine's clock and the server's differ by {abs(skew):.0f} seconds "
            f"({'this one is behind' if skew > 0 else 'this one is ahead'}), at most {MOST_SKEW:.0f} are allowed",
            hint="set the clock, best by NTP (timedatectl set-ntp true)",
        )


def _refusal(error: grpc.RpcError) -> FederationError:
    code, details = error.code(), error.details() or ""
    said = details if is_plain_text(details) and len(details) <= 300 else shortened(details)
    match code:
        case grpc.StatusCode.PERMISSION_DENIED:
            return Refused(f"the server refused: {said}", hint=_STRANGER)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Refused(f"the server refused: {said}", hint="wait a minute, then try again")
        case grpc.StatusCode.UNAVAILABLE if "CERTIFICATE_VERIFY_FAILED" in details or "Peer name" in details:
            return FederationError(
                f"the server's certificate is not by the pinned authority: {said}",
                hint="something else may be answering in its place: do not go on before whoever runs it knows why",
            )
        case grpc.StatusCode.UNAVAILABLE:
            return FederationError(
                f"the server closed the connection: {said}",
                hint="try again; where it persists, this machine's certificate may have expired: join again",
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return FederationError(f"the server did not answer within {TIMEOUT:.0f} seconds", hint="try again")
    return FederationError(f"the server failed ({code.name}): {said}", hint="ask whoever runs it")
