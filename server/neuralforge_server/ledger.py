"""What a federation has done: `rounds.db`, and the states that its committed rounds came to.

    states/<sha256>.nfstate      a state, named by its digest, on the disk before
    states/round-000012.json     what the row below says, for the day on which rounds.db is damaged, before
    a row in rounds.db           which is the moment at which a round counts

So whenever the power goes, the newest row names a whole state. A state that was damaged later is set aside, and the
newest sound one counts; the rounds after it are repeated. One coordinator at a time: the folder is locked.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from neuralforge_common.accounting import Steps
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import FederationError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, check_private, make_private_folder
from neuralforge_server.ledger_file import (
    Execute,
    check,
    connect,
    insert_commit,
    open_or_rebuild,
    sqlite_errors,
    to_json,
)
from neuralforge_server.states import Entry, StateFiles

DATABASE, LOCK = "rounds.db", "rounds.lock"
KEPT_STATES = 5

Clock = Callable[[], datetime.datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The newest committed round whose state is sound; `notices` say what was found damaged on the way to it."""

    round: int
    state: bytes
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An update that did not count."""

    round: int
    attempt: int
    client: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedRound:
    """A round that counts, as it is recorded; `scores` are what clients measured of its state."""

    round: int
    attempts: int
    digest: str
    size: int
    committed: str
    figures: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    scores: tuple[Mapping[str, Any], ...]


class Ledger:
    """The ledger of one state folder; see `open` and `look`. Threads may share it."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, clock: Clock, lock: int | None) -> None:
        self._path = folder / DATABASE
        self._states = StateFiles(folder / "states")
        self._connection = connection
        self._clock = clock
        self._lock_descriptor = lock
        self._thread_lock = threading.RLock()
        self._notices: list[str] = []
        self._head: int | None = None

    @classmethod
    def open(cls, folder: Path, *, clock: Clock = lambda: datetime.datetime.now(datetime.UTC)) -> Self:
        """Opens the ledger for the one coordinator of this folder; makes it where there is none.

        A damaged `rounds.db` is moved aside and made anew from what lies beside the states.

        Raises:
            StorageError: another coordinator uses it, others may read it, the disk refuses, or no state is sound.
        """
        make_private_folder(folder)
        lock = _lock(folder / LOCK)
        connection = None
        try:
            states = StateFiles(folder / "states")
            states.prepare()
            connection, notices = open_or_rebuild(folder / DATABASE, states)
            ledger = cls(folder, connection, clock, lock)
            ledger._notices = notices
            ledger._find_head()
        except BaseException:
            if connection is not None:
                connection.close()
            os.close(lock)
            raise
        return ledger

    @classmethod
    def look(cls, folder: Path) -> Self:
        """Opens the ledger to read what it says, beside a coordinator that may be running.

        Raises:
            StorageError: there is none, it is damaged, or others may read it.
        """
        path = folder / DATABASE
        if not path.exists():
            raise StorageError(f"{folder}: no round was ever begun here", hint="nf-server start begins a federation")
        check_private(path)
        connection = connect(path)
        try:
            with sqlite_errors(path):
                check(connection)
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return cls(folder, connection, lambda: datetime.datetime.now(datetime.UTC), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; another coordinator may use the folder then."""
        with self._thread_lock:
            self._connection.close()
            if self._lock_descriptor is not None:
                os.close(self._lock_descriptor)
                self._lock_descriptor = None

    # What a coordinator does

    def open_with(self, facts: Mapping[str, object]) -> None:
        """Writes what stays the same for the whole federation (values that JSON can say).

        Before the first commit it may be written again.

        Raises:
            FederationError: rounds are committed, and these facts are not theirs.
        """
        wanted = {name: to_json(value) for name, value in facts.items()}
        with self._transaction() as execute:
            if execute("SELECT 1 FROM commits LIMIT 1").fetchone():
                there = dict(execute("SELECT name, value FROM facts").fetchall())
                if there != wanted:
                    raise FederationError(
                        f"{self._path} belongs to a federation on other terms",
                        hint="restore the configuration, or begin anew in another state folder",
                    )
                return
            execute("DELETE FROM facts")
            for name, value in wanted.items():
                execute("INSERT INTO facts VALUES (?, ?)", name, value)

    def begin_attempt(self, round_number: int) -> str:
        """Notes that a round is tried (again); returns the nonce of the attempt, which never was another one's."""
        nonce = secrets.token_hex(16)
        with self._transaction() as execute:
            attempt = self._attempt(execute, round_number) + 1
            execute("INSERT INTO attempts VALUES (?, ?, ?, ?)", round_number, attempt, nonce, self._now())
        return nonce

    def refuse(self, round_number: int, client: str, reason: str, message: str) -> None:
        """Notes that an update did not count in the newest attempt at a round."""
        with self._transaction() as execute:
            attempt = self._attempt(execute, round_number)
            execute(
                "INSERT INTO refusals VALUES (?, ?, ?, ?, ?, ?)",
                *(round_number, attempt, client, reason, message, self._now()),
            )

    def commit(self, round_number: int, state: bytes, figures: Mapping[str, object]) -> str:
        """Makes a round count: afterwards `state` is what `latest` gives, whatever happens. Returns its digest.

        `round_number` is the one after the latest, or 0. Under "norms" the figures may hold the norms of the updates,
        under "part" what they were updates of.

        Raises:
            StorageError: the disk refuses; what was committed before is as it was.
        """
        if round_number != (expected := 0 if self._head is None else self._head + 1):
            raise ValueError(f"round {round_number} cannot be committed: the next one is {expected}")
        digest = self._states.write(state)
        entry = Entry(
            round=round_number, digest=digest, size=len(state), figures=to_json(figures), committed=self._now()
        )
        self._states.write_entry(entry, self.facts())
        with self._transaction() as execute:
            # Only where states were damaged are there such rows; they are made again.
            execute("INSERT INTO superseded SELECT * FROM commits WHERE round >= ?", round_number)
            execute("DELETE FROM commits WHERE round >= ?", round_number)
            execute("DELETE FROM scores WHERE round >= ?", round_number)
            insert_commit(execute, entry)
            kept = _kept(execute)
        self._head = round_number
        self._notices.clear()
        self._states.keep_only(kept)
        return digest

    def note_scores(self, round_number: int, scores: Sequence[Mapping[str, object]]) -> None:
        """Notes what clients measured of a committed round's state."""
        with self._transaction() as execute:
            execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", round_number, to_json(list(scores)))

    def charge(self, round_number: int, unit: str, steps: Steps, clients: Iterable[str]) -> None:
        """Notes what an attempt costs these clients' privacy: on the disk before this returns, and there for good."""
        with self._transaction() as execute:
            attempt = self._attempt(execute, round_number)
            for client in clients:
                execute(
                    "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    *(round_number, attempt, client, unit),
                    *(steps.sample_rate, steps.noise_multiplier, steps.count, self._now()),
                )

    # What it says

    def spent(self, unit: str) -> dict[str, tuple[Steps, ...]]:
        """Clients → everything that was charged to them for that unit, by the same mechanism together."""
        with self._reading() as execute:
            if not execute("SELECT 1 FROM sqlite_master WHERE name = 'spent'").fetchone():
                return {}  # looked at where an older version has written
            rows = execute(
                "SELECT client, sample_rate, noise_multiplier, sum(steps) FROM spent WHERE unit = ?"
                " GROUP BY client, sample_rate, noise_multiplier ORDER BY client, sample_rate, noise_multiplier",
                unit,
            ).fetchall()
        found: dict[str, tuple[Steps, ...]] = {}
        for client, rate, noise, count in rows:
            found[client] = (*found.get(client, ()), Steps(sample_rate=rate, noise_multiplier=noise, count=count))
        return found

    def figure(self, name: str) -> float | None:
        """A figure of the newest committed round; None where it has none of that name."""
        with self._reading() as execute:
            row = execute(
                "SELECT figures FROM commits WHERE round = ?", -1 if self._head is None else self._head
            ).fetchone()
        found = json.loads(row[0]).get(name) if row else None
        return None if found is None else float(found)

    def facts(self) -> dict[str, Any]:
        """What `open_with` wrote; empty before."""
        with self._reading() as execute:
            rows = execute("SELECT name, value FROM facts ORDER BY name").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def latest(self) -> Latest | None:
        """Where to go on from; None before the first commit.

        Raises:
            StorageError: no committed state can be read.
        """
        self._find_head()
        if self._head is None:
            return None
        with self._reading() as execute:
            (digest,) = execute("SELECT digest FROM commits WHERE round = ?", self._head).fetchone()
        return Latest(round=self._head, state=self._states.read(digest), notices=tuple(self._notices))

    def norms(self, rounds: int, *, part: str) -> tuple[float, ...]:
        """The norms of the updates of a part in the newest `rounds` committed rounds of that part, oldest first.

        Parts are kept apart: an A that barely moves would make every B look too long.
        """
        with self._reading() as execute:
            rows = execute(
                "SELECT figures FROM commits WHERE round > 0 AND round <= ? ORDER BY round DESC LIMIT ?",
                *(-1 if self._head is None else self._head, 2 * rounds),
            ).fetchall()
        same = [figures for (text,) in rows if (figures := json.loads(text)).get("part") == part][:rounds]
        return tuple(float(norm) for figures in reversed(same) for norm in figures.get("norms", ()))

    def rounds(self) -> tuple[CommittedRound, ...]:
        """Every committed round, in order."""
        refusals = self.refusals()
        with self._reading() as execute:
            rows = execute(
                "SELECT c.round, digest, size, committed, figures, coalesce(scores, '[]'),"
                " (SELECT count(*) FROM attempts a WHERE a.round = c.round)"
                " FROM commits c LEFT JOIN scores s ON s.round = c.round ORDER BY c.round"
            ).fetchall()
        return tuple(
            CommittedRound(
                round=number,
                attempts=attempts,
                digest=digest,
                size=size,
                committed=committed,
                figures=json.loads(figures),
                refusals=tuple(refusal for refusal in refusals if refusal.round == number),
                scores=tuple(json.loads(scores)),
            )
            for number, digest, size, committed, figures, scores, attempts in rows
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """Every update that did not count, in order, those of attempts that came to nothing included."""
        with self._reading() as execute:
            rows = execute("SELECT round, attempt, client, reason, message FROM refusals ORDER BY rowid").fetchall()
        return tuple(
            Refusal(round=number, attempt=attempt, client=client, reason=reason, message=message)
            for number, attempt, client, reason, message in rows
        )

    def _find_head(self) -> None:
        """The newest round whose state is sound."""
        with self._reading() as execute:
            rows = execute("SELECT round, digest FROM commits ORDER BY round DESC").fetchall()
            kept = _kept(execute)
        before, self._head = self._head, None
        damaged = []
        for number, digest in rows:
            if number not in kept:
                continue
            try:
                self._states.read(digest)
            except StorageError as error:
                damaged.append(error.message)
                if self._lock_descriptor is not None:
                    self._states.set_aside(digest)
                continue
            self._head = number
            if damaged and number != before:
                self._notices += [*damaged, f"going on from round {number}, the newest whose state is whole"]
            return
        if rows:
            raise StorageError(
                f"no state of a committed round can be read ({damaged[0]})",
                hint=f"restore {self._states.folder} from a backup, or begin anew in another state folder",
            )

    @staticmethod
    def _attempt(execute: Execute, round_number: int) -> int:
        return int(
            execute("SELECT coalesce(max(attempt), 0) FROM attempts WHERE round = ?", round_number).fetchone()[0]
        )

    def _now(self) -> str:
        return self._clock().isoformat(timespec="milliseconds")

    @contextmanager
    def _reading(self) -> Iterator[Execute]:
        with self._thread_lock, sqlite_errors(self._path):
            yield self._execute

    @contextmanager
    def _transaction(self) -> Iterator[Execute]:
        with self._reading() as execute:
            execute("BEGIN IMMEDIATE")
            try:
                yield execute
                execute("COMMIT")
            except BaseException:
                # After a disk error SQLite may have rolled back by itself.
                with contextlib.suppress(sqlite3.Error):
                    execute("ROLLBACK")
                raise

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)


def _lock(path: Path) -> int:
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise StorageError(
            f"{path.parent} is in use by another coordinator" + (f" (process {holder})" if holder else ""),
            hint="one folder, one coordinator: stop the other one first",
        ) from error
    try:
        with storage_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _kept(execute: Execute) -> dict[int, str]:
    """The rounds whose states are kept -> their digests: the newest few, and the beginning."""
    rows = execute("SELECT round, digest FROM commits ORDER BY round DESC").fetchall()
    return dict([*rows[:KEPT_STATES], *(row for row in rows[KEPT_STATES:] if row[0] == 0)])
