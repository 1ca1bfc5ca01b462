"""What the registry's tables hold to, in SQLite, and the same in a real PostgreSQL."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres_rig import fresh_database, postgres
from registry_rig import make_adapter, registry_rig

from neuralforge_common.errors import RegistryError, StorageError, UsageError
from neuralforge_common.registry.release import ReleaseFile, ReleaseName, Version, release_digest
from neuralforge_server.registry import schema
from neuralforge_server.registry.access import Access, Caller
from neuralforge_server.registry.audit import read
from neuralforge_server.registry.published import Quota, Release, Wanted
from neuralforge_server.registry.releases import Releases
from neuralforge_server.registry.schema import Database

ALICE = Caller(name="member:alice", teams={"blue": "publish"})
NOBODY = Caller()
ORDERED = (
    *("0.0.1-0", "0.0.1", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"),
    *("1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.2.0", "1.9.0", "1.10.0", "2.0.0-2", "2.0.0-10", "2.0.0-a", "2.0.0"),
)
"""Semver 2.0, §11: each before the next."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nobody has used."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return fresh_database(request.getfixturevalue("server"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    for team in ("blue", "red"):
        Access(made).add_team(team)
    yield made
    made.close()


def release(name: str = "spring", version: str = "1.0.0", **fields: object) -> Release:
    names = ("metadata.json", "adapter_config.json", "adapter_model.safetensors", "model.sig")
    files = tuple(
        ReleaseFile(name=file, sha256=hashlib.sha256(f"{name}{version}{file}".encode()).hexdigest(), size=10)
        for file in sorted(names)
    )
    made = Release(
        team="blue",
        name=name,
        version=version,
        visibility="public",
        digest=release_digest(files),
        size=40,
        signer="a" * 64,
        publisher="member:alice",
        published=1.0,
        files=files,
    )
    return replace(made, **fields)


def found(releases: Releases, caller: Caller = NOBODY, *, limit: int = 100, **wanted: object) -> list[str]:
    return [str(each) for each in releases.search(Wanted(**wanted), caller, limit=limit)]


def test_what_is_added_is_resolved_the_same(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    added = release(tags=("java", "spring"), languages=("java",), description="Ünïcode 100%", allow_worse=True)
    releases.add(added)
    assert releases.resolve(ReleaseName.parse("blue/spring"), NOBODY) == added


def test_the_database_orders_versions_as_semver_does(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    for version in sorted(ORDERED, key=lambda text: hashlib.sha256(text.encode()).digest()):
        releases.add(release(version=version))
    assert tuple(each.version for each in releases.visible(NOBODY, most=100)) == ORDERED
    assert sorted(map(Version, reversed(ORDERED))) == [*map(Version, ORDERED)]
    assert releases.resolve(ReleaseName.parse("blue/spring"), NOBODY).version == "2.0.0"


def test_a_version_is_added_once_whoever_tries_at_a_time(database: Database) -> None:
    releases = Releases(database, quota=Quota())

    def add(number: int) -> str:
        try:
            releases.add(release(publisher=f"member:m{number}", description=str(number)))
        except RegistryError as error:
            return error.status
        return "added"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(8))) == ["ALREADY_EXISTS"] * 7 + ["added"]
    assert len(read(database)) == 3  # two teams, one release


def test_a_teams_bytes_hold_whoever_publishes_at_a_time(database: Database) -> None:
    releases = Releases(database, quota=Quota(team_bytes=100))

    def add(number: int) -> str:
        try:
            releases.add(release(name=f"a{number}"))
        except RegistryError as error:
            return error.status
        return "added"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(8))) == ["RESOURCE_EXHAUSTED"] * 6 + ["added"] * 2


def test_every_read_obeys_visibility(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    for kind in ("public", "team", "private"):
        releases.add(release(name=kind, visibility=kind))
    for caller, wanted in (
        (NOBODY, {"public"}),
        (Caller(name="member:eve", teams={"red": "admin"}), {"public"}),
        (Caller(name="member:bob", teams={"blue": "read"}), {"public", "team"}),
        (Caller(name="member:alice", teams={"blue": "read"}), {"public", "team", "private"}),
        (Caller(name="token:1", teams={"blue": "admin"}), {"public", "team", "private"}),
        (Caller(name="member:alice", teams={"red": "admin"}), {"public"}),
    ):
        assert {each.name for each in releases.visible(caller, most=9)} == wanted
        assert {each.name for each in releases.search(Wanted(), caller, limit=9)} == wanted
        for kind in ("public", "team", "private"):
            digests = [file.sha256 for file in release(name=kind).files]
            assert bool(releases.blobs_of(caller, digests)) is (kind in wanted)


def test_a_search_finds_by_words_tags_language_base_and_team(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    releases.add(release("spring", tags=("java", "web"), description="Spring Boot, 100% ours", base_model="nf-tiny"))
    releases.add(release("rust", tags=("cli",), languages=("rust",), author="Zoë", base_model="other"))
    releases.add(
        release("spring", "1.1.0", tags=("web",), languages=("kotlin",), description="Spring", base_model="nf-tiny")
    )
    assert found(releases) == ["blue/rust@1.0.0", "blue/spring@1.1.0"]
    assert found(releases, text="SPRING blue") == ["blue/spring@1.1.0"]
    assert found(releases, text="spring boot") == []  # only what the newest version says counts
    assert found(releases, text="zoë") == found(releases, language="rust") == ["blue/rust@1.0.0"]
    assert found(releases, tags=("cli", "web")) == found(releases, text="100%") == found(releases, team="red") == []
    assert found(releases, tags=("web",)) == found(releases, language="kotlin") == ["blue/spring@1.1.0"]
    assert found(releases, base_model="nf-tiny") == ["blue/spring@1.1.0"]
    assert found(releases, language="web") == ["blue/spring@1.1.0"]


def test_pages_of_a_search_are_the_search(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    names = [f"a{number:02d}" for number in range(7)]
    for name in names:
        releases.add(release(name))
    seen: list[str] = []
    after: tuple[str, str] | None = None
    while page := releases.search(Wanted(), NOBODY, limit=3, after=after):
        seen += [each.name for each in page]
        after = page[-1].team, page[-1].name
    assert seen == names


def test_yanking_changes_nothing_else_and_twice_changes_nothing(database: Database) -> None:
    releases = Releases(database, quota=Quota(), clock=lambda: 7.0)
    releases.add(added := release())
    name = ReleaseName.parse("blue/spring@1.0.0")
    releases.yank(name, ALICE, reason="leaks")
    releases.yank(name, ALICE, reason="another")
    assert releases.resolve(name, NOBODY) == replace(added, yanked=7.0, yank_reason="leaks")
    assert found(releases) == []
    assert [each.what for each in read(database)].count("yank") == 1


def test_a_list_of_files_that_was_changed_in_the_database_is_noticed(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    releases.add(release())
    with database.writing() as connection:
        connection.execute(sa.update(schema.files).where(schema.files.c.name == "model.sig").values(sha256="f" * 64))
    with pytest.raises(RegistryError, match="damaged"):
        releases.resolve(ReleaseName.parse("blue/spring"), NOBODY)


def test_a_database_of_another_version_is_refused(url: str, database: Database) -> None:
    with database.writing() as connection:
        connection.execute(sa.update(schema.settings).where(schema.settings.c.name == "schema").values(value=99))
    with pytest.raises(StorageError, match="schema 99"):
        Database(url)


def test_a_change_that_fails_leaves_nothing(database: Database) -> None:
    releases = Releases(database, quota=Quota())
    with pytest.raises(RegistryError, match="published before"):
        # The same file twice: the second row breaks a rule of the tables when the first is written.
        releases.add(replace(release(), files=release().files * 2))
    assert found(releases) == []
    assert releases.blobs() == frozenset()


def test_the_file_of_a_database_is_its_owners_alone(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path / 'x.db'}").close()
    assert stat.S_IMODE((tmp_path / "x.db").stat().st_mode) == 0o600
    (tmp_path / "x.db").chmod(0o644)
    with pytest.raises(StorageError, match="others than its owner"):
        Database(f"sqlite:///{tmp_path / 'x.db'}")


@pytest.mark.parametrize("text", ["mysql://x/y", "nothing", "sqlite://", "://"])
def test_urls_of_other_databases_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--database"):
        Database(text)


def test_a_database_that_is_not_there_is_one_line_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Database(f"postgresql://nf:hunter2@/x?host={tmp_path}")
    assert "hunter2" not in str(caught.value)
    assert "cannot use the database" in str(caught.value)


@pytest.mark.slow
def test_a_registry_on_postgresql_publishes_and_pulls(tmp_path: Path, server: str) -> None:
    with registry_rig(tmp_path, database=fresh_database(server)) as rig:
        alice = rig.member("alice", "blue")
        alice.publish(make_adapter(tmp_path / "a.lora"))
        assert alice.download(alice.resolve(), "model.sig")
        assert alice.search(text="spring") == ["blue/spring@1.0.0"]
        assert alice.index()
