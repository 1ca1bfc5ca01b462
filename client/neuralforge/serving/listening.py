"""Where the HTTP server listens, and who could reach it there."""

from __future__ import annotations

import socket

from neuralforge_common.errors import ServingError, UsageError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LEAST_TOKEN = 16


def check_reach(host: str, token: str | None) -> None:
    """Refuse what would let other machines ask without a token that is worth its name.

    Raises:
        UsageError: there is none, it is too short, or the host stands for every address at once.
    """
    if host in ("0.0.0.0", "::", ""):  # noqa: S104  # refused, not bound
        raise UsageError(
            f"--host: {host!r} is every address of this machine, and a request has to name one",
            hint="the address that the others know this machine by",
        )
    if token is None and host not in LOOPBACK:
        raise UsageError(f"--host {host}: other machines could ask this one", hint="--token-file FILE")
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(f"--token-file: wanted one line of at least {_LEAST_TOKEN} ASCII characters")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at a host's address; port 0 takes any free one.

    Raises:
        ServingError: the address is not this machine's, or the port is taken.
    """
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(64)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ServingError(
            f"cannot listen at {host}:{port}: {error.strerror or error}", hint="--port 0 takes a free one"
        ) from error
    return bound
