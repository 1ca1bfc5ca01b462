"""The signed index of what a caller may see: numbered, and good for a day.

Its number is the time of signing in milliseconds, strictly growing. So the index tells nobody that something was
published which they may not see (a counter would), a client that remembers the last number notices an older index, and
a registry restored from a backup goes on. The number is reserved ahead in the database: a clock that was set back does
not make it fall.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from neuralforge_common.key_files import read_private_file
from neuralforge_common.registry.index import Index, IndexEntry, sign_index
from neuralforge_common.signing.keys import PublicKey, SigningKey, decode_signing_key, generate_key, write_key_pair
from neuralforge_server.registry import schema
from neuralforge_server.registry.access import Caller
from neuralforge_server.registry.releases import Releases
from neuralforge_server.registry.schema import Database

INDEX_LIFE = datetime.timedelta(hours=24)
MOST_ENTRIES = 20_000

_RESERVED_MS = 60_000
_SETTING = "index"


class IndexSigner:
    """Signs indexes; threads may share it. `clock` gives seconds since 1970."""

    def __init__(
        self,
        database: Database,
        releases: Releases,
        *,
        name: str,
        key: SigningKey,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._releases, self._name, self._clock = database, releases, name, clock
        self._key = key
        self._lock = threading.Lock()
        with database.reading() as connection:
            query = sa.select(schema.settings.c.value).where(schema.settings.c.name == _SETTING)
            self._reserved = int(connection.scalar(query) or 0)
        self._last = self._reserved

    @property
    def key(self) -> PublicKey:
        """What clients verify with."""
        return self._key.public

    def signed(self, caller: Caller) -> bytes:
        """The index of what a caller may see now; raises RegistryError where that is too much for one."""
        # One at a time: of two indexes the one with the higher number is never the one that knows less.
        with self._lock:
            version = self._next()
            found = self._releases.visible(caller, most=MOST_ENTRIES)
        entries = tuple(
            IndexEntry(
                team=each.team,
                name=each.name,
                version=each.version,
                digest=each.digest,
                size=each.size,
                yanked=each.yanked is not None,
            )
            for each in found
        )
        expires = datetime.datetime.fromtimestamp(int(self._clock()), datetime.UTC) + INDEX_LIFE
        # Who sees less for a reason (a team left, no token) is another view, and is not told of a rollback.
        view = " ".join([caller.name, *(f"{team}={scope}" for team, scope in sorted(caller.teams.items()))])
        if len(view) > 4096:  # of somebody in very many teams
            view = hashlib.sha256(view.encode()).hexdigest()
        index = Index(registry=self._name, view=view, version=version, expires=expires, entries=entries)
        return sign_index(index, self._key)

    def _next(self) -> int:
        self._last = max(self._last + 1, int(self._clock() * 1000))
        if self._last > self._reserved:
            self._reserved = self._last + _RESERVED_MS
            with self._database.writing() as connection:
                table = schema.settings
                connection.execute(sa.delete(table).where(table.c.name == _SETTING))
                connection.execute(sa.insert(table).values(name=_SETTING, value=self._reserved))
        return self._last


def open_index_key(path: Path) -> SigningKey:
    """The key that indexes are signed with, made where there is none yet.

    Raises:
        StorageError: it is damaged, others may read it, or it cannot be written.
    """
    if not path.exists():
        write_key_pair(path, generate_key("p256"), passphrase=None, replace=False)
    return decode_signing_key(read_private_file(path), str(path))
