"""What each session has held out, encrypted, with what the adapter scored on it then: the forget report's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from neuralforge.continual.item import ReplayItem, from_bytes, to_bytes
from neuralforge.continual.keys import Key
from neuralforge.continual.replay import without_secrets
from neuralforge.continual.vault import Record, Vault
from neuralforge.data.example import Example
from neuralforge.training.engine import ExampleScore

T = TypeVar("T")

MOST_OF_A_SESSION = 64
MOST = 2048
"""Examples of all sessions together; each session keeps an equal share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutItem:
    """An example that a session has held out; `then` is its score at the end of that session, cut to `max_length`."""

    example: Example
    session: str
    max_length: int
    then: ExampleScore


class HeldOut:
    """The held-out examples of all sessions, oldest first, in a vault of their own."""

    def __init__(self, vault: Vault) -> None:
        manifest = vault.load()
        self._vault = vault
        self._generation = manifest.generation if manifest else 0
        self._records: list[Record] = list(manifest.records) if manifest else []

    @classmethod
    def open(cls, folder: Path, key: Key) -> HeldOut:
        """Those of a folder, which is made where there is none; raises VaultError and StorageError."""
        return cls(Vault.open(folder, key))

    def items(self) -> list[HeldOutItem]:
        """All of them; raises VaultError for one that is damaged, by its record."""
        return [self._item(record) for record in self._records]

    def add(self, session: str, examples: Sequence[Example], then: Sequence[ExampleScore], *, max_length: int) -> int:
        """Keep the examples that have a score, thinning each session alike; returns how many of these were kept.

        Raises:
            StorageError: the disk refuses; what was there still is.
        """
        new = []
        for score in then:
            clean = without_secrets(examples[score.index])
            if clean is not None:
                facts = {"session": session, "max_length": max_length}
                facts |= {"loss": score.loss, "hits": score.hits, "tokens": score.tokens}
                new.append((facts, to_bytes(ReplayItem(example=clean, session=session, added=""))))
        kept = [self._vault.seal(facts, data) for facts, data in _spread(new, MOST_OF_A_SESSION)]
        records = [*self._records, *kept]
        names = list(dict.fromkeys(str(record.facts["session"]) for record in records))
        share = max(1, MOST // max(1, len(names)))
        mine = {name: [r for r in records if r.facts["session"] == name] for name in names[-MOST:]}
        self._records = [record for group in mine.values() for record in _spread(group, share)]
        self._generation = self._vault.write({}, self._records, generation=self._generation + 1).generation
        return sum(record.facts["session"] == session for record in self._records)

    def _item(self, record: Record) -> HeldOutItem:
        item = from_bytes(self._vault.open_record(record.id))
        facts = record.facts
        score = ExampleScore(index=0, loss=facts["loss"], hits=facts["hits"], tokens=facts["tokens"])
        return HeldOutItem(example=item.example, session=item.session, max_length=int(facts["max_length"]), then=score)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly spaced, in order."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)
