"""A history made by an enemy neither runs a program, nor keeps the reader waiting, nor tells what nobody committed.

Planted programs of every kind are in `test_git_hostile.py`, for one commit and for a history alike; here are the traps
that only a history can hold. Each is first shown to work.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from git_objects import CODE, Git, Repository, blob, commit_object, commit_tree, loose, program, rewrite, running_git

from neuralforge.data.history import MAX_CHANGED, CommitRead, open_history
from neuralforge.data.license import license_of_repository
from neuralforge.data.new_lines import new_lines
from neuralforge_common.errors import DataError

TIMELESS = "1970-01-01T00:00:00Z"


def reads(folder: Path, **options: object) -> list[CommitRead]:
    return list(open_history(folder, silence=10, **options).read())  # type: ignore[arg-type]


def paths(folder: Path, **options: object) -> list[str]:
    return [one.file.path for read in reads(folder, **options) for one in read.written]


def raw_commit(git: Git, folder: Path, *, headers: bytes = b"", author: bytes, committer: bytes) -> str:
    """A commit of HEAD's tree with an author and a committer of any bytes, at the head of main."""
    tree = git(folder, "rev-parse", "HEAD^{tree}")
    content = b"tree %s\nauthor %s\ncommitter %s\n%s\nwords\n" % (tree, author, committer, headers)
    name = git(folder, "hash-object", "-t", "commit", "-w", "--literally", "--stdin", data=content).decode()
    git(folder, "update-ref", "refs/heads/main", name)
    return name


# --- Nothing runs -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_drivers_that_a_committed_file_of_attributes_names_never_run(
    repository: Repository, git: Git, tmp_path: Path
) -> None:
    folder = repository({"a.py": CODE})
    script, canary = program(tmp_path)
    for key in ("diff.evil.command", "diff.evil.textconv", "filter.evil.smudge", "diff.external"):
        git(folder, "config", key, script)
    (folder / ".gitattributes").write_text("*.py diff=evil filter=evil\n")
    (folder / "a.py").write_text(CODE * 2)
    for at in range(2):
        git(folder, "-c", "filter.evil.clean=cat", "add", "-A")
        git(folder, "commit", "-q", "-m", str(at))
        git(folder, "mv", "a.py", "b.py", check=False)
    git(folder, "log", "-p", "--ext-diff", check=False)
    assert canary.exists(), "the trap does not work"
    canary.unlink()
    assert paths(folder) == ["a.py", "a.py"], "moved, and nothing new in it"
    assert license_of_repository(folder) == ""
    assert not canary.exists()
    assert not running_git()


# --- Nothing is told that was not committed ---------------------------------------------------------------------------


def test_parents_that_a_file_of_grafts_names_are_not_followed(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": CODE})
    hidden = git(folder, "commit-tree", "-m", "hidden", git(folder, "mktree", data=b"").decode()).decode()
    (folder / "b.py").write_text("print('second')\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "second")
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "grafts").write_text(f"{git(folder, 'rev-parse', 'HEAD').decode()} {hidden}\n")
    assert hidden in git(folder, "rev-list", "HEAD").decode(), "the trap does not work"
    assert paths(folder) == ["b.py", "a.py"]
    assert hidden not in open_history(folder).commits


def test_a_replaced_commit_does_not_hide_what_stands_before_it(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": CODE})
    (folder / "b.py").write_text("print('second')\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "second")
    lonely = git(folder, "commit-tree", "-m", "lonely", git(folder, "rev-parse", "HEAD^{tree}").decode()).decode()
    git(folder, "replace", "HEAD", lonely)
    assert git(folder, "rev-list", "--count", "HEAD") == b"1", "the trap does not work"
    assert paths(folder) == ["b.py", "a.py"]


@pytest.mark.parametrize("what", ["HEAD:a.py", "HEAD"])
def test_an_object_in_the_place_of_another_is_an_error(repository: Repository, git: Git, what: str) -> None:
    folder = repository({"a.py": CODE, "b.py": "print('another')\n"})
    if what == "HEAD":
        kind, content = "commit", git(folder, "cat-file", "commit", "HEAD").replace(b"dev@", b"ann@") + b"\n"
    else:
        kind, content = "blob", CODE.replace("hello", "other").encode()
    other = git(folder, "hash-object", "-t", kind, "-w", "--stdin", data=content).decode()
    name = git(folder, "rev-parse", what).decode()
    rewrite(loose(folder, name), loose(folder, other).read_bytes())
    with pytest.raises(DataError):
        reads(folder)
    assert not running_git()


# --- Nothing waits, or grows, for ever --------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("packed", [False, True])
def test_a_giant_is_passed_over_in_every_commit_that_touches_it(repository: Repository, git: Git, packed: bool) -> None:
    folder = repository({"a.py": CODE})
    for size in (64 << 20, (64 << 20) + 1):
        with (folder / "giant.py").open("wb") as file:
            file.truncate(size)
        git(folder, "-c", "core.bigFileThreshold=1m", "add", "giant.py")
        git(folder, "commit", "-q", "-m", "giant")
    (folder / "giant.py").write_text(CODE * 3)
    git(folder, "commit", "-q", "-a", "-m", "no giant any more")
    if packed:
        git(folder, "-c", "core.bigFileThreshold=1m", "gc", "-q")
    history = open_history(folder)
    found = list(history.read())
    assert [read.skipped["over 1 MiB"] for read in found] == [0, 1, 1, 0]
    assert [one.file.path for read in found for one in read.written] == ["giant.py", "a.py"]
    assert history.bytes_read < 1000


@pytest.mark.timeout(60)
def test_a_commit_of_too_many_files_is_passed_over_and_the_next_one_read(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": CODE})
    code = blob(git, folder, CODE.encode())
    listing = b"".join(f"100644 blob {code}\tx{at}.py".encode() + b"\0" for at in range(MAX_CHANGED + 1))
    tree = git(folder, "mktree", "-z", data=listing).decode()
    name = git(folder, "commit-tree", "-m", "many", "-p", "HEAD", tree).decode()
    git(folder, "update-ref", "refs/heads/main", name)
    many, first = reads(folder)
    assert (many.passed_over, many.written) == ("changes too many files", ())
    assert [one.file.path for one in first.written] == ["a.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("letters", "depth", "said"), [("abcdefghijk", 6, "changes over 1,000,000 files"), ("abcdefghij", 9, "memory")]
)
def test_a_commit_of_folders_that_hold_one_folder_ten_times_over_is_an_error(
    tmp_path: Path, git: Git, letters: str, depth: int, said: str
) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    entry = ("100644", "blob", blob(git, tmp_path, CODE.encode()))
    for _ in range(depth):  # 10⁹ files in nine objects
        mode, kind, name = entry
        listing = b"".join(f"{mode} {kind} {name}\t{letter}.py".encode() + b"\0" for letter in letters)
        entry = ("040000", "tree", git(tmp_path, "mktree", "-z", data=listing).decode())
    commit_object(git, tmp_path, entry[2])
    with pytest.raises(DataError, match=said):
        list(open_history(tmp_path).read())
    assert not running_git()


@pytest.mark.timeout(60)
def test_files_made_to_be_compared_for_ever_are_compared_in_a_moment() -> None:
    # Equal lines one at a time between others that differ: each one found starts the search again behind it.
    order = [f"same {(7919 * number) % 50}" for number in range(1490)]
    before, after = (
        ["first " + side, *(line for at, same in enumerate(order) for line in (same, f"{side} {at}")), "last " + side]
        for side in "ab"
    )
    began = time.process_time()
    ranges = new_lines(before, after)
    assert time.process_time() - began < 5
    new = {number for begin, end in ranges for number in range(begin, end)}
    assert {number for number, line in enumerate(after) if line.startswith(("b ", "first", "last"))} <= new


# --- Commits of any bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("author", "committer", "stamp"),
    [
        (b"a <a@b> 99999999999999999999 +0000", b"a <a@b> 99999999999999999999 +0000", TIMELESS),
        (b"a <a@b> 1 +0000", b"a <a@b> " + b"9" * 5000 + b" +0000", TIMELESS),
        (b"a <a@b> 1 +0000", b"a <a@b> -7 +0000", TIMELESS),
        (b"no address at all", b"nor here", TIMELESS),
        (b"\xff\xfe \x1b[31m <\xe9@b> 1700000000 +0000", b"a <a@b> 1700000000 +0000", "2023-11-14T22:13:20Z"),
        (b"a" * 100_000 + b" <a@b> 5 +0000", b"a <a@b> 1700000000 +0000", "2023-11-14T22:13:20Z"),
    ],
    ids=["far future", "a number without end", "before time", "nobody", "no text", "a name without end"],
)
def test_whoever_and_whenever_a_commit_claims_to_be_it_is_read(
    repository: Repository, git: Git, author: bytes, committer: bytes, stamp: str
) -> None:
    folder = repository({"a.py": CODE})
    raw_commit(git, folder, author=author, committer=committer)
    (read,) = reads(folder)
    (one,) = read.written
    assert (one.file.text, one.time) == (CODE, stamp)
    assert one.author.isprintable()


def test_a_commit_too_long_to_read_is_nobodys(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": CODE})
    who = b"dependabot[bot] <a@b> 1700000000 +0000"
    raw_commit(git, folder, headers=b"note " + b"x" * (1 << 20) + b"\n", author=who, committer=who)
    (read,) = reads(folder)
    assert [(one.author, one.time) for one in read.written] == [("", TIMELESS)]
    (read,) = reads(folder, author="a@b")
    assert read.passed_over == "by another author"


def test_names_links_and_submodules_of_any_kind_come_and_go_without_a_trace(repository: Repository, git: Git) -> None:
    folder = repository({"ok.py": CODE})
    code, link = blob(git, folder, CODE.encode()), blob(git, folder, b"../../../../etc/passwd")
    odd = [b"new\nline.py", b"latin-\xe9.py", b":100644 100644 x.py", b" .py", b"-rf.py", b"tab\tand\x1b[31m.py"]
    commit_tree(
        git, folder,
        *(("100644", "blob", code, name) for name in odd),
        ("120000", "blob", link, b"link.py"),
        ("160000", "commit", "1" * 40, b"module.py"),
    )  # fmt: skip
    before = git(folder, "rev-parse", "HEAD").decode()
    tree = git(folder, "mktree", "-z", data=f"100644 blob {code}\tlink.py".encode() + b"\0").decode()
    name = git(folder, "commit-tree", "-m", "gone", "-p", before, tree).decode()
    git(folder, "update-ref", "refs/heads/main", name)
    second, first = reads(folder)
    assert [(one.file.path, one.file.text) for one in second.written] == [("link.py", CODE)], "a file now"
    read = {one.file.path.encode("utf-8", "surrogateescape") for one in first.written}
    assert read == {name.replace(b"\xe9", rb"\xe9") for name in odd}
    assert first.skipped == {"link": 1}


# --- Licenses ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_license_is_never_read_through_a_link_or_without_bound(repository: Repository, git: Git) -> None:
    mit = (Path(__file__).parents[2] / "LICENSE").read_bytes()
    folder = repository({"LICENSE": mit})
    known = license_of_repository(folder)
    assert known
    text, place = blob(git, folder, mit), blob(git, folder, str(folder / "LICENSE").encode())
    commit_tree(git, folder, ("120000", "blob", place, b"LICENSE"))
    assert license_of_repository(folder) == ""
    commit_tree(git, folder, ("160000", "commit", "1" * 40, b"COPYING"), ("100644", "blob", text, b"LICENSE.txt"))
    assert license_of_repository(folder) == known
    commit_tree(git, folder, ("100644", "blob", blob(git, folder, mit + b"\n" * (1 << 18)), b"LICENSE"))
    assert license_of_repository(folder) == "", "too long to be one"
    commit_tree(git, folder, ("100644", "blob", blob(git, folder, b"\xff\xfe\0 nothing"), b"LICENSE"))
    assert license_of_repository(folder) == ""
