"""What was published, who may see it, and the order in which versions stand.

Every read goes through `_visible`, in the query itself: what a caller may not see is not there, for counts and pages
too, and takes the same path as what never was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import IntegrityError

from neuralforge_common.errors import RegistryError
from neuralforge_common.registry.release import ReleaseFile, ReleaseName, Version, release_digest
from neuralforge_server.registry import schema
from neuralforge_server.registry.access import Caller
from neuralforge_server.registry.audit import record
from neuralforge_server.registry.published import Quota, Release, Wanted
from neuralforge_server.registry.schema import Database

_TABLE = schema.releases.c


class Releases:
    """The releases in a registry's database; `clock` gives seconds since 1970."""

    def __init__(self, database: Database, *, quota: Quota, clock: Callable[[], float] = time.time) -> None:
        self._database, self._quota, self._clock = database, quota, clock

    def check_free(self, name: ReleaseName, files: Sequence[ReleaseFile]) -> int:
        """Checks, before bytes travel, that a version could be published now; returns the bytes that its team has left.

        Raises:
            RegistryError: the version was published before (ALREADY_EXISTS), or a quota is reached.
        """
        with self._database.reading() as connection:
            return self._check_free(connection, name, files)

    def add(self, release: Release) -> None:
        """Makes a version visible; the only way in, and whole or not at all.

        Raises:
            RegistryError: the version was published before (ALREADY_EXISTS), or a quota is reached.
        """
        name = ReleaseName(team=release.team, name=release.name, version=Version(release.version))
        version = Version(release.version)
        words = (release.team, release.name, release.description, release.author, *release.tags, *release.languages)
        try:
            with self._database.writing() as connection:
                self._check_free(connection, name, release.files)
                row = connection.execute(
                    sa.insert(schema.releases)
                    .values(
                        {field: getattr(release, field) for field in _PLAIN}
                        | {
                            "core": version.core,
                            "rank": _rank(version),
                            "prerelease": version.is_prerelease,
                            "haystack": " ".join(words).lower(),
                        }
                    )
                    .returning(_TABLE.id)
                ).scalar_one()
                connection.execute(
                    sa.insert(schema.files),
                    [{"release": row, "name": f.name, "sha256": f.sha256, "size": f.size} for f in release.files],
                )
                labels = [("tag", tag) for tag in release.tags] + [("language", tag) for tag in release.languages]
                if labels:
                    connection.execute(
                        sa.insert(schema.tags), [{"release": row, "kind": kind, "tag": tag} for kind, tag in labels]
                    )
                what = f"{release.visibility}, sha256:{release.digest}, signed by sha256:{release.signer}"
                what += ", allow_worse" if release.allow_worse else ""
                at, who = release.published, release.publisher
                record(connection, at=at, who=who, what="publish", subject=str(release), detail=what)
        except IntegrityError as error:
            raise taken(name) from error

    def published(self, name: ReleaseName) -> Release | None:
        """A version, whoever asks; for publishing alone."""
        with self._database.reading() as connection:
            row = connection.execute(_versions(name)).first()
            return None if row is None else _release(connection, row, files=True)

    def resolve(self, name: ReleaseName, caller: Caller) -> Release:
        """The version that is meant, with its files.

        Raises:
            RegistryError: there is none that this caller may see (NOT_FOUND).
        """
        with self._database.reading() as connection:
            return _release(connection, self._find(connection, name, caller), files=True)

    def search(
        self, wanted: Wanted, caller: Caller, *, limit: int, after: tuple[str, str] | None = None
    ) -> tuple[Release, ...]:
        """Of each adapter that matches the newest version, by team and name, from behind `after` on."""
        newest = (
            sa.select(_TABLE.id, _newest_first().label("place"))
            .where(_visible(caller), _TABLE.yanked.is_(None))
            .subquery()
        )
        query = sa.select(schema.releases).join(newest, newest.c.id == _TABLE.id).where(newest.c.place == 1)
        for word in wanted.text.lower().split():
            query = query.where(_TABLE.haystack.contains(word, autoescape=True))
        for tag in wanted.tags:
            query = query.where(_is_labelled(tag, "tag"))
        if wanted.language:
            query = query.where(_is_labelled(wanted.language, "tag", "language"))
        if wanted.base_model:
            query = query.where(_TABLE.base_model == wanted.base_model)
        if wanted.team:
            query = query.where(_TABLE.team == wanted.team)
        if after is not None:
            team, name = after
            query = query.where(sa.or_(_TABLE.team > team, sa.and_(_TABLE.team == team, _TABLE.name > name)))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(_TABLE.team, _TABLE.name).limit(limit)).all()
            return tuple(_release(connection, row) for row in rows)

    def visible(self, caller: Caller, *, most: int) -> tuple[Release, ...]:
        """Every version that a caller may see, yanked or not, without tags and files, by team, name and version.

        Raises:
            RegistryError: there are more than `most`.
        """
        query = sa.select(schema.releases).where(_visible(caller)).order_by(_TABLE.team, _TABLE.name, _TABLE.rank)
        with self._database.reading() as connection:
            rows = connection.execute(query.limit(most + 1)).all()
        if len(rows) > most:
            raise RegistryError(f"the index has room for {most:,} versions", status="RESOURCE_EXHAUSTED")
        return tuple(_plain(row) for row in rows)

    def yank(self, name: ReleaseName, caller: Caller, *, reason: str) -> None:
        """Takes a version out of searches and of "the latest"; done again it changes nothing.

        Raises:
            RegistryError: there is none that the caller may see, or it is not theirs to yank.
        """
        with self._database.writing() as connection:
            row = self._find(connection, name, caller)
            own = row.publisher == caller.name and caller.may("publish", row.team)
            if not own and not caller.may("admin", row.team):
                raise RegistryError(
                    "who has published a version yanks it, or an admin of the team", status="PERMISSION_DENIED"
                )
            if row.yanked is None:
                now = self._clock()
                connection.execute(
                    sa.update(schema.releases).where(_TABLE.id == row.id).values(yanked=now, yank_reason=reason)
                )
                subject = f"{row.team}/{row.name}@{row.version}"
                record(connection, at=now, who=caller.name, what="yank", subject=subject, detail=reason)

    def count_download(self, release: Release, caller: Caller) -> None:
        """One more; in the audit log where it is known whose."""
        match = sa.and_(_TABLE.team == release.team, _TABLE.name == release.name, _TABLE.version == release.version)
        with self._database.writing() as connection:
            connection.execute(sa.update(schema.releases).where(match).values(downloads=_TABLE.downloads + 1))
            if caller.name:  # strangers must not be able to fill a disk with what is never deleted
                record(connection, at=self._clock(), who=caller.name, what="pull", subject=str(release))

    def blobs(self) -> frozenset[str]:
        """The digest of every blob that a version has."""
        with self._database.reading() as connection:
            return frozenset(connection.scalars(sa.select(schema.files.c.sha256).distinct()))

    def blobs_of(self, caller: Caller, digests: Sequence[str]) -> frozenset[str]:
        """Of these digests, those of blobs that the caller could download."""
        query = (
            sa.select(schema.files.c.sha256)
            .join(schema.releases, _TABLE.id == schema.files.c.release)
            .where(_visible(caller), schema.files.c.sha256.in_(digests))
        )
        with self._database.reading() as connection:
            return frozenset(connection.scalars(query.distinct()))

    def _find(self, connection: Connection, name: ReleaseName, caller: Caller) -> Row[tuple[object, ...]]:
        query = _versions(name).where(_visible(caller))
        if name.version is None:
            query = query.where(_TABLE.yanked.is_(None)).order_by(_TABLE.prerelease, _TABLE.rank.desc()).limit(1)
        row = connection.execute(query).first()
        if row is None:
            raise absent()
        return row

    def _check_free(self, connection: Connection, name: ReleaseName, files: Sequence[ReleaseFile]) -> int:
        if connection.execute(_versions(name)).first() is not None:
            raise taken(name)
        count = sa.select(sa.func.count()).where(_TABLE.team == name.team, _TABLE.name == name.name)
        if (connection.scalar(count) or 0) >= self._quota.versions:
            raise RegistryError(
                f"{name.team}/{name.name} has {self._quota.versions:,} versions, no more are taken",
                status="RESOURCE_EXHAUSTED",
            )
        used = int(connection.scalar(sa.select(sa.func.sum(_TABLE.size)).where(_TABLE.team == name.team)) or 0)
        if used + total(files) > self._quota.team_bytes:
            raise RegistryError(
                f"the team {name.team} has used {used:,} of {self._quota.team_bytes:,} bytes, "
                f"{total(files):,} more have no room",
                hint="whoever runs the registry can raise it: nf-server registry start --team-quota",
                status="RESOURCE_EXHAUSTED",
            )
        return self._quota.team_bytes - used


def total(files: Sequence[ReleaseFile]) -> int:
    """Bytes of all different blobs."""
    return sum({file.sha256: file.size for file in files}.values())


def absent() -> RegistryError:
    """What is said of everything that is not there, or not for this caller."""
    return RegistryError("there is no such adapter here, or none that you may see", status="NOT_FOUND")


def taken(name: ReleaseName) -> RegistryError:
    """A version that was published before."""
    return RegistryError(
        f"{name} was published before, and a version never changes",
        hint="publish under another version: raise it in metadata.json and sign again",
        status="ALREADY_EXISTS",
    )


_PLAIN = (
    *("team", "name", "version", "visibility", "digest", "size", "signer", "publisher", "published", "description"),
    *("author", "license", "base_model", "base_fingerprint", "allow_worse", "yanked", "yank_reason", "downloads"),
)


def _visible(caller: Caller) -> sa.ColumnElement[bool]:
    admin = [team for team in caller.teams if caller.may("admin", team)]
    teams = [*caller.teams]
    own = sa.and_(_TABLE.publisher == caller.name, _TABLE.team.in_(teams))
    return sa.or_(
        _TABLE.visibility == "public",
        sa.and_(_TABLE.visibility == "team", _TABLE.team.in_(teams)),
        sa.and_(_TABLE.visibility == "private", sa.or_(own, _TABLE.team.in_(admin))),
    )


def _versions(name: ReleaseName) -> sa.Select[tuple[object, ...]]:
    query = sa.select(schema.releases).where(_TABLE.team == name.team, _TABLE.name == name.name)
    return query if name.version is None else query.where(_TABLE.core == name.version.core)


def _newest_first() -> sa.ColumnElement[int]:
    return sa.func.row_number().over(
        partition_by=(_TABLE.team, _TABLE.name), order_by=(_TABLE.prerelease, _TABLE.rank.desc())
    )


def _is_labelled(tag: str, *kinds: str) -> sa.ColumnElement[bool]:
    table = schema.tags.c
    return sa.exists().where(table.release == _TABLE.id, table.kind.in_(kinds), table.tag == tag)


def _rank(version: Version) -> str:
    """A text whose order, byte by byte, is the order of versions (semver 2.0, §11)."""
    numbers, _, pre = version.core.partition("-")
    head = ".".join(f"{int(number):09d}" for number in numbers.split("."))
    # "!" stands before every character of an identifier, "~" behind all of them.
    parts = (f"0{int(part):09d}" if part.isdecimal() else f"1{part}" for part in pre.split(".") if part)
    return f"{head}!{'!'.join(parts)}" if pre else f"{head}~"


def _plain(row: Row[tuple[object, ...]]) -> Release:
    return Release(**{name: getattr(row, name) for name in _PLAIN})


def _release(connection: Connection, row: Row[tuple[object, ...]], *, files: bool = False) -> Release:
    labels = connection.execute(
        sa.select(schema.tags.c.kind, schema.tags.c.tag)
        .where(schema.tags.c.release == row.id)
        .order_by(schema.tags.c.tag)
    ).all()
    found: tuple[ReleaseFile, ...] = ()
    if files:
        query = sa.select(schema.files).where(schema.files.c.release == row.id).order_by(schema.files.c.name)
        found = tuple(
            ReleaseFile(name=each.name, sha256=each.sha256, size=each.size) for each in connection.execute(query)
        )
        if release_digest(found) != row.digest:
            raise RegistryError("the registry's list of this version's files is damaged", status="DATA_LOSS")
    return Release(
        **{name: getattr(row, name) for name in _PLAIN},
        tags=tuple(each.tag for each in labels if each.kind == "tag"),
        languages=tuple(each.tag for each in labels if each.kind == "language"),
        files=found,
    )
