"""Flower's `Grid` inside one process: the same apps, no network, and one base model for all virtual clients.

The only module here that knows Flower's private names (pinned to 1.41, held by a contract test).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from neuralforge_common.errors import FederationError
from neuralforge_simulations.clock import VirtualClock

RUN_ID = 1
SERVER_NODE_ID = 1
GONE_SECONDS = 45.0
"""After so long a real grid says that a client which has gone will not answer."""
PARTITION_ID, NUM_PARTITIONS = "partition-id", "num-partitions"
TRAIN = "train"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How reliably clients answer when they are asked to train.

    Each drops out with the probability `dropout` whenever it is asked; the clients `slow` take `slow_seconds` longer.
    """

    dropout: float = 0.0
    slow: frozenset[int] = frozenset()
    slow_seconds: float = 0.0
    seed: int = 0

    def drops(self, client: int, occasion: int) -> bool:
        """Whether a client drops out on the n-th occasion that it is asked; the same for the same seed."""
        if self.dropout <= 0:
            return False
        return (
            float(np.random.Generator(np.random.Philox(key=[self.seed, client << 32 | occasion])).random())
            < self.dropout
        )


@dataclass(slots=True, kw_only=True)
class _Sent:
    message: Message
    ready: float
    expires: float
    gone: bool


@dataclass(slots=True, kw_only=True)
class _Node:
    context: Context
    occasions: int = field(default=0)


class LocalGrid(Grid):
    """A federation of virtual clients, each answering when its reply is pulled, one at a time.

    As on a real grid, either side has its own copy of a message, what a client raises comes back as an error, a client
    that has gone is reported as gone after a while, and a reply that comes too late never arrives (its work, which
    nobody would see, is not done). Replies are made when they are fetched: memory does not grow with the clients.
    Rounds follow one another: what one group of messages has not fetched is given up when another group is sent.

    The clients' nodes are numbered from 2; `node_configs` gives each what it is told beside its partition's number.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        *,
        clock: VirtualClock,
        habits: Habits | None = None,
        node_configs: Sequence[Mapping[str, str | int | float | bool]] = (),
    ) -> None:
        # Flower's messages ask for these; a run of its own sets them in the same way.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE_ID
        self._app = app
        self._clock = clock
        self._habits = habits or Habits()
        self._run = Run.create_empty(RUN_ID)
        self._nodes = {
            node_of(client): _Node(
                context=Context(
                    run_id=RUN_ID,
                    node_id=node_of(client),
                    node_config={
                        PARTITION_ID: client,
                        NUM_PARTITIONS: clients,
                        **(node_configs[client] if node_configs else {}),
                    },
                    state=RecordDict(),
                    run_config={},
                )
            )
            for client in range(clients)
        }
        self._sent: dict[str, _Sent] = {}
        self._messages = 0
        clock.next_event = self._next_event

    @property
    def run(self) -> Run:
        """The one run there is."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Take another run's description."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message; Flower deprecates this in favour of the constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All clients: whoever drops out does so after it was asked."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; a message to nobody that is here has the id "", as on a real grid."""
        ids = []
        messages = list(messages)
        self._give_up({message.metadata.group_id for message in messages})
        for message in messages:
            node = self._nodes.get(message.metadata.dst_node_id)
            if node is None:
                ids.append("")
                continue
            self._messages += 1
            message_id = f"{self._messages:032x}"
            _name(message, message_id)
            self._sent[message_id] = self._schedule(message, node)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to these that have arrived by now, each made when it is asked for."""
        for message_id in list(message_ids):
            sent = self._sent.get(message_id)
            if sent is None:
                continue
            now = self._clock.now()
            if now >= sent.expires:
                del self._sent[message_id]
            elif now >= sent.ready:
                del self._sent[message_id]
                yield self._reply(sent)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then wait for all replies, or until the time is up."""
        pending = {message_id for message_id in self.push_messages(messages) if message_id}
        ends = None if timeout is None else self._clock.now() + timeout
        replies: list[Message] = []
        while pending:
            replies += self.pull_messages(sorted(pending))
            pending &= self._sent.keys()
            if not pending or (ends is not None and self._clock.now() >= ends):
                break
            self._clock.sleep(0.1)
        return replies

    def _give_up(self, groups: set[str]) -> None:
        """Forget questions whose answers nobody fetches any more, and with them the states that they carry."""
        now = self._clock.now()
        for message_id, sent in [*self._sent.items()]:
            if now >= sent.expires or sent.message.metadata.group_id not in groups:
                del self._sent[message_id]

    def _schedule(self, message: Message, node: _Node) -> _Sent:
        now, client = self._clock.now(), client_of(message.metadata.dst_node_id)
        ready, gone = now, False
        if message.metadata.message_type == TRAIN:
            gone = self._habits.drops(client, node.occasions)
            node.occasions += 1
            if client in self._habits.slow:
                ready += self._habits.slow_seconds
        return _Sent(
            message=message, ready=now + GONE_SECONDS if gone else ready, expires=now + message.metadata.ttl, gone=gone
        )

    def _reply(self, sent: _Sent) -> Message:
        question = sent.message
        if sent.gone:
            return _error(question, ErrorCode.NODE_UNAVAILABLE, "the client has gone")
        node = self._nodes[question.metadata.dst_node_id]
        # The content may be shared by all messages of a round: a client that changes it must not reach the others.
        # A message of its own also begins its time to live now, however long the clients before this one have worked.
        private = Message(
            _copied(question.content),
            question.metadata.dst_node_id,
            question.metadata.message_type,
            ttl=question.metadata.ttl,
            group_id=question.metadata.group_id,
        )
        _name(private, question.metadata.message_id)
        try:
            reply = self._app(private, node.context)
            if reply.has_content():
                reply.content = _copied(reply.content)
        except FederationError as error:
            return _error(question, ErrorCode.CLIENT_APP_CRASHED, error.message)
        except Exception as error:  # a client's failure is that client's alone
            return _error(question, ErrorCode.CLIENT_APP_CRASHED, type(error).__name__)
        return reply

    def _next_event(self) -> float | None:
        return min((min(sent.ready, sent.expires) for sent in self._sent.values()), default=None)


def node_of(client: int) -> int:
    """Flower's number of a client."""
    return client + 2


def client_of(node_id: int) -> int:
    """The client behind one of Flower's numbers."""
    return node_id - 2


def _copied(content: RecordDict) -> RecordDict:
    """The same records with nothing in common that can be changed; the arrays' bytes cannot be and are shared."""
    copy = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copy[name] = ArrayRecord({key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()})
        elif isinstance(record, MetricRecord):
            copy[name] = MetricRecord({key: _own(value) for key, value in record.items()})
        else:
            copy[name] = ConfigRecord({key: _own(value) for key, value in record.items()})
    return copy


def _own(value: T) -> T:
    return cast(T, [*value]) if isinstance(value, list) else value


def _error(question: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=question)


def _name(message: Message, message_id: str) -> None:
    # Where Flower's own grids write it; there is no setter.
    message.metadata.__dict__["_message_id"] = message_id
