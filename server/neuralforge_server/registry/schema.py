"""The registry's tables, and the database that they are in: SQLite beside the server, or PostgreSQL by URL.

What was published is never written over: a row of `releases` changes in `yanked`, `yank_reason` and `downloads` alone.
Changes wait for each other (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock), so that a quota which was counted
still holds when the row is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import StorageError, UsageError
from neuralforge_common.key_files import PRIVATE_FILE, check_private
from neuralforge_common.strict_json import shortened

SCHEMA_VERSION = 1

_LOCK = 0x6E66_7265_67  # "nfreg": the advisory lock of whoever writes
# Compared byte by byte everywhere, whatever language a PostgreSQL was set up for.
_Ordered = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

metadata = sa.MetaData()

settings = sa.Table(
    "registry_settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
teams = sa.Table("teams", metadata, sa.Column("name", _Ordered, primary_key=True), sa.Column("added", sa.Double))
members = sa.Table(
    "members",
    metadata,
    sa.Column("team", _Ordered, sa.ForeignKey("teams.name"), primary_key=True),
    sa.Column("member", _Ordered, primary_key=True),  # the name of a node of the federation
    sa.Column("scope", sa.Text, nullable=False),
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", _Ordered, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),  # SHA-256 of the token, which is nowhere
    sa.Column("team", _Ordered, sa.ForeignKey("teams.name"), nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("made", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("revoked", sa.Double),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("team", _Ordered, sa.ForeignKey("teams.name"), nullable=False),
    sa.Column("name", _Ordered, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("core", sa.Text, nullable=False),  # the version without its build: what must be unique
    sa.Column("rank", _Ordered, nullable=False),  # in the order of which versions stand
    sa.Column("prerelease", sa.Boolean, nullable=False),
    sa.Column("visibility", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("signer", sa.Text, nullable=False),
    sa.Column("publisher", sa.Text, nullable=False),
    sa.Column("published", sa.Double, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("license", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("base_fingerprint", sa.Text, nullable=False),
    sa.Column("allow_worse", sa.Boolean, nullable=False),
    sa.Column("haystack", sa.Text, nullable=False),  # what words are looked for in, in lower case
    sa.Column("yanked", sa.Double),
    sa.Column("yank_reason", sa.Text, nullable=False, default=""),
    sa.Column("downloads", sa.BigInteger, nullable=False, default=0),
    sa.UniqueConstraint("team", "name", "core"),
)
files = sa.Table(
    "release_files",
    metadata,
    sa.Column("release", sa.Integer, sa.ForeignKey("releases.id"), primary_key=True),
    sa.Column("name", _Ordered, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
)
tags = sa.Table(
    "release_tags",
    metadata,
    sa.Column("release", sa.Integer, sa.ForeignKey("releases.id"), primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),  # "tag" or "language"
    sa.Column("tag", _Ordered, primary_key=True, index=True),
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)


class Database:
    """An opened database whose schema is this program's. Threads may share it.

    Raises:
        UsageError: a URL that is no database's we know.
        StorageError: it cannot be reached, is damaged, or was made by another version.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse(url)
        self.shown = self.url.render_as_string(hide_password=True)
        self._engine = _engine(self.url)
        self._writing = self._engine.execution_options(writing=True)
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One view of everything, for as long as the block runs."""
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A change that is made whole or not at all; the only one at a time.

        What breaks a rule of the tables raises SQLAlchemy's IntegrityError.
        """
        with self._errors(), self._writing.begin() as connection:
            if self.url.get_backend_name() == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    def _prepare(self) -> None:
        # Under the lock: two that start at a time must not both make the tables.
        with self.writing() as connection:
            if not sa.inspect(connection).has_table(settings.name):
                metadata.create_all(connection)
                connection.execute(sa.insert(settings).values(name="schema", value=SCHEMA_VERSION))
            found = connection.scalar(sa.select(settings.c.value).where(settings.c.name == "schema"))
        if found != SCHEMA_VERSION:
            raise StorageError(
                f"{self.shown} holds a registry of schema {found}, this program knows {SCHEMA_VERSION}",
                hint="run the version of neuralforge that made it, or a newer one",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (DBAPIError, PoolTimeout) as error:
            reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
            raise StorageError(
                f"cannot use the database {self.shown}: {reason}",
                hint="is it running and reachable, and the disk neither full nor read-only?",
            ) from error


def _parse(text: str) -> URL:
    wanted = "sqlite:////srv/registry.db or postgresql+psycopg://user@host/database"
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise UsageError(f"--database: wanted a URL such as {wanted}") from error
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg") or (
        url.drivername == "sqlite" and url.database in (None, "", ":memory:")
    ):
        raise UsageError(f"--database: wanted a URL such as {wanted}, got {shortened(url.drivername)}")
    return url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(
                url, pool_size=8, max_overflow=24, pool_pre_ping=True, connect_args={"connect_timeout": 10}
            )
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise UsageError(
                "--database: PostgreSQL needs psycopg", hint="pip install 'neuralforge[postgres]'"
            ) from error
    path = Path(str(url.database)).absolute()
    with storage_errors(path):
        # SQLite itself would make it readable for everybody; its journal gets the mode of the file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
    check_private(path)
    engine = sa.create_engine(url, pool_size=16, max_overflow=48, connect_args={"timeout": 20})

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get("writing")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
