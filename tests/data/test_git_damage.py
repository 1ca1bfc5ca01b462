"""Of a damaged repository, no wrong text is read, and somebody is told."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from git_objects import FILES, Git, Repository, commit_object, loose, read, rewrite, running_git

from neuralforge.data.git import read_git_tree
from neuralforge_common.errors import DataError


def _flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    rewrite(file, bytes(raw))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: rewrite(file, b""),
    "cut": lambda file: rewrite(file, file.read_bytes()[: len(file.read_bytes()) // 2]),
    "a flipped byte": _flip,
    "noise": lambda file: rewrite(file, b"\0" * 100),
    "another object": lambda file: rewrite(file, zlib.compress(b"blob 5\0other")),
    "a size that lies": lambda file: rewrite(file, zlib.compress(b"blob 3\0" + b"x" * 5000)),
    "another text of its size": lambda file: rewrite(file, zlib.compress(b"blob 6\0b = 3\n")),
    "a text that is missing": lambda file: rewrite(
        file, zlib.compress(b"blob 6\0")
    ),  # (git announces six bytes, gives none and waits)
    "a giant size": lambda file: rewrite(file, zlib.compress(b"blob 999999999999\0x")),
    "an unknown kind": lambda file: rewrite(file, zlib.compress(b"planted 5\0other")),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("victim", ["HEAD", "HEAD:src", "HEAD:src/b.py"])
def test_a_damaged_object_is_an_error_or_is_passed_over_and_no_wrong_text_is_read(
    repository: Repository, git: Git, victim: str, damage: str
) -> None:
    folder = repository(FILES)
    DAMAGE[damage](loose(folder, git(folder, "rev-parse", victim).decode()))
    read_so_far, message, skipped = [], "", 0
    try:
        stream = read_git_tree(folder, silence=1)
        for file in stream:
            read_so_far.append((file.path, file.text))
        skipped = stream.tally.skipped.total() - 1  # notes.md is always one
    except DataError as error:
        message = error.message
    assert message or skipped, f"nobody said that {victim} is damaged"
    assert message.isprintable()
    assert all(FILES[path] == text for path, text in read_so_far)
    assert not running_git()


@pytest.mark.parametrize("kind", ["tree", "commit"])
def test_a_file_that_is_no_file_is_an_error(repository: Repository, git: Git, kind: str) -> None:
    folder = repository(FILES)
    name = git(folder, "rev-parse", f"HEAD^{{{kind}}}").decode()
    raw = b"100644 x.py\0" + bytes.fromhex(name)
    tree = git(folder, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=raw).decode()
    commit_object(git, folder, tree)
    with pytest.raises(DataError, match=r"asked git for the file x\.py, got"):
        read(folder)


@pytest.mark.parametrize("name", [b"../../up.py", b"/etc/up.py", b"..", b".git/config.py", b"a//b.py"])
def test_a_name_that_climbs_is_a_name_and_no_more(repository: Repository, git: Git, name: bytes) -> None:
    folder = repository(FILES)
    raw = b"100644 " + name + b"\0" + bytes.fromhex(git(folder, "rev-parse", "HEAD:a.py").decode())
    tree = git(folder, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=raw).decode()
    commit_object(git, folder, tree)
    for file in read_git_tree(folder):
        assert file.text == FILES["a.py"], "something else than the commit's own object was read"


@pytest.mark.parametrize("head", [b"", b"garbage\n", b"ref: refs/heads/nowhere\n", b"ref: ../../../etc/passwd\n"])
def test_a_head_that_points_nowhere_is_an_error(repository: Repository, head: bytes) -> None:
    folder = repository(FILES)
    (folder / ".git" / "HEAD").write_bytes(head)
    with pytest.raises(DataError):
        read(folder)


def test_a_configuration_that_is_no_configuration_is_an_error_in_gits_words(repository: Repository) -> None:
    folder = repository(FILES)
    (folder / ".git" / "config").write_text("[core\n")
    with pytest.raises(DataError, match="git could not read the repository: bad config line 1"):
        read(folder)
