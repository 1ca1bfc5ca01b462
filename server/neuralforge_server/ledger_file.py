"""The file of a ledger, `rounds.db`: its tables, and what is done where it is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import StorageError
from neuralforge_common.key_files import PRIVATE_FILE, check_private
from neuralforge_server.states import Entry, StateFiles

Execute = Callable[..., sqlite3.Cursor]

_VERSION = 1
_SCHEMA = f"""
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL              -- JSON
) STRICT;
CREATE TABLE IF NOT EXISTS attempts (
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    nonce TEXT NOT NULL UNIQUE,
    begun TEXT NOT NULL,
    PRIMARY KEY (round, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS commits (
    round INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    figures TEXT NOT NULL,           -- JSON
    committed TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS superseded (  -- commits whose state was damaged later, and that were made again
    round INTEGER NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    figures TEXT NOT NULL,
    committed TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS refusals (
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    client TEXT NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    refused TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS scores (
    round INTEGER PRIMARY KEY,
    scores TEXT NOT NULL             -- JSON
) STRICT;
CREATE TABLE IF NOT EXISTS spent (   -- of the clients' privacy, see spending.py; a row is never changed
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    client TEXT NOT NULL,
    unit TEXT NOT NULL,
    sample_rate REAL NOT NULL,
    noise_multiplier REAL NOT NULL,
    steps INTEGER NOT NULL,
    charged TEXT NOT NULL
) STRICT;
"""


def open_or_rebuild(path: Path, states: StateFiles) -> tuple[sqlite3.Connection, list[str]]:
    """Opens the file to be written, a damaged or missing one made anew from what lies beside the states; with notices.

    Raises:
        StorageError: it is another version's, others may read it, or the disk refuses.
    """
    notices: list[str] = []
    is_new = not path.exists()
    if not is_new:
        check_private(path)
        try:
            return _prepared(path), notices
        except sqlite3.OperationalError as error:
            raise _unusable(path, error) from error
        except sqlite3.DatabaseError as error:
            aside = _set_aside(path)
            notices.append(f"{path} was damaged ({error}); it lies in {aside.name} now")
    entries, facts = states.entries()
    with storage_errors(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
    with sqlite_errors(path):
        connection = _prepared(path)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for name, value in facts.items():
                connection.execute("INSERT INTO facts VALUES (?, ?)", (name, to_json(value)))
            for entry in entries:
                insert_commit(lambda statement, *values: connection.execute(statement, values), entry)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
    if entries:
        notices.append(
            f"{path} was made anew from {states.folder}: rounds {', '.join(str(entry.round) for entry in entries)}; "
            "what older rounds were like is in records.jsonl"
        )
    elif not is_new:
        notices.append("no committed round was found beside it: the federation begins anew")
    return connection, notices


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _prepared(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: past the drive's cache
        check(connection)
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection without transactions of its own; threads may share it."""
    return sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)


def check(connection: sqlite3.Connection) -> None:
    """Checks that the file is whole and ours.

    Raises:
        StorageError: it is another version's.
        sqlite3.DatabaseError: it is damaged.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise StorageError(
            f"the ledger is of version {version}, this program writes {_VERSION}", hint="use the newer neuralforge"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def insert_commit(execute: Execute, entry: Entry) -> None:
    """Writes the row that makes a round count."""
    execute(
        "INSERT INTO commits VALUES (?, ?, ?, ?, ?)",
        *(entry.round, entry.digest, entry.size, entry.figures, entry.committed),
    )


def to_json(value: object) -> str:
    """JSON, equal for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite refuses into a StorageError that says the way out."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"{path} is damaged: {error}", hint="stop the coordinator and start it again: it sets the damage aside"
        ) from error


def _unusable(path: Path, error: sqlite3.Error) -> StorageError:
    return StorageError(f"cannot use {path}: {error}", hint="is the disk full or read-only?")
