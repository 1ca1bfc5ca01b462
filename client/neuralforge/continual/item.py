"""One example in a replay buffer, and how it is written into a record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from neuralforge.data.example import Example
from neuralforge.data.soft import TopLogits

MAX_ITEM_BYTES = 256 * 1024
"""A larger one is refused: with the buffer's `max_size` this bounds what it takes on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an adapter answered when the example was stored; `of` says to which tokens, on which base."""

    logits: TopLogits = field(compare=False)
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayItem:
    """An example, the session that it was learnt in, when it was stored (UTC), and perhaps the answer of that time."""

    example: Example
    session: str
    added: str
    answer: Answer | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What is told of it without opening its record; this is encrypted as well."""
        return {
            "example": self.example.id,
            "language": self.example.language,
            "session": self.session,
            "added": self.added,
            "logits": self.answer is not None,
        }


def to_bytes(item: ReplayItem) -> bytes:
    """Length of the JSON (4 bytes, little-endian), the JSON, then ids (int32) and values (float16) of the logits."""
    head: dict[str, Any] = {"example": asdict(item.example), "session": item.session, "added": item.added}
    arrays = []
    if item.answer is not None:
        logits = item.answer.logits
        head["answer"] = {"of": item.answer.of, "shape": list(logits.ids.shape)}
        arrays = [logits.ids.astype("<i4").tobytes(), logits.values.astype("<f2").tobytes()]
    text = json.dumps(head).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *arrays])


def from_bytes(data: bytes) -> ReplayItem:
    """The other way; the bytes are authenticated, so only `to_bytes` can have made them."""
    end = 4 + int.from_bytes(data[:4], "little")
    head = json.loads(data[4:end])
    answer = None
    if "answer" in head:
        rows, k = head["answer"]["shape"]
        ids = np.frombuffer(data, "<i4", rows * k, end).reshape(rows, k)
        values = np.frombuffer(data, "<f2", rows * k, end + ids.nbytes).reshape(rows, k)
        logits = TopLogits(ids=ids.astype(np.int32), values=values.astype(np.float16))
        answer = Answer(logits=logits, of=head["answer"]["of"])
    return ReplayItem(example=Example(**head["example"]), session=head["session"], added=head["added"], answer=answer)
