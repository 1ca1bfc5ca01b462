"""One call with the bytes of an input as they are, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import MethodDescriptor


class Finding(Exception):
    """Something that a service must never do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`status` is OK, or why nothing came back, in the words of `details`."""

    status: str
    details: str = ""
    replies: tuple[bytes, ...] = ()


def ask(channel: grpc.Channel, method: MethodDescriptor, sent: bytes | Iterable[bytes]) -> Answer:
    """Makes a call; `sent` is the request, or the requests of a stream."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_"
    kind += "stream" if method.server_streaming else "unary"
    make = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
    if method.client_streaming:
        sent = iter(sent)
    try:
        reply = make(sent, timeout=10)
        return Answer(status="OK", replies=tuple(reply) if method.server_streaming else (reply,))
    except grpc.RpcError as error:
        return Answer(status=error.code().name, details=error.details() or "")
