"""What calls of Flower's Control and Runtime API share: our key, patience, and errors that say what to do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.retry.retry_invoker import RetryState
from flwr.supercore.runtime import RuntimeHttpClient

from neuralforge_common.errors import FederationError

ADMIN_HEADER = "x-neuralforge-admin"
PATIENCE = 120.0
"""Seconds for a SuperLink that was killed to be there again."""

_COMPONENT = "flwr-serverapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_PASSING = frozenset({500, 502, 503, 504})


class GridLost(FederationError):
    """The SuperLink does not know this run any more, as after its database was lost: start another one."""


def admin_key(secret: bytes) -> str:
    """What opens the loopback port to whoever knows the secret."""
    return hmac.new(secret, b"neuralforge admin port", hashlib.sha256).hexdigest()


def control_client(address: str, secret: bytes, *, patience: float) -> ControlHttpClient:
    """A client of the Control API."""
    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[_AdminKey(secret)],
        retry_invoker=_retries(patience),
    )


def runtime_client(
    address: str,
    secret: bytes,
    *,
    token: str | None = None,
    patience: float,
    on_return: Callable[[], object] = lambda: None,
) -> RuntimeHttpClient:
    """A client of the Runtime API: with a token for what a task may do, without one to acquire a task.

    `on_return` is called when the SuperLink answers again after it did not.
    """
    by_token: Sequence[ProtobufClientInterceptor] = [RuntimeTokenHttpInterceptor(token)] if token else []
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
            _AdminKey(secret),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
            *by_token,
        ],
        retry_invoker=_retries(patience, on_return),
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what a call can end with into a FederationError; `what` is what was asked, as in "start a run"."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise GridLost(f"the SuperLink refused to {what}: it does not know this run any more") from error
        known = FlowerError.from_json(error.response.text)
        said = f"{known.message} (code {known.code})" if known is not None else f"HTTP status {status}"
        raise FederationError(f"the SuperLink failed to {what}: {said}", hint="see superlink.log") from error
    except httpx.TransportError as error:
        raise FederationError(
            f"cannot {what}: the SuperLink does not answer ({type(error).__name__})", hint="see superlink.log"
        ) from error


def error_code(error: httpx.HTTPStatusError) -> int | None:
    """Flower's own number of what went wrong."""
    known = FlowerError.from_json(error.response.text)
    return None if known is None else int(known.code)


class _AdminKey:
    def __init__(self, secret: bytes) -> None:
        self._key = admin_key(secret)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[ADMIN_HEADER] = self._key
        return call_next(context)


def _retries(patience: float, on_return: Callable[[], object] = lambda: None) -> RetryInvoker:
    def pauses() -> Iterator[float]:
        pause = 0.1
        while True:
            yield pause
            pause = min(2 * pause, 1.0)

    def is_final(error: Exception) -> bool:
        return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in _PASSING

    def on_success(state: RetryState) -> None:
        if state.tries > 1:
            on_return()

    wait: Callable[[], Iterator[float]] = pauses
    return RetryInvoker(
        wait_gen_factory=wait,  # type: ignore[arg-type]  # any iterator does
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=patience,
        on_success=on_success,
        jitter=None,
        should_giveup=is_final,
    )
