"""What an adapter's earlier sessions have left, opened: the adapter, its record, EWC's state, and both vaults."""

from __future__ import annotations

from pathlib import Path

from neuralforge.continual import history as places
from neuralforge.continual.blocks import MOST_BLOCKS, Blocks
from neuralforge.continual.held_out import HeldOut, HeldOutItem
from neuralforge.continual.history import History, Record, adapter_digest
from neuralforge.continual.keys import Key, choose_key
from neuralforge.continual.replay import ReplayBuffer
from neuralforge.continual.sampling import Balance
from neuralforge.continual.state import EWCState
from neuralforge.continual.vault import read_header
from neuralforge.data.run_folder import REPLAY
from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import AdapterFolder, read_adapter_folder


class Remembered:
    """The adapter at `path` with what its sessions have left; `keeping.keep` adds one session to it.

    `anew` begins without either. `found` is the adapter as it was read, None before the first session of one that is
    begun anew. Without a `key` (`size` is 0) no code is read and none is kept.

    Raises:
        AdapterError: there is no such adapter.
        CheckpointError: its history is damaged, or that of another adapter.
        VaultError: no key, or another one.
        StorageError: others may look into the history, or a session is being learnt just now.
    """

    def __init__(
        self, path: Path, *, size: int, balance: Balance | None = None, key: Key | None = None, anew: bool = False
    ) -> None:
        self.path = path
        self.history = History(path)
        self.size = size
        self.anew = anew
        self.found: AdapterFolder | None = None if anew else read_adapter_folder(path)
        digest = adapter_digest(self.found.spec, self.found.state) if self.found else ""
        self.record = self.history.read(digest) if self.found else Record(adapter="")
        self.ewc = EWCState.load(self.history.folder / places.EWC) if self.record.ewc else None
        self.balance: Balance = balance or self.record.balance or "uniform"
        self.buffer = ReplayBuffer(size, balance=self.balance)
        self.held_out: list[HeldOutItem] = []
        self.key: Key | None = None
        if size > 0:
            folder = self.history.folder / REPLAY
            header = None if anew else read_header(folder)
            self.key = key or choose_key(header.kind if header else None)
            if header is not None:
                self.buffer = self.open_buffer(folder, self.key)
            if not anew and read_header(self.history.folder / places.HELD_OUT) is not None:
                self.held_out = HeldOut.open(self.history.folder / places.HELD_OUT, self.key).items()

    def blocks(self) -> Blocks | None:
        """The blocks that a new one joins; the adapter itself is the first. None where there is no adapter yet.

        Raises:
            CheckpointError: they are damaged.
        """
        if self.found is None:
            return None
        ranks = self.record.blocks
        if not 0 < len(ranks) < MOST_BLOCKS:
            return Blocks.of(self.found.spec, self.found.state)
        path, digest = self.history.folder / places.BLOCKS, self.record.blocks_digest
        return Blocks.load(path, of=self.found.spec, ranks=ranks, digest=digest)

    def check_unchanged(self) -> None:
        """Raises AdapterError where another session was learnt since; the caller holds the history's lock."""
        if self.anew:
            return
        found = read_adapter_folder(self.path)
        digest = adapter_digest(found.spec, found.state)
        self.history.recover(digest)
        if digest != self.record.adapter:
            raise AdapterError(
                f"{self.path} was changed since it was opened", hint="open it anew: another session has been learnt"
            )

    def moved_on(self, record: Record, held_out: list[HeldOutItem]) -> None:
        """A session has been put down: this is what there is now."""
        self.record, self.anew = record, False
        self.found = read_adapter_folder(self.path)
        self.held_out = held_out
        if self.key is not None:
            self.buffer = self.open_buffer(self.history.folder / REPLAY, self.key)

    def open_buffer(self, folder: Path, key: Key) -> ReplayBuffer:
        """The replay buffer in a folder, of the size and balance that are asked for."""
        return ReplayBuffer.open(folder, key, max_size=self.size, balance=self.balance)
