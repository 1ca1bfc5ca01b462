"""What stands before every request: who may ask, and how much.

A page in a browser can reach a port on this machine, too. What keeps it out: no CORS header is ever sent, a request
that a page makes (it has an Origin, or says that it crosses sites) is refused, and the Host must be a name of this
machine, so that a name of the attacker's that points here (DNS rebinding) is refused.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from neuralforge.serving.openai_api import RequestError, error_document
from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import parse_json_object

MOST_BODY_BYTES = 2 * 2**20
_BODY_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`hosts` that a request may be sent to, the `token` of all requests (None: no token), and that of changes."""

    hosts: frozenset[str]
    token: str | None
    admin_token: str


class Guard:
    """ASGI middleware that lets through what the rules allow; `/health` alone needs no token."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            self._check(Headers(scope=scope), str(scope["path"]))
        except RequestError as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            answer = JSONResponse(error_document(error), status_code=error.status, headers=headers)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        if host_name(headers.get("host", "")) not in self._rules.hosts:
            raise RequestError("this server does not answer to that Host", status=403, code="host_not_allowed")
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RequestError("pages in a browser may not use this server", status=403, code="origin_not_allowed")
        if path == "/health":
            return
        wanted = self._rules.admin_token if path.startswith("/adapters/") else self._rules.token
        if wanted is not None and not _has_token(headers.get("authorization", ""), wanted):
            raise RequestError("wanted the header Authorization: Bearer <token>", status=401, code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 12 or int(length) > MOST_BODY_BYTES:
            raise _too_large()


async def read_json(request: Request) -> dict[str, object]:
    """The body as a JSON object, bounded in size, kind and time.

    Raises:
        RequestError: it is too large, too slow, not declared as JSON, or none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a page may send without asking first is never this
        raise RequestError("wanted Content-Type: application/json", status=415)
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MOST_BODY_BYTES:
                    raise _too_large()
    except TimeoutError as error:
        raise RequestError(f"the body did not come within {_BODY_SECONDS:.0f} seconds", status=408) from error
    except ClientDisconnect as error:
        raise RequestError("the client went away") from error
    try:
        return parse_json_object(bytes(data), what="the body", limit=MOST_BODY_BYTES)
    except AdapterError as error:
        raise RequestError(error.message) from error


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


def _has_token(header: str, wanted: str) -> bool:
    scheme, _, token = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), wanted.encode())


def _too_large() -> RequestError:
    return RequestError(f"the body is larger than {MOST_BODY_BYTES:,} bytes", status=413)
