"""Flower's SuperLink as an ASGI application, and what stands in front of its two ports."""

from __future__ import annotations

import hmac
import logging
import re
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.logger import console_handler
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot, Task
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes, Node
from flwr.supercore.state.schema.objectstore_models import StoredObject
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from sqlalchemy import delete, select, update

from neuralforge_server.flower.calls import ADMIN_HEADER, admin_key

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_FLEET_BODY = 8 * 2**20
"""Flower cuts arrays into pieces of 5 MiB, one request each."""

CONFIRM_SECONDS = 20.0
"""After a restart, for nodes to confirm what they were handed before."""

_FLEET, _HEALTH = re.compile("/v1/fleet/[a-z-]+"), "/health"


def log_quietly() -> None:
    """Warnings and errors of Flower alone, each with its time, without colours: for a file."""
    console_handler.setLevel(logging.WARNING)
    console_handler.colored = False
    console_handler.timestamps = True


def build_superlink(database: Path, secret: bytes) -> Asgi:
    """The SuperLink: nodes must be registered, apps run elsewhere, nothing is reported to anybody."""
    config = SuperLinkLifespanConfig(
        control_address="127.0.0.1:0",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,  # what listens, and with which TLS, is not for this application to decide
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    state = cast(SqlLinkState, app.state.linkstate_factory.state())
    forgive_absence(state)
    forget_earlier_sessions(state)
    later = threading.Timer(CONFIRM_SECONDS, deliver_again, (state, now()))
    later.daemon = True
    later.start()
    return app


def forgive_absence(state: SqlLinkState) -> None:
    """Makes a SuperLink that was killed go on where it was: nobody is held to what could not reach it meanwhile.

    The task of a run and the nodes get a fresh term in which to be heard. A reply leaves the database in the very call
    that delivers it: one that is marked delivered and still there never arrived, and is delivered again. A reply that
    was announced and not uploaded whole is forgotten: its sender announces it again. Nobody else may use the database
    yet.
    """
    term = timedelta(seconds=HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL)
    with state.session() as session:
        session.execute(
            update(Task).where(Task.token.is_not(None), Task.finished_at.is_(None)).values(active_until=now() + term)
        )
        session.execute(
            update(Node)
            .where(Node.status == NodeStatus.ONLINE)
            .values(online_until=now().timestamp() + HEARTBEAT_PATIENCE * Node.heartbeat_interval)
        )
        uploads = select(ObjectPushSessionRoot.root_object_id)
        session.execute(delete(MessageRes).where(MessageRes.message_id.in_(uploads)))
        session.execute(update(MessageRes).where(MessageRes.delivered_at != "").values(delivered_at=""))


def forget_earlier_sessions(state: SqlLinkState) -> None:
    """Makes a node that comes online anew answer for nothing that its earlier session was handed and took with it.

    Flower tells whoever waits for such an answer only if it is asked for while the node is offline. A client that was
    killed and started again tries to get in once a second: it is offline for a moment that goes by unseen, and the
    round would wait until its deadline. Without its question the SuperLink says that there is none, and it is asked
    again.
    """
    activate = state.activate_node
    answered = select(MessageRes.reply_to_message_id).where(MessageRes.reply_to_message_id.is_not(None))

    def activate_anew(node_id: int, heartbeat_interval: float) -> bool:
        done = activate(node_id, heartbeat_interval)
        if done:
            with state.session() as session:
                session.execute(
                    delete(MessageIns).where(
                        MessageIns.dst_node_id == uint64_to_int64(node_id),
                        MessageIns.delivered_at != "",
                        MessageIns.message_id.not_in(answered),
                    )
                )
        return done

    state.activate_node = activate_anew  # type: ignore[method-assign]


def deliver_again(state: SqlLinkState, before: datetime) -> None:
    """Delivers the questions again that were handed over before a moment, and that their nodes did not confirm since.

    A node that is just fetching one would find it gone when it comes back for the next: to be called when those that
    were cut off have had time to go on.
    """
    with state.session() as session:
        session.execute(
            update(MessageIns)
            .where(
                MessageIns.delivered_at != "",
                MessageIns.delivered_at < before.isoformat(),
                MessageIns.message_id.in_(select(StoredObject.object_id)),
            )
            .values(delivered_at="")
        )


class FleetOnly:
    """In front of the public port: the Fleet API and a health check pass, everything else is 404 without a word.

    A body is refused before it is read where it says that it is too long, or does not say how long it is.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":  # belongs to the other port
            await _no_lifespan(receive, send)
        elif scope["type"] != "http":
            await _close(receive, send)
        elif scope["path"] != _HEALTH and not _FLEET.fullmatch(scope["path"]):
            await _refuse(send, 404)
        elif (status := _body_status(scope)) is not None:
            await _refuse(send, status)
        else:
            await self._app(scope, receive, send)


class AdminOnly:
    """In front of the loopback port: whoever cannot read our secret gets a health check and nothing else.

    Flower's Control API knows no passwords, and every account of a machine reaches its loopback.
    """

    def __init__(self, app: Asgi, secret: bytes) -> None:
        self._app = app
        self._key = admin_key(secret).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._may_pass(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse(send, 404)
        else:
            await _close(receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        return scope["path"] == _HEALTH or hmac.compare_digest(_header(scope, ADMIN_HEADER.encode()), self._key)


def _body_status(scope: Scope) -> int | None:
    """The status with which a request is refused for its body alone."""
    if scope["method"] in ("GET", "HEAD"):
        return None
    length = _header(scope, b"content-length")
    if not length.isdigit():
        return 411
    return 413 if int(length) > MAX_FLEET_BODY else None


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


async def _refuse(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _close(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1008})


async def _no_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
