"""A history is read as it was written: each line once, in its context, by a person."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from git_objects import Git, Repository, blob, commit_tree
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.history import PART, Written, open_history
from neuralforge.data.new_lines import new_lines
from neuralforge_common.errors import DataError

OLD = "import os\n\n\ndef first(path):\n    return os.path.join(path, 'a')\n"
ADDED = "\n\ndef second(path):\n    names = sorted(os.listdir(path))\n    return names[:10]\n"


def written(folder: Path, **options: object) -> list[Written]:
    return [one for read in open_history(folder, **options).read() for one in read.written]  # type: ignore[arg-type]


def passed_over(folder: Path, **options: object) -> list[str]:
    reads = open_history(folder, **options).read()  # type: ignore[arg-type]
    return [read.passed_over for read in reads if read.passed_over]


@pytest.fixture
def commit(git: Git) -> Callable[..., None]:
    """Commit everything in a folder, as somebody."""

    def make(folder: Path, author: str = "Ann <ann@example.org>") -> None:
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "more", f"--author={author}")

    return make


def test_what_a_commit_added_is_told_with_its_file_time_and_author(
    repository: Repository, commit: Callable[..., None]
) -> None:
    folder = repository({"a.py": OLD})
    (folder / "a.py").write_text(OLD + ADDED)
    commit(folder)
    newest, first = written(folder)
    assert (newest.file.path, newest.file.text) == ("a.py", OLD + ADDED)
    lines = (OLD + ADDED).split("\n")
    assert ["\n".join(lines[a:b]).strip("\n") for a, b in newest.lines] == [ADDED.strip("\n")]
    assert (newest.author, newest.time) == ("ann@example.org", "2024-01-01T00:00:00Z")
    assert first.lines == ((0, len(OLD.split("\n"))),), "of the first commit, everything"


def test_a_file_under_another_name_brings_only_what_is_new_in_it(
    repository: Repository, commit: Callable[..., None], git: Git
) -> None:
    folder = repository({"a.py": OLD, "b.py": "print('another file altogether')\n"})
    git(folder, "mv", "a.py", "c.py")
    commit(folder)
    assert [one.file.path for one in written(folder)] == ["a.py", "b.py"], "moved and nothing else"
    git(folder, "mv", "c.py", "d.py")
    (folder / "d.py").write_text(OLD + ADDED)
    commit(folder)
    newest = written(folder)[0]
    assert newest.file.path == "d.py"
    assert newest.lines[0][0] >= OLD.count("\n")


def test_merges_and_bots_are_passed_over(repository: Repository, commit: Callable[..., None], git: Git) -> None:
    folder = repository({"a.py": OLD})
    git(folder, "checkout", "-q", "-b", "side")
    (folder / "side.py").write_text(OLD.replace("first", "aside"))
    commit(folder)
    git(folder, "checkout", "-q", "main")
    (folder / "deps.py").write_text("VERSIONS = {'requests': '2.0.1', 'numpy': '1.26'}\n")
    commit(folder, "dependabot[bot] <49699333+dependabot[bot]@users.noreply.github.com>")
    git(folder, "merge", "-q", "--no-edit", "--no-ff", "side")
    history = open_history(folder)
    assert len(history.commits) == 3, "without the merge"
    assert sorted(one.file.path for one in written(folder)) == ["a.py", "side.py"]
    assert passed_over(folder) == ["by a bot"]
    assert [one.file.path for one in written(folder, first_parent=True)] == ["a.py"]


def test_an_author_is_a_whole_address_or_name(repository: Repository, commit: Callable[..., None]) -> None:
    folder = repository({"a.py": OLD})
    (folder / "b.py").write_text(OLD)
    commit(folder, "Ann <ann@example.org>")
    for who in ("ANN@example.org", "ann"):
        assert [one.file.path for one in written(folder, author=who)] == ["b.py"]
    assert not written(folder, author="ann@example.or")
    assert passed_over(folder, author="nobody@example.org") == ["by another author"] * 2


def test_links_submodules_giants_and_binaries_are_left_out_and_odd_names_read(repository: Repository, git: Git) -> None:
    folder = repository({"ok.py": OLD})
    code, link = blob(git, folder, OLD.encode()), blob(git, folder, b"/etc/passwd")
    giant, binary = blob(git, folder, b"x = 1\n" * (1 << 18)), blob(git, folder, b"a\0b")
    commit_tree(
        git, folder,
        ("120000", "blob", link, b"link.py"),
        ("160000", "commit", "1" * 40, b"module.py"),
        ("100644", "blob", giant, b"giant.py"),
        ("100644", "blob", binary, b"binary.py"),
        ("100644", "blob", code, b"new\nline.py"),
        ("100644", "blob", code, b"latin-\xe9.py"),
    )  # fmt: skip
    reads = list(open_history(folder).read())
    skipped = {reason: count for read in reads for reason, count in read.skipped.items()}
    assert skipped == {"link": 1, "over 1 MiB": 1, "binary": 1}, "git leaves out the submodule"
    assert sorted(one.file.path for read in reads for one in read.written) == ["latin-\\xe9.py", "new\nline.py"]


def test_a_replaced_commit_is_read_as_it_was(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": OLD})
    other = blob(git, folder, b"print('in its place')\n")
    git(folder, "replace", git(folder, "rev-parse", "HEAD:a.py").decode(), other)
    assert written(folder)[0].file.text == OLD


def test_nothing_that_ended_there_is_left_running_when_a_reader_stops_early(
    repository: Repository, commit: Callable[..., None]
) -> None:
    folder = repository({"a.py": OLD})
    for number in range(4):
        (folder / f"n{number}.py").write_text(OLD)
        commit(folder)
    reads = open_history(folder).read()
    assert next(reads).written
    reads.close()  # type: ignore[attr-defined]
    assert not [child for child in os.popen("ps -o comm= --ppid " + str(os.getpid())) if "git" in child]  # noqa: S605


def test_no_commit_is_an_error_with_a_way_out(repository: Repository) -> None:
    folder = repository({"a.py": OLD})
    with pytest.raises(DataError, match="no commits since 2025-01-01"):
        open_history(folder, since="2025-01-01")
    with pytest.raises(DataError, match="names no moment of the past"):
        open_history(folder, since="next week")


lines = st.lists(st.sampled_from(["a", "b", "c", "", "  d"]), max_size=12)


@given(lines, lines)
def test_what_is_not_new_stood_there_before_in_that_order(before: list[str], after: list[str]) -> None:
    ranges = new_lines(before, after)
    assert all(a < b for a, b in ranges)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges))
    new = {number for a, b in ranges for number in range(a, b)}
    kept = iter(before)
    assert all(line in kept for number, line in enumerate(after) if number not in new), "a subsequence of before"
    assert not new_lines(after, after)


def test_a_commit_of_much_text_comes_in_parts_and_ends_once(repository: Repository) -> None:
    line = "value = compute(value)  # {:06}\n"
    files = {f"m{n}.py": "".join(line.format(n * 20_000 + k) for k in range(12_000)) for n in range(7)}
    reads = list(open_history(repository({**files, "data.bin": "not code\n"})).read())
    assert [read.is_last for read in reads] == [False] * (len(reads) - 1) + [True]
    assert len(reads) > 2
    assert all(0 < read.size <= PART for read in reads)
    assert [one.file.path for read in reads for one in read.written] == sorted(files)
    assert [sum(read.skipped.values()) for read in reads] == [0] * (len(reads) - 1) + [1]
