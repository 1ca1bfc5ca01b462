"""What the sessions of an adapter have left for the next one, and always of the adapter as it stands.

    <output>/.neuralforge/<name>/continual/     0700
    ├── sessions.json       whose history it is (a digest of the adapter), one line a session; no code
    ├── ewc.safetensors     importance and anchor of every weight; no code
    ├── blocks.safetensors  the blocks that the adapter was made of, where sessions have blocks of their own; no code
    ├── replay/             a vault: the replay buffer
    ├── held-out/           a vault: what each session has held out, with the scores of that time
    ├── next/               the same for the adapter that is just being written
    └── lock                held while a session is learnt

A session ends in four steps: 1. everything is written into `next/`, its sessions.json last; 2. the adapter's folder
is replaced: the one moment at which the session has happened; 3. `next/` is copied into place, sessions.json last;
4. `next/` goes. Killed before 2, the next one to look finds a `next/` of an adapter that is not there, and drops it;
killed after it, a `next/` of the very adapter, and does 3 and 4 again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralforge.continual.sampling import Balance
from neuralforge.continual.vault import HEADER, RECORDS, erase, is_vault
from neuralforge.data.run_folder import REPLAY, continual_folder
from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import AdapterError, CheckpointError, StorageError
from neuralforge_common.key_files import make_private_folder, read_private_file, write_private_file
from neuralforge_common.strict_json import parse_json_object

SESSIONS, EWC, BLOCKS = "sessions.json", "ewc.safetensors", "blocks.safetensors"
HELD_OUT, NEXT, LOCK = "held-out", "next", "lock"
VAULTS = (REPLAY, HELD_OUT)

_FORMAT = 1
_MAX_RECORD_BYTES = 16 * 1024**2
_MAX_FILE_BYTES = 16 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session: when it was learnt (UTC), from how many examples, with how many earlier ones at hand (`replayed`).

    `held_out` is how many of its examples were kept for the forget report, `max_length` how they were cut,
    `ewc_lambda` what held the weights of the sessions before it. `merged` is what making one adapter of the blocks has
    missed (see `blocks.Merged`), None for a session without a block of its own.
    """

    name: str
    learnt: str
    examples: int
    replayed: int
    held_out: int
    max_length: int
    ewc_lambda: float
    merged: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`sessions.json`. `adapter` is the digest of the one that stands after the last session.

    `balance` is the replay buffer's, None where there is none; `made` names the vaults that the last session has made;
    `blocks` are the ranks of the blocks that the adapter was made of, `blocks_digest` that of their matrices.
    """

    adapter: str
    sessions: tuple[Session, ...] = ()
    balance: Balance | None = None
    ewc: bool = False
    made: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    blocks_digest: str = ""


def adapter_digest(spec: AdapterSpec, state: AdapterState) -> str:
    """64 hex digits of what an adapter computes: its weights, its scaling, and the base that it is for."""
    facts = (spec.base_fingerprint, spec.rank, float(spec.alpha), tuple(sorted(spec.target_modules)), spec.layers)
    sha = hashlib.sha256(repr((*facts, spec.task)).encode())
    for name in state:
        sha.update(f"\n{name} {state[name].shape}\n".encode())
        sha.update(np.ascontiguousarray(state[name], "<f4").data)
    return sha.hexdigest()


class History:
    """The history of one adapter folder; see above for where it lies and how it stays in step."""

    def __init__(self, adapter: Path) -> None:
        self.adapter = adapter.absolute()
        self.folder = continual_folder(self.adapter)
        self.next = self.folder / NEXT

    def read(self, digest: str) -> Record:
        """What is known of the adapter with this digest, what was left half done set right; empty where nothing is.

        Raises:
            CheckpointError: it is damaged, or of another adapter.
            StorageError: others may look into it, the disk refuses, or a session is being learnt just now.
        """
        if not self.folder.is_dir():
            return Record(adapter=digest)
        with self.learning():
            return self._read(digest)

    def recover(self, digest: str) -> None:
        """Finish the last session, or drop it, whichever this adapter says; the caller is the one that is learning."""
        if not self.next.is_dir():
            return
        staged = None
        with contextlib.suppress(CheckpointError, StorageError):  # cut short before it was whole
            staged = _record(self.next / SESSIONS)
        if staged is not None and staged.adapter == digest:
            self.settle(staged)
        else:
            self._drop_next()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Nobody else learns a session of this adapter while this lasts.

        Raises:
            StorageError: somebody does already, or the folder is not private.
        """
        make_private_folder(self.folder)
        path = self.folder / LOCK
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    f"a session of {self.adapter.name} is being learnt just now", hint="wait until it has ended"
                ) from error
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(descriptor)

    def stage(self, *, anew: bool) -> Path:
        """An empty `next/` with copies of the vaults as they stand, none where the history begins `anew`."""
        self._drop_next()
        make_private_folder(self.next)
        for vault in () if anew else VAULTS:
            live = self.folder / vault
            if (live / HEADER).exists():
                make_private_folder(self.next / vault)
                for name in (HEADER, RECORDS):
                    if (live / name).exists():
                        shutil.copyfile(live / name, self.next / vault / name)
                        (self.next / vault / name).chmod(0o600)
        return self.next

    def write_next(self, record: Record) -> None:
        """The last file of step 1."""
        facts = {"format": _FORMAT, **asdict(record)}
        write_private_file(self.next / SESSIONS, json.dumps(facts, indent=1).encode() + b"\n")

    def settle(self, record: Record) -> None:
        """Steps 3 and 4; to do them twice is to do them once."""
        anew = len(record.sessions) == 1
        for vault in VAULTS:
            self._settle_vault(self.next / vault, self.folder / vault, anew=anew, made=vault in record.made)
        for name, kept in ((EWC, record.ewc), (BLOCKS, bool(record.blocks))):
            if kept:
                _copy(self.next / name, self.folder / name)
            else:
                with storage_errors(self.folder / name):
                    (self.folder / name).unlink(missing_ok=True)
        _copy(self.next / SESSIONS, self.folder / SESSIONS)
        self._drop_next()

    def forget(self) -> None:
        """All of it goes, its keys first: the adapter that it was of is no more."""
        if not self.folder.is_dir():
            return
        with self.learning():
            self._drop_next()
            for vault in VAULTS:
                erase(self.folder / vault)
            with storage_errors(self.folder):
                shutil.rmtree(self.folder)

    def _read(self, digest: str) -> Record:
        self.recover(digest)
        if not (self.folder / SESSIONS).exists():
            return Record(adapter=digest)
        record = _record(self.folder / SESSIONS)
        if record.adapter != digest:
            raise CheckpointError(
                f"the sessions in {self.folder} are those of another adapter ({record.adapter[:12]}), "
                f"{self.adapter.name} is {digest[:12]}",
                hint="put that adapter back, or remove the folder to go on as if this one had no history",
            )
        return record

    def _settle_vault(self, staged: Path, live: Path, *, anew: bool, made: bool) -> None:
        header = (live / HEADER).read_bytes() if (live / HEADER).exists() else None
        wanted = (staged / HEADER).read_bytes() if (staged / HEADER).exists() else None
        if header is not None and header != wanted and (anew or made):
            erase(live)  # that of an adapter which this one has replaced
        if wanted is None or (header != wanted and not made):
            return  # nothing was staged; or it was purged in the meantime, and stays so
        make_private_folder(live)
        for name in (HEADER, RECORDS):
            if (staged / name).exists():
                _copy(staged / name, live / name)

    def _drop_next(self) -> None:
        if not self.next.is_dir():
            return
        # First of all: without it nothing else in there counts.
        with storage_errors(self.next):
            (self.next / SESSIONS).unlink(missing_ok=True)
            for vault in VAULTS:
                erase(self.next / vault)
            shutil.rmtree(self.next)


def vaults_of(place: Path) -> tuple[Path, ...]:
    """Every folder that holds code of an adapter's sessions; a place that is no adapter is such a folder itself."""
    if place.suffix != ".lora":
        return tuple(filter(is_vault, [place.absolute()]))
    folder = continual_folder(place)
    return tuple(filter(is_vault, [folder / part / vault for vault in VAULTS for part in ("", NEXT)]))


def _copy(source: Path, target: Path) -> None:
    write_private_file(target, read_private_file(source, limit=_MAX_FILE_BYTES))


def _record(path: Path) -> Record:
    data = read_private_file(path, limit=_MAX_RECORD_BYTES)
    try:
        values: dict[str, Any] = parse_json_object(data, what=str(path), limit=_MAX_RECORD_BYTES)
        if values.pop("format", None) != _FORMAT:
            raise AdapterError(f"wanted format {_FORMAT}")
        sessions = tuple(Session(**session) for session in values.pop("sessions"))
        made = tuple(str(name) for name in values.pop("made"))
        blocks = tuple(int(rank) for rank in values.pop("blocks", ()))
        return Record(sessions=sessions, made=made, blocks=blocks, **values)
    except (AdapterError, KeyError, TypeError, ValueError) as fault:
        raise CheckpointError(
            f"{path} is damaged: {getattr(fault, 'message', fault)}",
            hint=f"remove {path.parent} to go on as if this adapter had no history",
        ) from fault
