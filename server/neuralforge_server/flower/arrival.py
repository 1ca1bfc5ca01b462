"""A reply on its way: announced by its sender, then uploaded piece by piece, and read only when all of it is here."""

from __future__ import annotations

import time
from collections.abc import Callable

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

STALL_SECONDS = 60.0
"""For the next piece (5 MiB at most) of a reply to be there."""
RETURN_SECONDS = 15.0
"""The same for one that was announced before the SuperLink was away: its sender goes on by then, or cannot."""


class Unreadable(Exception):
    """A reply that no answer can be made of."""


class Stalled(Exception):
    """A reply whose rest does not come."""


class Arrival:
    """One reply that the SuperLink has announced.

    Nothing of it is kept in memory before all of it is there: what is kept is how many of its pieces were seen.
    """

    def __init__(self, proto: MessageProto, tree: ObjectTree) -> None:
        self._proto = proto
        self._root = tree.object_id
        # In the order in which senders upload them.
        self._names = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
        self._seen = 0
        self._size = 0
        self._announced = self._moved = time.monotonic()

    @property
    def message_id(self) -> str:
        """Flower's id of the reply."""
        return str(self._proto.metadata.message_id)

    @property
    def question(self) -> str:
        """Flower's id of what it replies to."""
        return str(self._proto.metadata.reply_to_message_id)

    def fetch(
        self, pull: Callable[[str], bytes | None], *, limit: int, back_since: float = 0.0
    ) -> dict[str, bytes] | None:
        """All pieces, by name, or None where some are not there yet; `pull` gives one, or None.

        `back_since` is when (monotonic) the SuperLink was last there again after it had been away.

        Raises:
            Unreadable: it is longer than `limit` bytes.
            Stalled: it was begun, and nothing more of it comes.
        """
        pieces: dict[str, bytes] = {}
        for name in self._names[self._seen :]:
            piece = pull(name)
            if piece is None:
                self._check_stall(back_since)
                return None
            pieces[name] = piece
            self._seen += 1
            self._size += len(piece)
            self._moved = time.monotonic()
            if self._size > limit:
                raise Unreadable(f"it is longer than {limit:,} bytes")
        for name in self._names:
            if name not in pieces:
                piece = pull(name)
                if piece is None:
                    self._check_stall(back_since)
                    return None
                pieces[name] = piece
        return pieces

    def read(self, pieces: dict[str, bytes], *, question: str) -> Message:
        """The reply to the question that the caller knows as `question`.

        Raises:
            Unreadable: it is no message.
        """
        try:
            sent = inflate_object_from_contents(self._root, pieces)
            if not isinstance(sent, Message):
                raise TypeError(type(sent).__name__)
            # Where it comes from is what the SuperLink checked, not what its sender wrote into it.
            metadata = self._metadata(question)
            if sent.has_error():
                return make_message(metadata=metadata, error=sent.error)
            return make_message(metadata=metadata, content=sent.content)
        except Exception as error:  # a stranger's bytes: whatever they make a parser raise, they are refused
            raise Unreadable(type(error).__name__) from error

    def failure(self, code: int, reason: str, *, question: str) -> Message:
        """What is told in place of the reply."""
        return make_message(metadata=self._metadata(question), error=Error(code=code, reason=reason))

    def _metadata(self, question: str) -> Metadata:
        metadata = message_from_proto(self._proto).metadata
        metadata.__dict__["_reply_to_message_id"] = question
        return metadata

    def _check_stall(self, back_since: float) -> None:
        waited = time.monotonic() - max(self._moved, back_since)
        if waited > (RETURN_SECONDS if back_since > self._announced else STALL_SECONDS):
            raise Stalled(f"nothing more of it came in {waited:.0f} s")
