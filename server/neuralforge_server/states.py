"""The files of a ledger's states: each named by its own digest, and what its round is known by beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from neuralforge_common.atomic import write_bytes_atomically
from neuralforge_common.errors import NeuralForgeError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder
from neuralforge_common.strict_json import parse_json_object

_STATE = re.compile(r"([0-9a-f]{64})\.nfstate")
_ENTRY = re.compile(r"round-([0-9]{6,})\.json")
_MAX_ENTRY = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One committed round as the ledger's row has it; `figures` is JSON."""

    round: int
    digest: str
    size: int
    figures: str
    committed: str


class StateFiles:
    """The folder `states/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Makes the folder where it is missing; raises StorageError where others may look into it."""
        make_private_folder(self.folder)

    def write(self, state: bytes) -> str:
        """Writes a state, to the disk and whole; returns its digest."""
        digest = hashlib.sha256(state).hexdigest()
        write_bytes_atomically(self._state(digest), state, mode=PRIVATE_FILE)
        return digest

    def read(self, digest: str) -> bytes:
        """The state with this digest; raises StorageError where it is missing or other bytes than were written."""
        path = self._state(digest)
        try:
            state = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(state).hexdigest() != digest:
            raise StorageError(f"{path} is damaged: its content does not match its name")
        return state

    def set_aside(self, digest: str) -> None:
        """Renames a damaged state, so that nothing takes it for a sound one and nothing deletes it."""
        with contextlib.suppress(FileNotFoundError):
            self._state(digest).rename(self.folder / f"{digest}.damaged")

    def write_entry(self, entry: Entry, facts: Mapping[str, object]) -> None:
        """Writes what is known of a round, and of the federation, beside its state."""
        text = json.dumps(asdict(entry) | {"facts": dict(facts)}, sort_keys=True, ensure_ascii=False)
        write_bytes_atomically(self.folder / f"round-{entry.round:06d}.json", text.encode(), mode=PRIVATE_FILE)

    def entries(self) -> tuple[list[Entry], dict[str, Any]]:
        """The rounds that are known from these files and whose states are sound, in order; and the newest's facts."""
        found: dict[int, tuple[Entry, dict[str, Any]]] = {}
        for path in self.folder.iterdir():
            if not _ENTRY.fullmatch(path.name):
                continue
            with contextlib.suppress(NeuralForgeError, OSError, TypeError):
                document = parse_json_object(path.read_bytes(), what=path.name, limit=_MAX_ENTRY)
                facts = document.pop("facts", None)
                entry = Entry(**cast(Any, document))
                self.read(entry.digest)
                if isinstance(facts, dict):
                    found[entry.round] = entry, facts
        entries = [entry for _, (entry, _) in sorted(found.items())]
        return entries, (found[entries[-1].round][1] if entries else {})

    def keep_only(self, kept: Mapping[int, str]) -> None:
        """Removes the files of all other rounds than these (round -> digest)."""
        for path in self.folder.iterdir():
            state, entry = _STATE.fullmatch(path.name), _ENTRY.fullmatch(path.name)
            if (state and state[1] not in kept.values()) or (entry and int(entry[1]) not in kept):
                # It is only room: what cannot be removed now goes next time.
                with contextlib.suppress(OSError):
                    path.unlink()

    def _state(self, digest: str) -> Path:
        return self.folder / f"{digest}.nfstate"
