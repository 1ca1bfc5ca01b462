"""Which key locks a buffer: what a person named comes first, and without any there is no buffer."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralforge.continual import ReplayBuffer
from neuralforge.continual.keys import (
    PASSPHRASE,
    SERVICE,
    Key,
    KeyFile,
    KeyringKey,
    PassphraseKey,
    choose_key,
    system_keyring,
)
from neuralforge.continual.vault import erase, read_header
from neuralforge.data.example import Example
from neuralforge_common.errors import VaultError

ONE = [Example(context="a", completion="b")]
SAID = {PASSPHRASE: "correct horse"}


class Keyring:
    """A keyring in memory, with the three calls of the package `keyring`'s backends."""

    name = "in memory"

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, user: str) -> str | None:
        return self.kept.get((service, user))

    def set_password(self, service: str, user: str, password: str) -> None:
        self.kept[service, user] = password

    def delete_password(self, service: str, user: str) -> None:
        del self.kept[service, user]


def nobody() -> None:
    return None


def test_what_a_person_named_comes_first(tmp_path: Path) -> None:
    def choose(**changes: Any) -> Key:
        given: dict[str, Any] = {
            "key_file": tmp_path / "key", "environment": SAID, "keyring": Keyring, "ask": lambda _: "asked"
        }  # fmt: skip
        return choose_key(None, **(given | changes))

    assert isinstance(choose(), KeyFile)
    assert choose(key_file=None) == PassphraseKey("correct horse")
    assert isinstance(choose(key_file=None, environment={}), KeyringKey)
    assert choose(key_file=None, environment={}, keyring=nobody) == PassphraseKey("asked")
    with pytest.raises(VaultError, match="no key for the replay buffer") as refused:
        choose(key_file=None, environment={}, keyring=nobody, ask=None)
    assert all(way in refused.value.hint for way in (PASSPHRASE, "--key-file", "keyring"))


@pytest.mark.parametrize(
    ("priorities", "chosen"), [([5.0], 5.0), ([0.0], None), ([0.6, 0.5], None), ([0.5, 5.0, 2.0], 5.0), ([None], None)]
)
def test_only_a_keyring_that_keeps_secrets_is_one(
    monkeypatch: pytest.MonkeyPatch, priorities: list[float | None], chosen: float | None
) -> None:
    class Backend(Keyring):
        def __init__(self, priority: float | None) -> None:
            super().__init__()
            self._priority = priority

        @property
        def priority(self) -> float:
            if self._priority is None:
                raise RuntimeError("no bus")
            return self._priority

    members = [Backend(priority) for priority in priorities]
    chain = types.SimpleNamespace(priority=10, backends=members)  # 10 whatever it is made of
    package = types.ModuleType("keyring")
    package.get_keyring = lambda: chain if len(members) > 1 else members[0]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)
    found = system_keyring()
    assert (None if found is None else found.priority) == chosen


@pytest.mark.parametrize(
    ("kind", "way"), [("key-file", "--key-file"), ("passphrase", PASSPHRASE), ("keyring", "keyring"), ("moon", "")]
)
def test_a_buffer_without_its_key_says_which_one_it_wants(kind: str, way: str) -> None:
    with pytest.raises(VaultError, match=kind) as refused:
        choose_key(kind, environment={}, keyring=nobody)
    assert way in refused.value.hint


def test_the_passphrase_of_a_new_buffer_is_asked_for_twice() -> None:
    def asking(*said: str) -> Callable[[str], str]:
        left = iter(said)
        return lambda _: next(left)

    with pytest.raises(VaultError, match="differ"):
        choose_key(None, environment={}, keyring=nobody, ask=asking("one", "other"))
    assert choose_key("passphrase", environment={}, keyring=nobody, ask=asking("one")) == PassphraseKey("one")


def test_a_key_file_is_made_once_and_needed_from_then_on(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "new" / "key")
    ReplayBuffer.open(tmp_path / "replay", key).add(ONE)
    assert key.path.stat().st_mode & 0o777 == 0o600
    text = key.path.read_text()
    key.path.unlink()
    with pytest.raises(VaultError, match="cannot read"):
        ReplayBuffer.open(tmp_path / "replay", key)
    assert not key.path.exists()
    key.path.write_text("not a key")
    key.path.chmod(0o600)
    with pytest.raises(VaultError, match="wanted 64 hex digits"):
        ReplayBuffer.open(tmp_path / "replay", key)
    key.path.write_text(text)
    assert len(ReplayBuffer.open(tmp_path / "replay", key)) == 1


def test_an_empty_passphrase_locks_nothing(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="empty"):
        ReplayBuffer.open(tmp_path / "replay", PassphraseKey(""))
    assert read_header(tmp_path / "replay") is None


def test_two_buffers_of_one_passphrase_share_no_key(tmp_path: Path) -> None:
    headers = []
    for name in "ab":
        ReplayBuffer.open(tmp_path / name, PassphraseKey("same"))
        headers.append(read_header(tmp_path / name))
    (tmp_path / "a" / "key.json").replace(tmp_path / "b" / "key.json")
    assert headers[0] is not None
    assert headers[1] is not None
    assert headers[0].facts["salt"] != headers[1].facts["salt"]
    ReplayBuffer.open(tmp_path / "b", PassphraseKey("same"))  # a header opens with its own salt wherever it lies


def test_a_keyring_has_a_key_for_each_buffer_and_forgets_it_when_that_is_erased(tmp_path: Path) -> None:
    keyring = Keyring()
    key = KeyringKey(keyring)
    for name in "ab":
        ReplayBuffer.open(tmp_path / name, key).add(ONE)
    assert len(keyring.kept) == 2
    assert {service for service, _ in keyring.kept} == {SERVICE}
    erase(tmp_path / "a", key)
    assert len(keyring.kept) == 1
    assert len(ReplayBuffer.open(tmp_path / "b", key)) == 1
    keyring.kept.clear()
    with pytest.raises(VaultError, match="holds no key for this replay buffer"):
        ReplayBuffer.open(tmp_path / "b", key)


def test_a_keyring_that_does_not_answer_is_an_error_and_nothing_else_is_tried(tmp_path: Path) -> None:
    class Locked(Keyring):
        def set_password(self, service: str, user: str, password: str) -> None:
            raise RuntimeError("the collection is locked")

    with pytest.raises(VaultError, match="does not answer: RuntimeError: the collection is locked"):
        ReplayBuffer.open(tmp_path / "replay", KeyringKey(Locked()))
    assert read_header(tmp_path / "replay") is None
