"""Single calls of Flower's Fleet API: over TLS to one authority, signed, and with errors of ours.

FederationError         nothing more will come of this connection
├── ServerAway          nobody answers, or a restart is under way: it may come back
├── MessageLost         one message came to nothing (its run or its time is over): the next may be fine
├── Unknown             the server knows no such node, or does not accept its signature
└── NotActivated        the server does not let this node in, and does not say why
"""

from __future__ import annotations

import base64
import datetime
import ssl
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from neuralforge_common.errors import FederationError

T = TypeVar("T")


class ServerAway(FederationError):
    """Nobody answers, or the server is about to restart."""


class MessageLost(FederationError):
    """A message came to nothing."""


class Unknown(FederationError):
    """401: the server knows no node of that key and id, or refuses the signature.

    `skew` is how many seconds this machine's clock is ahead of the server's.
    """

    skew = 0.0


class NotActivated(FederationError):
    """2004: an earlier session is still online, or no such key is registered; Flower does not tell these apart."""


def fleet_client(address: str, ca: bytes, signature: Signature, *, timeout: float) -> FleetHttpClient:
    """A client of the fleet port `address` (host:port) that trusts `ca` (PEM) alone and tries everything once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca.decode("ascii"))
    # From the outside in; _Refusals stands before Flower's own, which ends the process on what it dislikes.
    return _Client(
        f"https://{address}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            _Refusals(address, signature),
            signature,
        ],
        context=context,
        timeout=timeout,
    )


def translated(address: str, attempt: Callable[[], T]) -> T:
    """Make calls, with what httpx raises in them turned into errors of ours."""
    try:
        return attempt()
    except httpx.TransportError as error:
        raise _transport_error(address, error) from error
    except httpx.HTTPError as error:
        raise ServerAway(str(error)) from error
    except ValueError as error:  # flwr: the answer is no protobuf
        raise FederationError(f"{address} does not speak Flower's Fleet API: {error}") from error


class Signature:
    """Flower's proof that a call is by a node: its key over the time.

    As `NodeAuthHttpInterceptor`, but `offset` seconds away from this machine's clock: the server refuses one that is
    five seconds ahead of its own.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, clock: Callable[[], float]) -> None:
        self._key = key
        self._public = base64.b64encode(public_key_to_bytes(key.public_key())).decode("ascii")
        self._clock = clock
        self.offset = 0.0

    def now(self) -> float:
        """Seconds since 1970 by the server's clock, as far as it is known."""
        return self._clock() + self.offset

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign a call."""
        timestamp = datetime.datetime.fromtimestamp(self.now(), datetime.UTC).isoformat()
        signature = sign_message(self._key, timestamp.encode("ascii"))
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        context.request.headers[TIMESTAMP_HEADER] = timestamp
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = base64.b64encode(signature).decode("ascii")
        return call_next(context)


class _Client(FleetHttpClient):
    """Flower's client, reaching an internal machine directly where a proxy is set for the web, and following nobody."""

    def __init__(
        self,
        base_url: str,
        *,
        interceptors: Sequence[ProtobufClientInterceptor],
        context: ssl.SSLContext,
        timeout: float,
    ) -> None:
        super().__init__(base_url, interceptors=interceptors, verify=context, timeout=timeout)
        self._client.close()
        self._client = httpx.Client(verify=context, timeout=timeout, follow_redirects=False, trust_env=False)


class _Refusals:
    """An interceptor that turns error answers into our errors."""

    def __init__(self, address: str, signature: Signature) -> None:
        self._address = address
        self._signature = signature

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Let good answers through."""
        response = call_next(context)
        if response.is_success:
            return response
        known = FlowerError.from_json(response.text)
        words = f"{known.message} {known.public_details or ''}".strip() if known else f"HTTP {response.status_code}"
        if known and known.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            raise NotActivated(words)
        if known and known.code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
            raise FederationError(
                f"{self._address} runs another version of Flower: {words}",
                hint="bring client and server to the same version of neuralforge",
            )
        match response.status_code:
            case httpx.codes.UNAUTHORIZED:
                refused = Unknown(
                    f"{self._address} does not know this node, or does not accept its signature",
                    hint="was it revoked, or its key rotated elsewhere? signatures of a clock far off are refused, too",
                )
                refused.skew = self._skew(response)
                raise refused
            case httpx.codes.FORBIDDEN:
                raise MessageLost("the server has closed this round")
            case httpx.codes.NOT_FOUND:
                raise FederationError(
                    f"{self._address} does not speak Flower's Fleet API",
                    hint="is this the server's fleet port (8472 by default)?",
                )
            case status if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
                raise ServerAway(words)
        raise FederationError(f"{self._address} refuses {context.rpc_method.rpartition('/')[2]}: {words}")

    def _skew(self, response: httpx.Response) -> float:
        try:
            return self._signature.now() - parsedate_to_datetime(response.headers["date"]).timestamp()
        except (KeyError, ValueError):
            return 0.0


def _transport_error(address: str, error: httpx.TransportError) -> FederationError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return FederationError(
            f"{address} is not a server of this federation: {cause.verify_message}",
            hint="somebody else answers at this address, or stands in between; if the server was set up anew, "
            "ask for an invitation and run `nf-client join` again",
        )
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return FederationError(f"{address} does not speak TLS", hint="is this the server's fleet port?")
    return ServerAway(str(error) or type(error).__name__)
