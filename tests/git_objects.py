"""Repositories that no work tree could hold: commits of any entries, objects of any content."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import psutil

from neuralforge.data.git import read_git_tree

Git = Callable[..., bytes]
Repository = Callable[..., Path]

CODE = "print('hello')\n"
FILES = {"a.py": "a = 1\n", "src/b.py": "b = 2\n", "src/deep/c.js": "let c = 3;\n", "notes.md": "# Notes\n"}


def read(folder: Path, **options: object) -> tuple[list[str], dict[str, int]]:
    """The paths that are read and the reasons why others are not, counted."""
    stream = read_git_tree(folder, **options)  # type: ignore[arg-type]
    paths = [file.path for file in stream]
    assert stream.tally.found == len(paths) + sum(stream.tally.skipped.values())
    return paths, dict(stream.tally.skipped)


def running_git() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("git")]


def commit_tree(git: Git, folder: Path, *entries: tuple[str, str, str, bytes]) -> None:
    """A commit on main of entries (mode, kind, object, name) that no work tree need be able to hold."""
    listing = b"".join(f"{mode} {kind} {name}\t".encode() + path + b"\0" for mode, kind, name, path in entries)
    commit_object(git, folder, git(folder, "mktree", "-z", "--missing", data=listing).decode())


def commit_object(git: Git, folder: Path, tree: str) -> None:
    git(folder, "update-ref", "refs/heads/main", git(folder, "commit-tree", "-m", "all", tree).decode())


def blob(git: Git, folder: Path, content: bytes) -> str:
    return git(folder, "hash-object", "-w", "--stdin", data=content).decode()


def loose(folder: Path, name: str) -> Path:
    return folder / ".git" / "objects" / name[:2] / name[2:]


def rewrite(file: Path, content: bytes) -> None:
    """Put something else in the place of an object."""
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    file.write_bytes(content)


def program(folder: Path) -> tuple[Path, Path]:
    """A program, and the canary file that it leaves when it runs."""
    canary = folder / "canary"
    script = folder / "planted"
    script.write_text(f"#!/bin/sh\necho ran >> '{canary}'\nexit 1\n")
    script.chmod(0o755)
    return script, canary
