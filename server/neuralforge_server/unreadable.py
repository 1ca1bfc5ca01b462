"""Bytes that are no message: refused as any request that makes no sense, by every gRPC server of ours.

gRPC's own refusal writes a traceback into the log, and keeps the stream open for as long as the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from neuralforge_common.errors import RegistryError

_WORDS = "these bytes are no message of this service"
_UNREADABLE = object()


class RefuseUnreadable(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Reads every request in such a way that one which cannot be read is answered INVALID_ARGUMENT."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The method's handler, reading its requests so."""
        handler = continuation(details)
        if handler is None:
            return None
        name = f"{'stream' if handler.request_streaming else 'unary'}_"
        name += "stream" if handler.response_streaming else "unary"
        behaviour = _stream(getattr(handler, name)) if handler.request_streaming else _unary(getattr(handler, name))
        make = getattr(grpc, f"{name}_rpc_method_handler")
        return make(behaviour, _reading(handler.request_deserializer), handler.response_serializer)


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _UNREADABLE

    return read


def _unary(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if request is _UNREADABLE:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, _WORDS)
        return behaviour(request, context)

    return answer


def _stream(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def readable(requests: Iterator[Any]) -> Iterator[Any]:
        for request in requests:
            if request is _UNREADABLE:
                raise RegistryError(_WORDS, status="INVALID_ARGUMENT")
            yield request

    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return behaviour(readable(requests), context)

    return answer
