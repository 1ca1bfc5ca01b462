"""The HTTP server's routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from neuralforge.serving import openai_api
from neuralforge.serving.delivery import Delivery
from neuralforge.serving.guard import Guard, Rules, read_json
from neuralforge.serving.infill import infill_document, infill_request, read_infill
from neuralforge.serving.openai_api import RequestError
from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.worker import Busy, Worker
from neuralforge_common import __version__
from neuralforge_common.errors import ModelError, NeuralForgeError

if TYPE_CHECKING:
    from neuralforge.serving.served import ServedModel

_LONGEST_PATH = 4096


def make_app(worker: Worker, rules: Rules, *, started: int) -> FastAPI:
    """The application; the worker has opened its model. `started` is in seconds of the Unix epoch."""
    app = FastAPI(title="neuralforge", openapi_url=None, docs_url=None, redoc_url=None)
    served = worker.opened.result()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return openai_api.models_document(served.names, started)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = openai_api.read_body(await read_json(request))
        wanted = openai_api.completion_request(body)
        model = _known(served, wanted.model)
        headers = {"X-NeuralForge-Suffix": served.suffix_use(wanted.suffix)}
        identity, created, logprobs = f"cmpl-{uuid4().hex}", int(time.time()), wanted.logprobs is not None
        if body.stream:
            delivery = Delivery(worker, wanted)
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _events(delivery, identity, created, model, logprobs=logprobs, with_usage=with_usage)
            return _Stream(events, delivery, headers)
        pieces, finish = await _whole(worker, wanted, request)
        answer = openai_api.completion_document(
            identity, created, model, [openai_api.choice(pieces, finish, logprobs=logprobs)]
        )
        return JSONResponse(answer | {"usage": openai_api.usage(finish)}, headers=headers)

    @app.post("/infill")
    async def infill(request: Request) -> Response:
        body = read_infill(await read_json(request))
        wanted = infill_request(body)
        model = _known(served, wanted.model)
        if body.n_predict == 0:  # llama.vim's wish to have the extra context read ahead
            return JSONResponse(infill_document([], None, body, model))
        pieces, finish = await _whole(worker, wanted, request)
        headers = {"X-NeuralForge-Suffix": served.suffix_use(wanted.suffix)}
        return JSONResponse(infill_document(pieces, finish, body, model), headers=headers)

    @app.post("/adapters/load")
    async def load(request: Request) -> Response:
        path = (await read_json(request)).get("path")
        if not isinstance(path, str) or not 0 < len(path) <= _LONGEST_PATH or "\0" in path:
            raise RequestError("path: wanted the path of an adapter's folder", param="path")
        if not Path(path).is_absolute():
            raise RequestError("path: wanted an absolute path", param="path")
        name = await asyncio.wrap_future(worker.call(lambda model: model.load(Path(path))))
        return JSONResponse({"loaded": name, "models": [each.id for each in served.names]})

    async def refuse(request: Request, error: Exception) -> Response:
        refusal = _refusal(error)
        retry = {"Retry-After": "1"} if refusal.status == 429 else None
        return JSONResponse(openai_api.error_document(refusal), status_code=refusal.status, headers=retry)

    for kind in (NeuralForgeError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_middleware(Guard, rules=rules)
    return app


async def _whole(worker: Worker, wanted: CompletionRequest, request: Request) -> tuple[list[Piece], Finish]:
    pieces: list[Piece] = []
    with Delivery(worker, wanted) as delivery:
        async with _given_up_when(_disconnected(request), delivery):
            async for item in delivery:
                if isinstance(item, Finish):
                    return pieces, item
                pieces.append(item)
    raise RequestError("the completion did not finish", status=500)


class _Stream(StreamingResponse):
    """Server-sent events; however sending them ends, nothing more is written for nobody."""

    def __init__(self, events: AsyncIterator[str], delivery: Delivery, headers: Mapping[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, "Cache-Control": "no-store"})
        self._delivery = delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._delivery:
            await super().__call__(scope, receive, send)


async def _events(
    delivery: Delivery, identity: str, created: int, model: str, *, logprobs: bool, with_usage: bool
) -> AsyncIterator[str]:
    try:
        async for item in delivery:
            finish = item if isinstance(item, Finish) else None
            pieces = [] if isinstance(item, Finish) else [item]
            choices = [openai_api.choice(pieces, finish, logprobs=logprobs)]
            yield openai_api.event(openai_api.completion_document(identity, created, model, choices))
            if finish is not None and with_usage:
                last = openai_api.completion_document(identity, created, model, [])
                yield openai_api.event(last | {"usage": openai_api.usage(finish)})
    except Exception as error:
        yield openai_api.event(openai_api.error_document(_refusal(error)))
    yield "data: [DONE]\n\n"


@asynccontextmanager
async def _given_up_when(gone: Awaitable[None], delivery: Delivery) -> AsyncIterator[None]:
    async def watch() -> None:
        await gone
        delivery.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _known(served: ServedModel, name: str) -> str:
    """The name to answer with: what is behind the one that was asked for."""
    names = served.names
    for each in names:
        if each.id == name or not name:
            return each.adapter or served.base.name
    raise openai_api.unknown_model(name, names)


def _refusal(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, Busy):
        return RequestError(str(error.message), status=429, code="busy")
    if isinstance(error, HTTPException):
        return RequestError(str(error.detail).lower(), status=error.status_code)
    if isinstance(error, ModelError):
        return RequestError(error.message, status=404, param="model", code="model_not_found")
    if isinstance(error, NeuralForgeError):
        return RequestError(error.message, status=400)
    return RequestError(f"this server failed ({type(error).__name__})", status=500)
