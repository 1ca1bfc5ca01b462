"""Real repositories, made with git itself, and real code, which every Python brings along."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

GitCommand = Callable[..., bytes]
RepositoryMaker = Callable[..., Path]


def _run(folder: Path, *arguments: object, data: bytes = b"", check: bool = True) -> bytes:
    environment = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_NAME": "dev" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "dev@example.com" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_DATE": "2024-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
    }
    done = subprocess.run(
        ["git", "-C", folder, *map(str, arguments)], env=environment, input=data, capture_output=True, timeout=60
    )
    assert done.returncode == 0 or not check, done.stderr.decode("utf-8", "replace")
    return done.stdout.rstrip(b"\n")


@pytest.fixture(scope="session")
def git() -> GitCommand:
    """Run `git <arguments>` in a folder and give its output; it must succeed unless `check=False`."""
    return _run


@pytest.fixture
def repository(tmp_path: Path) -> RepositoryMaker:
    """Make a repository of the given files, all in one commit."""

    def make(files: Mapping[str, str | bytes], *, name: str = "project") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        _run(folder, "init", "-q", "-b", "main")
        for path, content in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        _run(folder, "add", "-A", "-f")
        _run(folder, "commit", "-q", "-m", "all")
        return folder

    return make


@pytest.fixture(scope="session")
def library() -> Path:
    """The folder of Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])
