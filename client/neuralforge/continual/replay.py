"""`ReplayBuffer`: a bounded sample of everything that was learnt, to be learnt again beside what is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from neuralforge.continual.item import MAX_ITEM_BYTES, Answer, ReplayItem, from_bytes, to_bytes
from neuralforge.continual.keys import Key
from neuralforge.continual.sampling import Balance, Reservoir, draw, reservoir_from, reservoir_state
from neuralforge.continual.vault import Manifest, Record, Vault
from neuralforge.data.example import Example
from neuralforge.data.redact import PLACEHOLDER, redact_pair
from neuralforge_common.errors import DataError, VaultError


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What came of the examples of one `add`: how many were chosen, not chosen, already there, and refused.

    Refused is what holds nothing but a secret, or is larger than a record may be. One that was chosen may have given
    way to a later one of the same call.
    """

    chosen: int
    passed: int
    repeated: int
    refused: int


class ReplayBuffer:
    """At most `max_size` examples of all that were ever added; `balance` says of what kind of sample, see `sampling`.

    Secrets are taken out before anything is kept. As it is made here the buffer is in memory alone; `open` gives one
    that lives in an encrypted folder and is there again the next time.
    """

    def __init__(
        self,
        max_size: int = 1000,
        *,
        balance: Balance = "uniform",
        seed: int = 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if max_size < 0:
            raise DataError(f"a replay buffer's max_size is a whole number ≥ 0, got {max_size}")
        self.max_size = max_size
        self.balance = balance
        self._now = now
        self._items: list[ReplayItem] = []
        self._records: list[Record] = []
        self._reservoir = Reservoir(size=max_size, balanced=balance != "uniform", seed=seed)
        self._vault: Vault | None = None
        self._generation = 0
        self._draws = 0

    @classmethod
    def open(
        cls,
        folder: str | Path,
        key: Key,
        *,
        max_size: int = 1000,
        balance: Balance = "uniform",
        seed: int = 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> ReplayBuffer:
        """The buffer that lives in a folder, made there if there is none; `key` is one of `keys`.

        What is in the folder decides the seed. A smaller `max_size` than before drops examples evenly with the next
        `add`; with a larger one what is added until it is full is over-represented.

        Raises:
            VaultError: another key; a damaged file, by its record; another `balance` than it was made with.
            StorageError: others may look into the folder, or the disk refuses.
        """
        buffer = cls(max_size, balance=balance, seed=seed, now=now)
        buffer._vault = Vault.open(Path(folder), key)
        buffer._reload(buffer._vault)
        return buffer

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> tuple[ReplayItem, ...]:
        """What is held, by slot."""
        return tuple(self._items)

    @property
    def seen(self) -> int:
        """How many examples were ever offered, those that were already held not counted."""
        return self._reservoir.seen.total()

    @property
    def sessions(self) -> Counter[str]:
        """How many of each session's examples are held."""
        return Counter(item.session for item in self._items)

    def add(
        self, examples: Iterable[Example], *, session: str = "", answers: Sequence[Answer | None] | None = None
    ) -> Added:
        """Offer examples, in order; all of them are on the disk when this returns, or none.

        `answers`, one for each example, are what `dark.answers` gave; they are kept for DER++. An example that is
        already held is passed over.

        Raises:
            VaultError: the buffer was erased meanwhile, or is damaged.
            StorageError: the disk refuses; the buffer is as it was.
        """
        offered = list(examples)
        given = list(answers) if answers is not None else [None] * len(offered)
        if len(given) != len(offered):
            raise DataError(f"{len(given)} answers for {len(offered)} examples, wanted one for each")
        if self._vault is None:
            return self._add(offered, given, session)
        with self._vault.writing():
            if self._vault.changed():
                self._reload(self._vault)
            return self._add(offered, given, session)

    def sample(self, batch_size: int = 32, *, seed: int | None = None) -> list[Example]:
        """Examples drawn evenly from what is held, none twice; all of them where there are fewer.

        `seed` None goes on in the buffer's own stream: each call draws anew, and a fresh buffer draws the same again.
        """
        number = self._draws if seed is None else 0
        self._draws += seed is None
        places = draw(len(self._items), batch_size, seed=self._reservoir.seed if seed is None else seed, number=number)
        return [self._items[place].example for place in places]

    def _add(self, examples: Sequence[Example], answers: Sequence[Answer | None], session: str) -> Added:
        added = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Copies, so that a disk that refuses leaves the buffer as it was.
        reservoir = deepcopy(self._reservoir)
        kept = reservoir.shrink()
        items = [self._items[i] for i in kept]
        records: list[Record | None] = [self._records[i] for i in kept] if self._vault else [None] * len(items)
        known = {item.example.id for item in items}
        counts: Counter[str] = Counter()
        for example, answer in zip(examples, answers, strict=True):
            clean = without_secrets(example)
            # An answer to the text as it was would tell the tokens of a secret that was taken out.
            fitting = answer if clean is example else None
            item = clean and ReplayItem(example=clean, session=session, added=added, answer=fitting)
            if not item or len(to_bytes(item)) > MAX_ITEM_BYTES:
                counts["refused"] += 1
                continue
            if item.example.id in known:
                counts["repeated"] += 1
                continue
            slot = reservoir.offer(session if self.balance == "session" else item.example.language)
            if slot is None:
                counts["passed"] += 1
                continue
            if slot == len(items):
                items.append(item)
                records.append(None)
            else:
                known.discard(items[slot].example.id)
                items[slot], records[slot] = item, None
            known.add(item.example.id)
            counts["chosen"] += 1
        if self._vault is not None:
            self._write(self._vault, reservoir, items, records)
        self._items, self._reservoir = items, reservoir
        names = ("chosen", "passed", "repeated", "refused")
        return Added(**{name: counts[name] for name in names})

    def _write(
        self, vault: Vault, reservoir: Reservoir, items: Sequence[ReplayItem], records: Sequence[Record | None]
    ) -> None:
        lines = [record or vault.seal(item.facts, to_bytes(item)) for item, record in zip(items, records, strict=True)]
        state = reservoir_state(reservoir) | {"balance": self.balance, "max_size": self.max_size}
        self._generation = vault.write(state, lines, generation=self._generation + 1).generation
        self._records = lines

    def _reload(self, vault: Vault) -> None:
        manifest = vault.load()
        if manifest is None:
            return
        self._take(manifest, [from_bytes(vault.open_record(record.id)) for record in manifest.records])

    def _take(self, manifest: Manifest, items: list[ReplayItem]) -> None:
        balance = manifest.state["balance"]
        if balance != self.balance:
            raise VaultError(
                f"the replay buffer was made with balance {balance!r}, asked for is {self.balance!r}",
                hint=f"keep balance {balance!r}, or begin anew: neuralforge replay purge",
            )
        classes = [item.session if balance == "session" else item.example.language for item in items]
        self._reservoir = reservoir_from(manifest.state, classes, size=self.max_size, balanced=balance != "uniform")
        self._items, self._records = items, list(manifest.records)
        self._generation = manifest.generation


def without_secrets(example: Example) -> Example | None:
    """The example without secrets, None where nothing else is in its completion; as `data.dataset` does it."""
    context, completion, secrets = redact_pair(example.context, example.completion)
    if not PLACEHOLDER.sub("", completion).strip():
        return None
    return replace(example, context=context, completion=completion) if secrets else example
