"""Calls to a registry, whose failures are one line that says what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from neuralforge_common.errors import RegistryError
from neuralforge_common.strict_json import is_plain_text, shortened

TIMEOUT = 20.0
STREAM_TIMEOUT = 600.0
"""Seconds for one stream; what is not through by then goes on with the next."""

BROKEN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "RESOURCE_EXHAUSTED"})
"""Statuses after which the same stream may go on."""

TRIES = 6
"""In a row, without a byte more on the other side."""

_HINTS = {
    "UNAVAILABLE": "try again: what has arrived is kept",
    "DEADLINE_EXCEEDED": "try again: what has arrived is kept",
    "UNAUTHENTICATED": "ask whoever runs the registry for a token: nf-server registry token",
    "PERMISSION_DENIED": "ask whoever runs the registry: nf-server registry team add",
    "RESOURCE_EXHAUSTED": "wait a minute, then try again",
    "NOT_FOUND": "neuralforge adapters search shows what there is for you",
    "DATA_LOSS": "ask whoever runs the registry",
    "INTERNAL": "ask whoever runs the registry",
}

Reply = TypeVar("Reply")


def call(
    method: Any,
    request: object,
    reply: type[Reply],
    *,
    timeout: float = TIMEOUT,
    shown: tuple[tuple[str, str], ...] = (),
) -> Reply:
    """Makes a call.

    Raises:
        RegistryError: it did not get through, or the registry said no.
    """
    with failures():
        result = method(request, timeout=timeout, metadata=shown)
    if not isinstance(result, reply):
        raise RegistryError(f"the registry answered with {type(result).__name__}, wanted {reply.__name__}")
    return result


def wait_before(attempt: int, sleep: Callable[[float], None] = time.sleep) -> None:
    """Waits before a stream is gone on with for the `attempt`-th time: 0.4 s, then twice as long, at most 5."""
    sleep(min(5.0, 0.2 * 2**attempt))


@contextmanager
def failures() -> Iterator[None]:
    """Turns what gRPC raises into a `RegistryError` with its status."""
    try:
        yield
    except grpc.RpcError as error:
        raise _refusal(error) from error


def _refusal(error: Any) -> RegistryError:
    status, details = error.code().name, error.details() or ""
    said = details if is_plain_text(details) and len(details) <= 600 else shortened(details, 300)
    hint = _HINTS.get(status, "")
    for key, value in error.trailing_metadata() or ():
        if key == "hint-bin" and len(value) <= 600 and is_plain_text(text := value.decode("utf-8", "replace")):
            hint = text
    if status == "UNAVAILABLE":
        if "CERTIFICATE_VERIFY_FAILED" in details or "Peer name" in details:
            return RegistryError(
                f"the registry's certificate is not by the pinned authority: {said}",
                hint="something else may be answering in its place: do not go on before whoever runs it knows why",
            )
        return RegistryError(f"the connection to the registry broke: {said}", hint=hint, status=status)
    if status == "DEADLINE_EXCEEDED":
        return RegistryError("the registry did not answer in time", hint=hint, status=status)
    return RegistryError(f"the registry refused: {said}", hint=hint, status=status)
