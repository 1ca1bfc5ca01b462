"""Who may take part: invitations, and the one credential (key and certificate serial) that each node has now.

Rows of credentials are never deleted or written over: a node that is revoked, or goes on with another key, ends one row
(and begins the next). So a key that was ever known is known for ever, and the number of changes is a revision.

    invited ──join──▶ active ──rotate──▶ active (another key) ──revoke──▶ gone; may be invited again, with a new key

Several processes use the file at once: the coordinator, and commands such as `nf-server invite` beside it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import FederationError, StorageError, UsageError
from neuralforge_common.key_files import PRIVATE_FILE, check_private
from neuralforge_common.strict_json import shortened

INVITATION_LIFE = 3600.0
FORGOTTEN_AFTER = 7 * 24 * 3600.0
"""For so long a token that was used or has expired is remembered, to say so to whoever shows it."""

_NAME = re.compile(r"[a-z0-9-]{1,63}")
# A prefix that secret scanners can know, and that no shell or parser takes for an option.
_TOKEN_PREFIX = "nfj_"  # noqa: S105
_SCHEMA = """
CREATE TABLE IF NOT EXISTS invitations (
    digest BLOB PRIMARY KEY,      -- SHA-256 of the token; the token itself is nowhere
    name TEXT NOT NULL,
    expires REAL NOT NULL,
    used REAL
) STRICT;
CREATE TABLE IF NOT EXISTS credentials (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    public_key TEXT NOT NULL UNIQUE,   -- Flower refuses a key that was once revoked: a key serves one node, once
    serial TEXT NOT NULL UNIQUE,
    begun REAL NOT NULL,
    ended REAL,
    end_reason TEXT CHECK (end_reason IN ('revoked', 'rotated')),
    successor INTEGER REFERENCES credentials (id)
) STRICT;
CREATE TABLE IF NOT EXISTS identities (
    name TEXT PRIMARY KEY,
    key BLOB NOT NULL                  -- Ed25519, public: what the node signs with under secure aggregation
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_active_credential ON credentials (name) WHERE ended IS NULL;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that joined; `state` is what its newest credential is."""

    name: str
    public_key: str
    serial: int
    joined: float
    rotated: float | None = None
    revoked: float | None = None

    @property
    def state(self) -> Literal["active", "revoked"]:
        """Whether it may take part."""
        return "active" if self.revoked is None else "revoked"


class Identities:
    """The registry in `identity.db`; every change is on the disk when its method returns. Threads may share it.

    `clock` gives seconds since 1970.

    Raises:
        StorageError: the file cannot be used, is damaged, or others may read it.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        with storage_errors(path):
            # SQLite itself would make it readable for everybody; its journal gets the mode of the file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
        check_private(path)
        self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        try:
            with self._errors():
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.executescript(_SCHEMA)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def invite(self, name: str, *, life: float = INVITATION_LIFE) -> str:
        """Makes a one-use token for a name, valid for `life` seconds; an older unused one for that name is void.

        A name that is active is refused: an invitation must not be a way to take over somebody's place unnoticed.

        Raises:
            UsageError: not a name.
            FederationError: the name is active.
        """
        validate_name(name)
        token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._transaction() as (execute, now):
            if execute("SELECT 1 FROM credentials WHERE name = ? AND ended IS NULL", name).fetchone():
                raise FederationError(
                    f"{name} has joined already",
                    hint=f"another machine needs another name; to let this one join anew: nf-server revoke {name}",
                )
            execute("DELETE FROM invitations WHERE name = ? AND used IS NULL", name)
            execute("DELETE FROM invitations WHERE max(expires, coalesce(used, 0)) < ?", now - FORGOTTEN_AFTER)
            execute("INSERT INTO invitations VALUES (?, ?, ?, NULL)", _digest(token), name, now + life)
        return token

    def join(self, token: str, public_key: str, serial: int, *, identity: bytes | None = None) -> str:
        """Uses up a token: its node is active from now on, with this key and certificate serial; returns the name.

        `identity` is the public key that it signs with under secure aggregation.

        Raises:
            FederationError: a token that is unknown, used or expired; or a key that was seen before.
        """
        digest = _digest(token)
        with self._transaction() as (execute, now):
            row = execute("SELECT digest, name, expires, used FROM invitations WHERE digest = ?", digest).fetchone()
            if row is None or not hmac.compare_digest(row["digest"], digest):
                raise FederationError("the token is not known here: wanted one that `nf-server invite` printed")
            if row["used"] is not None:
                raise FederationError("the token was used already: each lets one node join, once")
            if now >= row["expires"]:
                raise FederationError(f"the token expired {_ago(now - row['expires'])} ago")
            self._begin(execute, row["name"], public_key, serial, now)
            execute("DELETE FROM identities WHERE name = ?", row["name"])
            if identity is not None:
                execute("INSERT INTO identities VALUES (?, ?)", row["name"], identity)
            execute("UPDATE invitations SET used = ? WHERE digest = ?", now, digest)
            return str(row["name"])

    def rotate(self, old_serial: int, public_key: str, serial: int) -> int:
        """Ends an active credential and begins one with another key; returns the serial for its certificate.

        Done again for the same two keys it changes nothing and returns the serial of the first time.

        Raises:
            FederationError: the old credential is not active, or the key was seen before.
        """
        with self._transaction() as (execute, now):
            old = execute("SELECT * FROM credentials WHERE serial = ?", _hex(old_serial)).fetchone()
            if old is not None and old["successor"] is not None:
                new = execute(
                    "SELECT serial FROM credentials WHERE id = ? AND public_key = ? AND ended IS NULL",
                    *(old["successor"], public_key),
                ).fetchone()
                if new is not None:
                    return int(new["serial"], 16)
            name = _active_name(old)
            # The index allows one active credential for a name: end the old one first.
            execute("UPDATE credentials SET ended = ?, end_reason = 'rotated' WHERE id = ?", now, old["id"])
            successor = self._begin(execute, name, public_key, serial, now)
            execute("UPDATE credentials SET successor = ? WHERE id = ?", successor, old["id"])
        return serial

    def revoke(self, name: str) -> bool:
        """Shuts a node out and voids its invitation; says whether the node was active.

        Raises:
            FederationError: nobody of that name is active or invited.
        """
        with self._transaction() as (execute, now):
            ended = execute(
                "UPDATE credentials SET ended = ?, end_reason = 'revoked' WHERE name = ? AND ended IS NULL", now, name
            ).rowcount
            voided = execute("DELETE FROM invitations WHERE name = ? AND used IS NULL", name).rowcount
            if not ended and not voided:
                known = execute("SELECT 1 FROM credentials WHERE name = ?", name).fetchone()
                raise FederationError(
                    f"{shortened(name)} was revoked already" if known else f"nobody is called {shortened(name)} here",
                    hint="" if known else f"known: {', '.join(node.name for node in self._nodes(execute)) or 'nobody'}",
                )
        return bool(ended)

    def name_of(self, serial: int) -> str:
        """The active node that holds a certificate.

        Raises:
            FederationError: the certificate was revoked, replaced, or never registered.
        """
        with self._reading() as execute:
            return _active_name(execute("SELECT * FROM credentials WHERE serial = ?", _hex(serial)).fetchone())

    def active_keys(self) -> dict[str, str]:
        """The nodes that may take part -> their public keys, in OpenSSH's format."""
        with self._reading() as execute:
            rows = execute("SELECT name, public_key FROM credentials WHERE ended IS NULL ORDER BY name")
            return {row["name"]: row["public_key"] for row in rows}

    def peer_identities(self) -> dict[str, bytes]:
        """The nodes that may take part, and signed up for secure aggregation when they joined → their identities."""
        with self._reading() as execute:
            rows = execute(
                "SELECT name, key FROM identities JOIN credentials USING (name) WHERE ended IS NULL ORDER BY name"
            )
            return {row["name"]: row["key"] for row in rows}

    def revision(self) -> int:
        """A number that is higher after every join, rotation and revocation: equal numbers, equal `active_keys`."""
        with self._reading() as execute:
            return int(execute("SELECT count(*) + count(ended) FROM credentials").fetchone()[0])

    def nodes(self) -> tuple[Node, ...]:
        """Everybody who ever joined, by name."""
        with self._reading() as execute:
            return self._nodes(execute)

    def invited(self) -> dict[str, float]:
        """The names with an invitation that can be used -> when it expires, in seconds since 1970."""
        with self._reading() as execute:
            rows = execute(
                "SELECT name, expires FROM invitations WHERE used IS NULL AND expires > ? ORDER BY name", self._clock()
            )
            return {row["name"]: row["expires"] for row in rows}

    def _nodes(self, execute: Execute) -> tuple[Node, ...]:
        nodes: dict[str, Node] = {}
        for row in execute("SELECT * FROM credentials ORDER BY name, id"):
            before = nodes.get(row["name"])
            goes_on = before is not None and before.revoked is None
            nodes[row["name"]] = Node(
                name=row["name"],
                public_key=row["public_key"],
                serial=int(row["serial"], 16),
                joined=before.joined if before is not None and goes_on else row["begun"],
                rotated=row["begun"] if goes_on else None,
                revoked=row["ended"] if row["end_reason"] == "revoked" else None,
            )
        return tuple(nodes.values())

    @staticmethod
    def _begin(execute: Execute, name: str, public_key: str, serial: int, now: float) -> int:
        if execute("SELECT 1 FROM credentials WHERE public_key = ?", public_key).fetchone():
            raise FederationError("this key is or was another node's: wanted a fresh one")
        if execute("SELECT 1 FROM credentials WHERE name = ? AND ended IS NULL", name).fetchone():
            raise FederationError(f"{name} has joined already")
        cursor = execute(
            "INSERT INTO credentials (name, public_key, serial, begun) VALUES (?, ?, ?, ?)",
            *(name, public_key, _hex(serial), now),
        )
        return int(cursor.lastrowid or 0)

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Execute, float]]:
        # IMMEDIATE: what was read is still true when it is written, whatever other processes do.
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._execute, self._clock()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[Execute]:
        with self._lock, self._errors():
            yield self._execute

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot use {self._path}: {error}", hint="is the disk full or read-only?") from error
        except sqlite3.DatabaseError as error:
            raise StorageError(
                f"{self._path} is damaged: {error}",
                hint="put a copy from a backup in its place, or move it away and invite everybody anew",
            ) from error


Execute = Callable[..., sqlite3.Cursor]


def validate_name(name: str) -> None:
    """Checks the name of a node.

    Raises:
        UsageError: not 1 to 63 of a-z, 0-9 and -, or it begins with a dash.
    """
    if not _NAME.fullmatch(name) or name.startswith("-"):
        raise UsageError(
            f"name: wanted 1 to 63 lower-case letters, digits and dashes, got {shortened(name)}",
            hint="for example nf-server invite laptop-7",
        )


def _active_name(row: sqlite3.Row | None) -> str:
    if row is None:
        raise FederationError("this certificate is not registered here")
    if row["end_reason"] == "revoked":
        raise FederationError(f"{row['name']} was revoked")
    if row["ended"] is not None:
        raise FederationError(f"{row['name']} goes on with another key: this one was replaced")
    return str(row["name"])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _hex(serial: int) -> str:
    # SQLite's whole numbers end at 63 bits; serials have 159.
    return f"{serial:x}"


def _ago(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
