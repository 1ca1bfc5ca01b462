"""This node's session at a SuperLink: online, asked, answering; patient where the server goes away and comes back."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from neuralforge.federation.flower.calls import (
    MessageLost,
    NotActivated,
    ServerAway,
    Signature,
    Unknown,
    fleet_client,
    translated,
)
from neuralforge_common.adapter import MAX_STATE_BYTES
from neuralforge_common.errors import FederationError

HEARTBEAT_INTERVAL = HEARTBEAT_MIN_INTERVAL
"""Seconds; a node counts as offline after two of them without a sign of life."""
HEARTBEAT_EVERY = 0.4 * HEARTBEAT_INTERVAL
"""Flower's own sender counts on its default interval of 30 s and would be too late for ours."""
OLD_SESSION_WAIT = 90.0
"""Seconds until the server has noticed the end of an earlier session that could not say goodbye."""
LINGER = 2.0
"""Seconds online after a reply: of a node that has gone the server hands nothing on, not even what is there already."""
SKEW, MOST_SKEW = 3.0, 240.0
"""Seconds: clocks that are further apart are reckoned with, up to what a server allows a member (`channel.py`)."""
CALL_TIMEOUT = 30.0
GOODBYE_TIMEOUT = 3.0
DAY = 86_400.0
PARTS_WAIT = 60.0
"""For a part of a message that the server was promised and does not have: whoever was to send it may have died."""
MAX_MESSAGE_BYTES = MAX_STATE_BYTES + 2**20

T = TypeVar("T")


class Stopped(Exception):
    """Whoever runs this client has asked to stop while it waited for the server."""


class Fleet:
    """This node's session at the server, online from `open` to `close`; a thread of its own sends the heartbeats.

    Every call goes on trying for `patience` seconds where the server is away.
    """

    def __init__(
        self,
        address: str,
        ca: bytes,
        key: ec.EllipticCurvePrivateKey,
        *,
        check_member: Callable[[], object] = lambda: None,
        tell: Callable[[str], None] = lambda line: None,
        stop: Callable[[], bool] = lambda: False,
        patience: float = DAY,
        old_session_wait: float = OLD_SESSION_WAIT,
        linger: float = LINGER,
        parts_wait: float = PARTS_WAIT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.address = address
        self._ca = ca
        self._key = key
        self._check_member = check_member
        self._tell = tell
        self._stop = stop
        self._patience = patience
        self._old_session_wait = old_session_wait
        self._linger = linger
        self._parts_wait = parts_wait
        self._signature = Signature(key, clock)
        self._client = fleet_client(address, ca, self._signature, timeout=CALL_TIMEOUT)
        self._node = Node()
        self._claimed: tuple[Message, ObjectTree] | None = None
        self._replied = -math.inf
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def node_id(self) -> int:
        """The node's number at the server; 0 before `open`."""
        return int(self._node.node_id)

    def open(self, *, patience: float) -> None:
        """Go online.

        Raises:
            FederationError: unreachable for `patience` seconds, another federation's certificate, not registered.
        """
        self._persist(self._activate, patience)
        self._heart.start()

    def receive(self) -> Message | None:
        """The next message for this node, or None.

        Raises:
            MessageLost: there was one, and it cannot be had any more.
            FederationError: the server is away for too long, or does not know this node any more.
        """
        return self._persist(self._receive, self._patience)

    def send(self, reply: Message) -> int:
        """Send a reply; returns how many bytes went out.

        Raises:
            MessageLost: it came too late.
            FederationError: the server is away for too long, or does not know this node any more.
        """
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            attempts = 0

            def attempt() -> int:
                nonlocal attempts
                attempts += 1
                return self._send(reply, first=attempts == 1)

            sent = self._persist(attempt, self._patience)
        self._replied = time.monotonic()
        return sent

    def close(self) -> None:
        """Go offline, so that the server waits for nothing and the next session may begin at once."""
        time.sleep(max(0.0, self._replied + self._linger - time.monotonic()))
        self._closing.set()
        if self._heart.is_alive():
            self._heart.join()  # a heartbeat after the goodbye would bring the node online again
        if self.node_id:
            client = fleet_client(self.address, self._ca, self._signature, timeout=GOODBYE_TIMEOUT)
            with client, contextlib.suppress(FederationError, httpx.HTTPError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self._client.close()

    def _persist(self, attempt: Callable[[], T], patience: float) -> T:
        began = time.monotonic()
        delay, told, unknown, activate = 0.2, False, 0, False
        while True:
            try:
                if activate:
                    translated(self.address, self._activate)
                    activate = False
                result = translated(self.address, attempt)
            except Unknown as error:
                if SKEW < abs(error.skew) < MOST_SKEW:
                    self._signature.offset -= error.skew
                    ahead = "ahead of" if error.skew > 0 else "behind"
                    self._tell(
                        f"this machine's clock is {abs(error.skew):,.0f} s {ahead} the server's, whose time counts here"
                    )
                    continue
                # The server came back with another database, and this node may stand in it under another number.
                unknown += 1
                if unknown > 1 or not self.node_id:
                    raise FederationError(error.message, hint=error.hint) from error
                self._claimed, activate = None, True
            except ServerAway as away:
                waited = time.monotonic() - began
                if waited + delay > patience:
                    raise FederationError(
                        f"{self.address} does not answer: {away.message}",
                        hint="is the server running, and does a firewall let you through to this port?",
                    ) from away
                if not told and waited > 1:
                    told = True
                    self._tell(f"{self.address} does not answer, trying again: {away.message}")
                self.pause(delay * random.uniform(0.8, 1.2))  # noqa: S311 - so that a team does not knock as one
                delay = min(2 * delay, 5.0)
            else:
                if told:
                    self._tell(f"{self.address} answers again after {time.monotonic() - began:.0f} s")
                return result

    def pause(self, seconds: float) -> None:
        """Wait; raises Stopped where `stop` says so meanwhile."""
        until = time.monotonic() + seconds
        while not self._stop():
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.1))
        raise Stopped

    def _activate(self) -> None:
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public_key()), heartbeat_interval=HEARTBEAT_INTERVAL
        )
        began, told = time.monotonic(), False
        while True:
            try:
                self._node = Node(node_id=self._client.ActivateNode(request).node_id)
                return
            except NotActivated as error:
                self._check_member()  # says so at once where the node was revoked
                if time.monotonic() - began >= self._old_session_wait:
                    raise FederationError(
                        f"{self.address} does not let this node in: "
                        "its key is not registered there or was revoked, or another session with this key is online",
                        hint="end the other session, or ask for a new invitation and run `nf-client join`",
                    ) from error
                if not told:
                    told = True
                    self._tell(
                        "the server does not let this node in yet: an earlier session of it may still count as online; "
                        f"trying for at most {self._old_session_wait:.0f} s"
                    )
                self.pause(1.0)

    def _receive(self) -> Message | None:
        if self._claimed is None:
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            # The server hands a message out once: where it goes away now, the rest is fetched when it is back.
            self._claimed = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
        try:
            message = self._fetch(*self._claimed)
        except MessageLost:
            self._claimed = None
            raise
        self._claimed = None
        return message

    def _fetch(self, header: Message, tree: ObjectTree) -> Message:
        run = header.metadata.run_id
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
        size = 0

        def pull_bounded(object_id: str) -> bytes:
            nonlocal size
            if self._stop():
                raise Stopped
            content = pull(object_id)
            size += len(content)
            if size > MAX_MESSAGE_BYTES:
                raise MessageLost(f"the server sends more than {MAX_MESSAGE_BYTES:,} bytes in a message")
            return content

        try:
            ids = dict.fromkeys(node.object_id for node in iterate_object_tree(tree))
            contents = pull_objects(
                list(ids),
                pull_bounded,
                max_tries_per_object=None,
                max_time=self._parts_wait,
                initial_backoff=0.1,
                backoff_cap=2,
            )
        except ObjectPullError as error:
            raise MessageLost("the server does not have a message any more") from error
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=tree.object_id)
        )
        try:
            message = inflate_object_from_contents(tree.object_id, contents)
        except Exception as error:  # whatever foreign bytes can make Flower raise
            raise MessageLost(f"a message cannot be read ({type(error).__name__})") from error
        if not isinstance(message, Message):
            raise MessageLost("a message cannot be read: it is another object")
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def _send(self, reply: Message, *, first: bool) -> int:
        run = reply.metadata.run_id
        tree = get_object_tree(reply)
        response = self._client.PushMessages(
            PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
        )
        wanted = set(response.objects_to_push)
        # A message that the server does not want to have is asked for no part of itself, and told nothing else.
        if first and tree.object_id not in wanted:
            raise MessageLost("the reply came too late")
        push = make_push_object_fn_protobuf(self._client.PushObject, self._node, run, response.session_id)
        size = 0

        def push_counted(object_id: str, content: bytes) -> None:
            nonlocal size
            push(object_id, content)
            size += len(content)

        try:
            push_objects(get_all_nested_objects(reply), push_counted, object_ids_to_push=wanted)
        except ObjectPushError as error:
            raise ServerAway("the transfer was cut off") from error
        return size

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_EVERY * random.uniform(0.9, 1.1)):  # noqa: S311
            # A beat that is lost is no loss: the next one brings the node online again. Whatever it was, the call of
            # the other thread meets it, too, and says so.
            with contextlib.suppress(Exception):
                self._client.SendNodeHeartbeat(
                    SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_INTERVAL)
                )


@contextlib.contextmanager
def connect(
    address: str,
    ca: bytes,
    key: ec.EllipticCurvePrivateKey,
    *,
    check_member: Callable[[], object] = lambda: None,
    tell: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
    first_patience: float = 15.0,
    patience: float = DAY,
    old_session_wait: float = OLD_SESSION_WAIT,
    linger: float = LINGER,
    parts_wait: float = PARTS_WAIT,
    clock: Callable[[], float] = time.time,
) -> Iterator[Fleet]:
    """This node's session at the fleet port `address` (host:port), for as long as the block runs.

    `ca` is the federation's authority (PEM), the only one that is trusted; `key` the registered node key.
    `check_member` is called where the server does not let the node in, and raises where it knows better why. The first
    contact is tried for `first_patience` seconds, later ones for `patience`; `tell` gets a line for a person about
    every wait, and a true `stop` ends it.

    Raises:
        FederationError: unreachable, another federation's certificate, not registered, revoked.
        Stopped: `stop` said so before the session stood.
    """
    fleet = Fleet(
        address,
        ca,
        key,
        check_member=check_member,
        tell=tell,
        stop=stop,
        patience=patience,
        old_session_wait=old_session_wait,
        linger=linger,
        parts_wait=parts_wait,
        clock=clock,
    )
    try:
        fleet.open(patience=first_patience)
        yield fleet
    finally:
        fleet.close()


def error_reply(message: Message, words: str) -> Message:
    """The reply that says that a message could not be answered, and why."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, words), reply_to=message)
