"""`since`: only what differs from the newest commit before that moment."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from git_objects import Git, Repository, read

from neuralforge.data.git import NothingChanged
from neuralforge_common.errors import DataError

DAY = 24 * 3600


@pytest.fixture
def history(repository: Repository, git: Git, tmp_path: Path) -> Path:
    """Commits of 2024, of 20, 10 and 2 days ago."""
    folder = repository({"a.py": "a = 1\n", "b.py": "b = 1\n", "src/c.py": "c = 1\n", "gone.py": "g = 1\n"})
    commit_at(folder, 20, lambda: (folder / "a.py").write_text("a = 2\n"))
    commit_at(folder, 10, lambda: ((folder / "src/c.py").write_text("c = 2\n"), (folder / "gone.py").unlink()))
    commit_at(folder, 2, lambda: (folder / "ü.py").write_text("d = 'new'\n"))
    return folder


def commit_at(folder: Path, days_ago: int, change: Callable[[], object]) -> None:
    change()
    when = f"@{int(time.time()) - days_ago * DAY} +0000"
    who = {f"GIT_{w}_{what}": "d@e" for w in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | who | {"GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
    for command in (["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "work"]):
        subprocess.run(["git", "-C", folder, *command], env=environment, check=True)


@pytest.mark.parametrize(
    ("since", "paths"),
    [
        ("1 week ago", ["ü.py"]),
        ("2 weeks ago", ["src/c.py", "ü.py"]),
        ("2025-01-01", ["a.py", "src/c.py", "ü.py"]),
        ("2020-01-01", ["a.py", "b.py", "src/c.py", "ü.py"]),
    ],
)
def test_what_has_changed_since_is_read_and_nothing_else(history: Path, since: str, paths: list[str]) -> None:
    found, skipped = read(history, since=since)
    assert found == paths
    assert skipped.get("not changed since then", 0) == 4 - len(paths)


def test_what_was_changed_and_changed_back_is_not_new(history: Path) -> None:
    commit_at(history, 1, lambda: (history / "b.py").write_text("b = 5\n"))
    commit_at(history, 1, lambda: (history / "b.py").write_text("b = 1\n"))
    assert read(history, since="1 week ago")[0] == ["ü.py"]


def test_a_merge_counts_from_the_line_that_it_was_merged_into(history: Path, git: Git) -> None:
    git(history, "checkout", "-q", "-b", "side", "HEAD~2")
    commit_at(history, 15, lambda: (history / "side.py").write_text("s = 1\n"))
    git(history, "checkout", "-q", "main")
    git(history, "merge", "-q", "--no-edit", "--no-ff", "--no-commit", "side")
    commit_at(history, 1, lambda: None)
    assert "side.py" in read(history, since="1 week ago")[0], "merged yesterday: new to this line"


def test_nothing_is_an_error_of_its_own_that_names_the_day(history: Path) -> None:
    with pytest.raises(NothingChanged, match=r"nothing has changed since 20\d\d-\d\d-\d\d \d\d:\d\d \(1 day ago\)"):
        read(history, since="1 day ago")


@pytest.mark.parametrize("since", ["blue", "tomorrow", "--all", "HEAD"])
def test_what_is_no_moment_of_the_past_is_refused(history: Path, since: str) -> None:
    with pytest.raises(DataError, match="names no moment of the past"):
        read(history, since=since)


def test_a_folder_inside_is_told_apart_by_its_full_names(history: Path) -> None:
    assert read(history / "src", since="2 weeks ago")[0] == ["src/c.py"]


def test_a_shallow_clone_that_does_not_reach_back_says_so(history: Path, git: Git, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{history}", "shallow")
    with pytest.raises(DataError, match="the clone is shallow and does not reach back to ") as error:
        read(tmp_path / "shallow", since="2 weeks ago")
    assert error.value.hint == "git fetch --unshallow"
