"""The registry: a token lets one node join, once; a revoked or replaced credential is refused at once."""

import os
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from neuralforge_common.errors import FederationError, StorageError, UsageError
from neuralforge_server.identity import Identities


class Turned:
    """A clock that stands until it is turned."""

    time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def registry(tmp_path: Path, clock: Turned) -> Iterator[Identities]:
    identities = Identities(tmp_path / "identity.db", clock=clock)
    yield identities
    identities.close()


def test_a_token_lets_its_node_join_once(registry: Identities) -> None:
    token = registry.invite("laptop-7")
    assert len(token) >= 43
    assert registry.active_keys() == {}
    assert registry.join(token, "key 7", 7) == "laptop-7"
    assert registry.active_keys() == {"laptop-7": "key 7"}
    assert registry.name_of(7) == "laptop-7"
    with pytest.raises(FederationError, match="used already"):
        registry.join(token, "key 8", 8)
    assert registry.active_keys() == {"laptop-7": "key 7"}


def test_a_token_expires(registry: Identities, clock: Turned) -> None:
    token = registry.invite("laptop-7")
    assert registry.invited() == {"laptop-7": clock.time + 3600}
    clock.time += 3600
    with pytest.raises(FederationError, match="the token expired 0 seconds ago"):
        registry.join(token, "key", 7)
    clock.time += 600
    with pytest.raises(FederationError, match="the token expired 10 minutes ago"):
        registry.join(token, "key", 7)
    assert registry.invited() == {}
    short = registry.invite("laptop-8", life=10)
    clock.time += 9.9
    assert registry.join(short, "key", 7) == "laptop-8"


@pytest.mark.parametrize("token", ["", "nfj_", "nfj_" + "A" * 43, "\ud800", "' OR 1=1 --"])
def test_an_unknown_token_is_refused(registry: Identities, token: str) -> None:
    registry.invite("laptop-7")
    with pytest.raises(FederationError, match="not known here"):
        registry.join(token, "key", 7)


def test_a_refused_join_leaves_the_token_as_it_was(registry: Identities) -> None:
    registry.join(registry.invite("laptop-7"), "key", 7)
    token = registry.invite("laptop-8")
    with pytest.raises(FederationError, match="another node's"):
        registry.join(token, "key", 8)
    assert registry.join(token, "another key", 8) == "laptop-8"


def test_of_many_that_show_one_token_at_once_exactly_one_joins(tmp_path: Path) -> None:
    # Half of them through other connections, as other processes have them.
    registries = [Identities(tmp_path / "identity.db") for _ in range(4)]
    token = registries[0].invite("laptop-7")
    start = threading.Barrier(16)

    def show(number: int) -> str:
        start.wait()
        try:
            return registries[number % 4].join(token, f"key {number}", number)
        except FederationError as error:
            return error.message

    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(show, range(16))]
    assert Counter(answers) == {"laptop-7": 1, "the token was used already: each lets one node join, once": 15}
    assert registries[0].active_keys() == {"laptop-7": f"key {answers.index('laptop-7')}"}
    for registry in registries:
        registry.close()


def test_a_newer_invitation_voids_the_older_one(registry: Identities) -> None:
    older, newer = registry.invite("laptop-7"), registry.invite("laptop-7")
    with pytest.raises(FederationError, match="not known here"):
        registry.join(older, "key", 7)
    assert registry.join(newer, "key", 7) == "laptop-7"


def test_an_invitation_cannot_take_over_an_active_name(registry: Identities) -> None:
    registry.join(registry.invite("laptop-7"), "key", 7)
    with pytest.raises(FederationError, match="laptop-7 has joined already") as refusal:
        registry.invite("laptop-7")
    assert "nf-server revoke laptop-7" in refusal.value.hint


def test_a_revoked_node_is_refused_and_may_come_back_with_another_key_alone(registry: Identities) -> None:
    registry.join(registry.invite("laptop-7"), "key", 7)
    assert registry.revoke("laptop-7") is True
    assert registry.active_keys() == {}
    with pytest.raises(FederationError, match="laptop-7 was revoked"):
        registry.name_of(7)
    token = registry.invite("laptop-7")
    with pytest.raises(FederationError, match="another node's"):
        registry.join(token, "key", 8)
    registry.join(token, "fresh key", 8)
    assert registry.active_keys() == {"laptop-7": "fresh key"}
    with pytest.raises(FederationError, match="was revoked"):
        registry.name_of(7)


def test_revoking_voids_an_invitation_too_and_says_when_there_is_nobody(registry: Identities) -> None:
    token = registry.invite("laptop-7")
    assert registry.revoke("laptop-7") is False
    with pytest.raises(FederationError, match="not known here"):
        registry.join(token, "key", 7)
    registry.join(registry.invite("laptop-8"), "key", 7)
    with pytest.raises(FederationError, match="nobody is called 'laptop-9' here") as refusal:
        registry.revoke("laptop-9")
    assert refusal.value.hint == "known: laptop-8"
    registry.revoke("laptop-8")
    with pytest.raises(FederationError, match="'laptop-8' was revoked already"):
        registry.revoke("laptop-8")


def test_after_a_rotation_only_the_new_credential_counts(registry: Identities, clock: Turned) -> None:
    registry.join(registry.invite("laptop-7"), "key", 7)
    clock.time += 60
    assert registry.rotate(7, "new key", 8) == 8
    assert registry.active_keys() == {"laptop-7": "new key"}
    assert registry.name_of(8) == "laptop-7"
    with pytest.raises(FederationError, match="laptop-7 goes on with another key"):
        registry.name_of(7)
    (node,) = registry.nodes()
    assert (node.name, node.state, node.serial) == ("laptop-7", "active", 8)
    assert node.rotated == node.joined + 60


def test_a_rotation_that_is_asked_for_again_gives_the_same_serial_and_changes_nothing(registry: Identities) -> None:
    registry.join(registry.invite("laptop-7"), "key", 7)
    registry.rotate(7, "new key", 8)
    revision = registry.revision()
    assert registry.rotate(7, "new key", 9) == 8
    assert registry.revision() == revision
    with pytest.raises(FederationError, match="goes on with another key"):
        registry.rotate(7, "a thief's key", 9)
    registry.revoke("laptop-7")
    with pytest.raises(FederationError):
        registry.rotate(7, "new key", 9)


def test_nobody_rotates_without_an_active_credential_or_to_a_known_key(registry: Identities) -> None:
    registry.join(registry.invite("laptop-7"), "key 7", 7)
    registry.join(registry.invite("laptop-8"), "key 8", 8)
    with pytest.raises(FederationError, match="not registered"):
        registry.rotate(99, "new key", 9)
    for known in ("key 7", "key 8"):
        with pytest.raises(FederationError, match="another node's"):
            registry.rotate(7, known, 9)
    assert registry.active_keys() == {"laptop-7": "key 7", "laptop-8": "key 8"}
    registry.revoke("laptop-7")
    with pytest.raises(FederationError, match="was revoked"):
        registry.rotate(7, "new key", 9)


@pytest.mark.parametrize("name", ["", "-x", "Laptop", "laptop_7", "a" * 64, "lap\ntop", "../x", "läptop"])
def test_a_name_is_letters_digits_and_dashes(registry: Identities, name: str) -> None:
    with pytest.raises(UsageError, match="name: wanted 1 to 63 lower-case letters"):
        registry.invite(name)


def test_neither_the_file_nor_its_journal_is_for_others_or_holds_a_token(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        registry = Identities(tmp_path / "identity.db")
        token = registry.invite("laptop-7")
        registry.join(token, "key", 7)
        unused = registry.invite("laptop-8")
    finally:
        os.umask(old)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["identity.db", "identity.db-shm", "identity.db-wal"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not any(secret.encode()[4:] in file.read_bytes() for secret in (token, unused))
    registry.close()


def test_a_registry_that_others_may_read_is_not_opened(tmp_path: Path) -> None:
    Identities(tmp_path / "identity.db").close()
    (tmp_path / "identity.db").chmod(0o640)
    with pytest.raises(StorageError, match="its mode is 0640, wanted 0600"):
        Identities(tmp_path / "identity.db")


def test_a_damaged_registry_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "identity.db"
    file.write_bytes(b"not a database, whatever its name says" * 100)
    file.chmod(0o600)
    with pytest.raises(StorageError, match=r"identity\.db is damaged: file is not a database") as refusal:
        Identities(file)
    assert "backup" in refusal.value.hint


def test_every_change_is_on_the_disk_when_it_is_told(registry: Identities, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "identity.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert registry._connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    registry.join(registry.invite("laptop-7"), "key", 7)
    assert connection.execute("SELECT name FROM credentials").fetchall() == [("laptop-7",)]
    connection.close()


NAMES = st.sampled_from(["a", "b", "c"])


class Registry(RuleBasedStateMachine):
    """Any order of joins, rotations and revocations against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.registry = Identities(Path(self.place.name) / "identity.db")
        self.active: dict[str, int] = {}
        self.gone: list[int] = []
        self.last, self.seen = 0, [(-1, {})]

    @rule(name=NAMES)
    def join(self, name: str) -> None:
        if name in self.active:
            with pytest.raises(FederationError):
                self.registry.invite(name)
            return
        self.last += 1
        assert self.registry.join(self.registry.invite(name), f"key {self.last}", self.last) == name
        self.active[name] = self.last

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def rotate(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.active)))
        self.last += 1
        self.registry.rotate(self.active[name], f"key {self.last}", self.last)
        self.gone.append(self.active[name])
        self.active[name] = self.last

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.active)))
        assert self.registry.revoke(name)
        self.gone.append(self.active.pop(name))

    @invariant()
    def the_active_are_the_active(self) -> None:
        keys = {name: f"key {number}" for name, number in self.active.items()}
        assert self.registry.active_keys() == keys
        assert {node.name for node in self.registry.nodes() if node.state == "active"} == keys.keys()
        for number in self.gone:
            with pytest.raises(FederationError):
                self.registry.name_of(number)
        # Equal revisions, equal keys; and it never goes back.
        revision, before = self.registry.revision(), self.seen[-1]
        assert revision > before[0] or (revision, keys) == before
        self.seen.append((revision, keys))

    def teardown(self) -> None:
        self.registry.close()
        self.place.cleanup()


TestRegistry = Registry.TestCase
TestRegistry.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


@given(st.text(max_size=70))
def test_what_is_accepted_as_a_name_is_harmless_in_any_path_and_certificate(name: str) -> None:
    from neuralforge_server.identity import validate_name

    try:
        validate_name(name)
    except UsageError:
        return
    assert name.isascii()
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
