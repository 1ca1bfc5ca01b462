"""Messages to a client's app, as a node's runtime hands them over."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


def asked(app: ClientApp, content: RecordDict, kind: str, **node_config: Any) -> Message:
    """The reply to one message, as a node's runtime gets it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 2
    message = Message(content, dst_node_id=2, message_type=kind)
    message.metadata.__dict__["_message_id"] = "question"
    context = Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})
    reply = app(message=message, context=context)
    assert reply.metadata.reply_to_message_id == "question"
    return reply


def answer(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    assert set(reply.content) == {"answer"}
    return dict(json.loads(str(reply.content["answer"]["json"])))  # type: ignore[index]
