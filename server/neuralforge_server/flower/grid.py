"""A run's messages: Flower's `Grid`, patient where the SuperLink goes away, and bounded where a client is slow.

What Flower's own grid does otherwise: it waits up to two hours for the rest of a reply whose sender stops in the
middle, lets a reply that cannot be read end the round loop, and believes what a reply says about where it comes from.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.app import Context, Message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from neuralforge_common.adapter import MAX_STATE_BYTES
from neuralforge_common.errors import FederationError
from neuralforge_server.flower.arrival import Arrival, Stalled, Unreadable
from neuralforge_server.flower.calls import PATIENCE, GridLost, explained, runtime_client
from neuralforge_server.flower.control import Control

HEARTBEAT_SECONDS = 5.0
"""Flower gives up a run whose task was not heard for 60 seconds."""
MAX_REPLY_BYTES = MAX_STATE_BYTES + 2**20

_RESENDS = 3
_PUSHES = 5
_ACQUIRE_SECONDS = 45.0  # a claim whose answer was lost frees its task after 30


@contextmanager
def open_grid(
    address: str, secret: bytes, *, patience: float = PATIENCE, max_reply_bytes: int = MAX_REPLY_BYTES
) -> Iterator[PatientGrid]:
    """Starts a run of our app on the SuperLink at `address`, stops every other, and is its ServerApp in the block.

    Every call waits up to `patience` seconds for a SuperLink that is away. One process can have one open at a time, as
    Flower keeps the identity of a task in a global.

    Raises:
        FederationError: the SuperLink stays away or refuses. GridLost, from the grid's calls as well: it does not know
            this run any more, and another `open_grid` is what helps.
    """
    with Control(address, secret, patience=patience) as control:
        control.stop_unfinished_runs()
        control.start_run()
        token = _acquire(address, secret, patience)
        grid = PatientGrid(address, secret, token, patience=patience, max_reply_bytes=max_reply_bytes)
        control.stop_unfinished_runs(but=grid.run.run_id)
        heartbeat = _Heartbeat(runtime_client(address, secret, token=token, patience=0), grid)
        outcome, details = SubStatus.FAILED, "the coordinator stopped"
        try:
            yield grid
            outcome, details = SubStatus.COMPLETED, ""
        finally:
            heartbeat.stop()
            grid.close()
            _finish(address, secret, token, outcome, details)


class PatientGrid(HttpGrid):
    """Flower's grid to a SuperLink that may be killed at any moment; `context` is what the run's ServerApp is given.

    A question whose answer was lost between the SuperLink and us is asked again, with the time it has left; to the
    caller it stays the same question. `max_reply_bytes` may be set at any time.
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        token: str,
        *,
        patience: float = PATIENCE,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        super().__init__(runtime_api_address=address, insecure=True, token=token)
        self._client = runtime_client(address, secret, token=token, patience=patience, on_return=self._note_return)
        self.context = self._begin()
        self.max_reply_bytes = max_reply_bytes
        self._asked: dict[str, _Question] = {}
        self._originals: dict[str, str] = {}
        self._arriving: list[Arrival] = []
        self._back_since = 0.0
        self.lost = threading.Event()

    def _begin(self) -> Context:
        with explained("begin the run"):
            task = self._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        run = run_from_proto(task.run)
        self.set_run(run)
        context = context_from_proto(task.context)
        context.run_config = get_fused_config_from_fab(task.fab.content, run)
        return context

    def _note_return(self) -> None:
        self._back_since = time.monotonic()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes that are online."""
        with self._calling("list the nodes"):
            return super().get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages; returns their ids, "" for one whose node the SuperLink does not know."""
        sent = list(messages)
        if not sent:
            return []
        now = time.monotonic()
        self._asked = {name: question for name, question in self._asked.items() if question.ends > now}
        self._originals = {name: first for name, first in self._originals.items() if first in self._asked}
        self._arriving = [arrival for arrival in self._arriving if arrival.question in self._originals]
        names = self._push(sent)
        for name, message in zip(names, sent, strict=True):
            if name:
                self._originals[name] = name
                self._asked[name] = _Question(message=message, ends=now + message.metadata.ttl, askings={name})
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are here whole."""
        wanted = set(message_ids)
        # The SuperLink forgets a question when it hands its reply over.
        open_ones = wanted.difference(self._first(arrival.question) for arrival in self._arriving)
        names = set[str]()
        for first in open_ones:
            # After a question was asked anew, an answer to an earlier asking is as good.
            names |= self._asked[first].askings if first in self._asked else {first}
        with self._calling("fetch replies"):
            if names:
                found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=sorted(names)))
                self._arriving += map(Arrival, found.messages_list, found.message_object_trees)
            return [reply for arrival in self._due(wanted) if (reply := self._take(arrival)) is not None]

    def _push(self, messages: list[Message]) -> list[str]:
        for attempt in range(_PUSHES):
            with self._calling("send messages"):
                try:
                    return [str(name or "") for name in super().push_messages(messages)]
                except ObjectPushError:
                    # The SuperLink took a piece and died before it could say so. To ask it all again is harmless:
                    # a message's id is its digest.
                    time.sleep(0.2 * (attempt + 1))
        raise FederationError("the SuperLink does not take our messages", hint="see superlink.log")

    def _due(self, wanted: set[str]) -> list[Arrival]:
        return [arrival for arrival in self._arriving if self._first(arrival.question) in wanted]

    def _first(self, name: str) -> str:
        """The id under which the caller knows a question."""
        return self._originals.get(name, name)

    def _take(self, arrival: Arrival) -> Message | None:
        """One reply; None where it is not whole yet, was answered before, or its question is asked again."""
        first = self._first(arrival.question)
        try:
            pieces = arrival.fetch(self._pull_piece, limit=self.max_reply_bytes, back_since=self._back_since)
            if pieces is None:
                return None
            reply = arrival.read(pieces, question=first)
        except Unreadable as fault:
            reply = arrival.failure(ErrorCode.UNKNOWN, f"the reply cannot be read: {fault}", question=first)
        except Stalled as fault:
            reply = arrival.failure(ErrorCode.MESSAGE_UNAVAILABLE, f"the reply was cut off: {fault}", question=first)
        self._arriving.remove(arrival)
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=arrival.message_id)
        )
        question = self._asked.get(first)
        if question is None:
            return reply if first not in self._originals else None
        if reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE:
            question.askings.discard(arrival.question)
            if question.askings or self._ask_again(first, question):
                return None
        del self._asked[first]
        return reply

    def _pull_piece(self, name: str) -> bytes | None:
        found = self._runtime_client.PullObject(
            PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=name)
        )
        if not found.object_found:
            raise Stalled("the SuperLink has given it up")
        return bytes(found.object_content) if found.object_available else None

    def _ask_again(self, first: str, question: _Question) -> bool:
        left = question.ends - time.monotonic()
        if left <= 1 or question.resends >= _RESENDS:
            return False
        question.resends += 1
        old = question.message
        again = Message(
            old.content,
            dst_node_id=old.metadata.dst_node_id,
            message_type=old.metadata.message_type,
            ttl=left,
            group_id=old.metadata.group_id,
        )
        (name,) = self._push([again])
        if name:
            self._originals[name] = first
            question.askings.add(name)
        return bool(name)

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        if self.lost.is_set():
            raise GridLost(f"cannot {what}: the SuperLink does not know this run any more")
        with explained(what):
            yield


@dataclass(slots=True, kw_only=True)
class _Question:
    """What was sent; `askings` are the ids under which the SuperLink may still have an answer."""

    message: Message
    ends: float
    askings: set[str]
    resends: int = 0


class _Heartbeat:
    """Says every few seconds that the task is alive; marks the grid where the SuperLink knows nothing of it."""

    def __init__(self, client: RuntimeHttpClient, grid: PatientGrid) -> None:
        self._client, self._grid = client, grid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="superlink-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                known = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except httpx.HTTPStatusError as error:
                known = error.response.status_code not in (401, 403)
            except (httpx.TransportError, ValueError):
                continue
            if not known:
                self._grid.lost.set()
                return


def _acquire(address: str, secret: bytes, patience: float) -> str:
    ends = time.monotonic() + _ACQUIRE_SECONDS
    client = runtime_client(address, secret, patience=patience)
    try:
        with explained("take on the run"):
            while True:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if found.HasField("task") and found.token:
                    return str(found.token)
                if time.monotonic() > ends:
                    raise FederationError("the SuperLink gave us no run to take on", hint="see superlink.log")
                time.sleep(0.1)
    finally:
        client.close()


def _finish(address: str, secret: bytes, token: str, outcome: str, details: str) -> None:
    client = runtime_client(address, secret, token=token, patience=0)
    # Whoever starts the next run stops this one, should the SuperLink not hear of its end.
    with contextlib.suppress(httpx.HTTPError, ValueError):
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome, details=details))
    client.close()
