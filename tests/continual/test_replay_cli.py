"""`neuralforge replay` as a person runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge.continual import ReplayBuffer
from neuralforge.continual.keys import KeyFile, PassphraseKey
from neuralforge.data.example import Example
from neuralforge.data.run_folder import replay_folder

Cli = Callable[..., subprocess.CompletedProcess[str]]

TEXT = "a_line_that_is_shown_when_asked"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An adapter's name with a buffer of two sessions."""
    adapter = tmp_path / "team.lora"
    buffer = ReplayBuffer.open(replay_folder(adapter), KeyFile(tmp_path / "key"), max_size=30)
    for session, language, count in (("week 1", "python", 6), ("week 2", "rust", 3)):
        buffer.add(
            [
                Example(context=f"# {TEXT} {n}\n", completion=f"\x1b[31mx = {n}\n", language=language, path=f"{n}.x")
                for n in range(count)
            ],
            session=session,
        )
    return adapter


def test_show_counts_and_keeps_the_text_to_itself(cli: Cli, place: Path, tmp_path: Path) -> None:
    done = cli("replay", "show", place, "--key-file", tmp_path / "key", cwd=tmp_path, COLUMNS="140")
    assert done.returncode == 0, done.stderr
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if "│" in line}
    assert "python 6" in lines["week 1"]
    assert "rust 3" in lines["week 2"]
    assert "9" in lines["all"]
    assert "of 9 examples, at most 30 kept" in done.stdout
    assert f"the key file {tmp_path / 'key'}" in done.stdout
    assert TEXT not in done.stdout


def test_show_n_shows_so_many_texts_and_no_orders_to_the_terminal(cli: Cli, place: Path, tmp_path: Path) -> None:
    done = cli("replay", "show", place, "--show", 2, "--key-file", tmp_path / "key", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(TEXT) == 2
    assert "\x1b" not in done.stdout


def test_show_says_which_key_it_wants(cli: Cli, place: Path, tmp_path: Path) -> None:
    done = cli("replay", "show", place, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the replay buffer is locked by a key-file, and there is none at hand",
        "  hint: name it with --key-file FILE",
    ]
    KeyFile(tmp_path / "other").make("")
    done = cli("replay", "show", place, "--key-file", tmp_path / "other", cwd=tmp_path)
    assert done.returncode == 1
    assert "does not open the replay buffer" in done.stderr


def test_the_passphrase_comes_from_the_environment(cli: Cli, tmp_path: Path) -> None:
    ReplayBuffer.open(tmp_path / "replay", PassphraseKey("correct horse")).add([Example(context="a", completion="b")])
    right = cli("replay", "show", tmp_path / "replay", cwd=tmp_path, NEURALFORGE_PASSPHRASE="correct horse")
    assert right.returncode == 0, right.stderr
    assert "a passphrase (Argon2id)" in right.stdout
    wrong = cli("replay", "show", tmp_path / "replay", cwd=tmp_path, NEURALFORGE_PASSPHRASE="correct house")
    assert wrong.returncode == 1
    assert "a passphrase (Argon2id) does not open the replay buffer" in wrong.stderr
    assert "correct" not in wrong.stderr


def test_purge_asks_first_needs_no_key_and_leaves_nothing(cli: Cli, place: Path, tmp_path: Path) -> None:
    folder = replay_folder(place)
    asked = cli("replay", "purge", place, cwd=tmp_path)
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert folder.exists()
    done = cli("replay", "purge", place, "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the key is destroyed" in done.stdout
    assert not folder.exists()
    for action in (("show",), ("purge", "--yes")):
        again = cli("replay", action[0], place, *action[1:], cwd=tmp_path)
        assert again.returncode == 1
        assert "no replay buffer in" in again.stderr


def test_the_help_ends_with_examples(cli: Cli, tmp_path: Path) -> None:
    done = cli("replay", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "neuralforge replay purge ./my-adapter.lora --yes" in done.stdout
