"""A commit is read to the character, whatever its names, its entries and its surroundings are."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from git_objects import (
    CODE,
    FILES,
    Git,
    Repository,
    blob,
    commit_object,
    commit_tree,
    loose,
    read,
    rewrite,
    running_git,
)

from neuralforge.data.dataset import build_dataset
from neuralforge.data.git import MAX_ENTRIES, read_git_tree
from neuralforge.data.jsonl import read_examples, write_examples
from neuralforge.data.source import MAX_FILE_BYTES, SourceFile, read_source_tree
from neuralforge_common.errors import DataError

# --- What is read -----------------------------------------------------------------------------------------------------


def test_the_files_of_the_last_commit_come_back_in_gits_order(repository: Repository, git: Git) -> None:
    folder = repository(FILES)
    head = git(folder, "rev-parse", "HEAD").decode()
    files = list(read_git_tree(folder))
    assert files == [
        SourceFile(path="a.py", text="a = 1\n", language="python", repo="project", commit=head),
        SourceFile(path="src/b.py", text="b = 2\n", language="python", repo="project", commit=head),
        SourceFile(path="src/deep/c.js", text="let c = 3;\n", language="javascript", repo="project", commit=head),
    ]
    assert read(folder)[1] == {"no supported language": 1}


def test_only_what_is_committed_is_read(repository: Repository, git: Git) -> None:
    folder = repository(FILES)
    (folder / "a.py").write_text("changed\n")
    (folder / "new.py").write_text("new\n")
    git(folder, "add", "new.py")
    shutil.rmtree(folder / "src")
    assert [file.text for file in read_git_tree(folder)] == ["a = 1\n", "b = 2\n", "let c = 3;\n"]


@pytest.mark.parametrize("revision", ["HEAD~1", "first", "v1", "the commit", "the tree's commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(repository: Repository, git: Git, revision: str) -> None:
    folder = repository({"a.py": "old\n"})
    old = git(folder, "rev-parse", "HEAD").decode()
    git(folder, "branch", "first")
    git(folder, "tag", "-a", "-m", "tagged", "v1")
    (folder / "a.py").write_text("new\n")
    git(folder, "commit", "-q", "-a", "-m", "second")
    named = {"the commit": old, "the tree's commit": "v1^{commit}"}.get(revision, revision)
    (file,) = read_git_tree(folder, revision=named)
    assert (file.text, file.commit) == ("old\n", old)
    (file,) = read_git_tree(folder)
    assert file.text == "new\n"


def test_the_same_content_under_two_names_is_read_once(repository: Repository) -> None:
    folder = repository({"a.py": CODE, "b.py": CODE, "c.md": CODE, "d.py": "other\n"})
    assert read(folder) == (["a.py", "d.py"], {"same content as another file": 1, "no supported language": 1})


def test_patterns_and_languages_choose_as_they_do_in_a_folder(repository: Repository) -> None:
    folder = repository(FILES)
    assert read(folder, patterns=["*.md"])[0] == ["notes.md"]
    assert read(folder, patterns=["src/*"], languages=["py"])[0] == ["src/b.py"]
    assert read(folder, languages=["js"])[0] == ["src/deep/c.js"]


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("x.py", b"a\0b", "binary"),
        ("x.py", b"\xff\xfe\xfd\n", "not UTF-8"),
        ("x.py", b"", "empty"),
        ("x.py", b"#" * (MAX_FILE_BYTES + 1), "over 1 MiB"),
        ("vendor/x.py", CODE.encode(), "vendored folder"),
        ("lib/node_modules/x.js", CODE.encode(), "vendored folder"),
        (".hidden/x.py", CODE.encode(), "hidden folder"),
        ("x.json", b"{}", "no supported language"),
    ],
)
def test_what_is_not_read_is_counted(repository: Repository, path: str, content: bytes, reason: str) -> None:
    folder = repository({"a.py": "a = 1\n", path: content, "z.py": "z = 1\n"})
    assert read(folder) == (["a.py", "z.py"], {reason: 1})


def test_a_file_of_exactly_one_mebibyte_is_read(repository: Repository) -> None:
    text = "#" * (MAX_FILE_BYTES - 1) + "\n"
    (file,) = read_git_tree(repository({"a.py": text}))
    assert file.text == text


@pytest.mark.parametrize("packed", [False, True])
def test_a_thousand_files_all_come_each_with_its_own_text(repository: Repository, git: Git, packed: bool) -> None:
    files = {f"d{i % 40}/f{i}.py": f"number = {i}\n" * (1 + i % 50) for i in range(1000)}
    folder = repository(files)
    if packed:
        git(folder, "gc", "-q")
    assert {file.path: file.text for file in read_git_tree(folder)} == files


def test_a_reader_that_is_left_early_leaves_no_process_behind(repository: Repository) -> None:
    stream = read_git_tree(repository({f"f{i}.py": f"number = {i}\n" for i in range(500)}))
    next(stream)
    assert running_git()
    del stream
    assert not running_git()


def test_code_behind_a_byte_order_mark_or_with_carriage_returns_reads_as_in_a_folder(repository: Repository) -> None:
    folder = repository({"a.py": b"\xef\xbb\xbfa = 1\r\nb = 2\r\n"})
    (file,) = read_git_tree(folder)
    assert file.text == "a = 1\nb = 2\n"
    assert [file.text] == [one.text for one in read_source_tree(folder)]


# --- Where it is read from --------------------------------------------------------------------------------------------


def test_of_a_folder_inside_a_repository_only_its_part_is_read_under_its_full_path(repository: Repository) -> None:
    folder = repository(FILES)
    assert [(f.path, f.repo) for f in read_git_tree(folder / "src")] == [
        ("src/b.py", "project"),
        ("src/deep/c.js", "project"),
    ]
    (folder / "untracked").mkdir()
    assert read(folder / "untracked") == ([], {})


def test_a_work_tree_reads_its_own_commit_under_the_repositorys_name(repository: Repository, git: Git) -> None:
    folder = repository(FILES)
    git(folder, "worktree", "add", "-q", "-b", "side", folder.parent / "beside")
    (folder.parent / "beside" / "a.py").write_text("side = 1\n")
    git(folder.parent / "beside", "commit", "-q", "-a", "-m", "side")
    first = next(iter(read_git_tree(folder.parent / "beside")))
    assert (first.text, first.repo) == ("side = 1\n", "project")
    assert next(iter(read_git_tree(folder))).text == "a = 1\n"


@pytest.mark.parametrize("name", ["bare.git", "bare"])
def test_a_bare_repository_is_read_and_named_without_its_suffix(repository: Repository, git: Git, name: str) -> None:
    folder = repository(FILES)
    git(folder, "clone", "-q", "--bare", folder, folder.parent / name)
    files = list(read_git_tree(folder.parent / name))
    assert [file.path for file in files] == ["a.py", "src/b.py", "src/deep/c.js"]
    assert {file.repo for file in files} == {"bare"}


def test_a_repository_with_sha256_names_is_read(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q", "--object-format=sha256", "-b", "main")
    (tmp_path / "a.py").write_text(CODE)
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "all")
    (file,) = read_git_tree(tmp_path)
    assert (file.text, len(file.commit)) == (CODE, 64)


def test_a_shallow_clone_is_read(repository: Repository, git: Git, tmp_path: Path) -> None:
    folder = repository(FILES)
    git(folder, "clone", "-q", "--depth=1", f"file://{folder}", tmp_path / "shallow")
    assert read(tmp_path / "shallow")[0] == ["a.py", "src/b.py", "src/deep/c.js"]


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_DIR": "{other}/.git"},
        {"GIT_DIR": "{other}/.git", "GIT_WORK_TREE": "{other}", "GIT_INDEX_FILE": "{other}/.git/index"},
        {"GIT_OBJECT_DIRECTORY": "{other}/.git/objects"},
        {"GIT_NAMESPACE": "elsewhere"},
        {"GIT_CEILING_DIRECTORIES": "{folder}"},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.bare", "GIT_CONFIG_VALUE_0": "nonsense"},
        {"GIT_CONFIG_PARAMETERS": "'core.bare=nonsense'"},
        {"GIT_TRACE": "1", "GIT_TRACE_SETUP": "2"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_the_environment_of_a_hook_that_calls_us_does_not_reach_git(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    folder = repository(FILES)
    other = repository({"wrong.py": "wrong = 1\n"}, name="other")
    for key, value in variables.items():
        monkeypatch.setenv(key, value.format(other=other, folder=folder))
    assert read(folder / "src")[0] == ["src/b.py", "src/deep/c.js"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "not a git repository"),
        (lambda folder: folder.write_text(""), "this is a file"),
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.symlink_to(folder.name), "no such folder"),
    ],
    ids=["a plain folder", "a file", "nothing", "a link to itself"],
)
def test_what_is_no_repository_is_a_clear_error(
    tmp_path: Path, make: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "place")
    with pytest.raises(DataError, match=f"place: {message}") as refused:
        read_git_tree(tmp_path / "place")
    assert refused.value.hint


def test_a_name_too_long_for_any_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x: cannot be read: File name too long"):
        read_git_tree(tmp_path / ("x" * 300))


def test_an_empty_repository_says_that_it_has_no_commit(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(DataError, match="has no commit yet") as refused:
        read_git_tree(tmp_path)
    assert "commit your code" in refused.value.hint


def test_an_empty_commit_is_an_empty_stream(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "nothing")
    assert read(tmp_path) == ([], {})


@pytest.mark.parametrize("revision", ["nowhere", "v9", "0" * 40, "HEAD~7", "HEAD:a.py", "main..main"])
def test_an_unknown_revision_is_refused_by_name(repository: Repository, revision: str) -> None:
    with pytest.raises(DataError) as refused:
        read_git_tree(repository(FILES), revision=revision)
    assert revision in refused.value.message


@pytest.mark.parametrize("revision", ["", "--all", "-h", "--output=stolen"])
def test_a_revision_that_git_would_take_for_an_option_is_never_passed_on(repository: Repository, revision: str) -> None:
    with pytest.raises(DataError, match="is not a revision"):
        read_git_tree(repository(FILES), revision=revision)


def test_without_git_the_message_says_so(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(FILES)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(DataError, match="git is not installed"):
        read_git_tree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_repository_is_read_only_where_the_user_has_trusted_it(
    repository: Repository, git: Git, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = repository(FILES)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 12345, 12345)
    mine = tmp_path / "my-config"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(mine))
    git(folder, "config", "--file", folder / ".git" / "config", "safe.directory", "*")  # it may not vouch for itself
    with pytest.raises(DataError, match="belongs to another user") as refused:
        read_git_tree(folder)
    assert "safe.directory" in refused.value.hint
    git(tmp_path, "config", "--file", mine, "safe.directory", folder)
    assert read(folder)[0] == ["a.py", "src/b.py", "src/deep/c.js"]


# --- Names that hold anything -----------------------------------------------------------------------------------------

ODD_NAMES = {
    b"a\nb.py": "a\nb.py",
    b"a\tb.py": "a\tb.py",
    b"caf\xe9.py": "caf\\xe9.py",
    b"\x1b[31mred\x1b[0m\x07.py": "\x1b[31mred\x1b[0m\x07.py",
    b'quoted "name".py': 'quoted "name".py',
    b"back\\slash.py": "back\\slash.py",
    b"--option.py": "--option.py",
    b":(glob)x.py": ":(glob)x.py",
    "é \U0001d538.py".encode(): "é \U0001d538.py",
    b" .py": " .py",
}


def test_a_name_may_hold_anything(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    entries = [
        ("100644", "blob", blob(git, tmp_path, b"number = %d\n" % number), name)
        for number, name in enumerate(ODD_NAMES)
    ]
    commit_tree(git, tmp_path, *entries)
    assert {file.path: file.text for file in read_git_tree(tmp_path)} == {
        name: f"number = {number}\n" for number, name in enumerate(ODD_NAMES.values())
    }


def test_examples_under_odd_names_can_be_written_and_read_back(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    body = "".join(f"    value_{number} = compute({number})\n" for number in range(10))
    entries = [
        ("100644", "blob", blob(git, tmp_path, f"def function_{number}(compute):\n{body}".encode()), name)
        for number, name in enumerate(ODD_NAMES)
    ]
    commit_tree(git, tmp_path, *entries)
    dataset = build_dataset(read_git_tree(tmp_path), eval_fraction=0)
    assert dataset.train
    write_examples(tmp_path / "examples.jsonl", dataset.train)
    assert tuple(read_examples(tmp_path / "examples.jsonl")) == dataset.train


def test_no_message_can_steer_a_terminal(repository: Repository) -> None:
    folder = repository(FILES, name="pro\x1b[31mject\nline")
    loose_objects = [path for path in (folder / ".git" / "objects").rglob("*") if path.is_file()]
    attempts: list[Callable[[], object]] = [
        lambda: read_git_tree(folder, revision="nowhere"),
        lambda: read_git_tree(folder / "missing"),
        lambda: [path.unlink() for path in loose_objects],  # (and from here on it is damaged)
        lambda: read_git_tree(folder),
    ]
    messages = []
    for attempt in attempts:
        try:
            attempt()
        except DataError as error:
            messages.append(error.message)
    assert len(messages) == 3
    assert all(message.isprintable() and "pro\\x1b[31mject\\nline" in message for message in messages)


def test_names_of_a_damaged_repository_are_escaped_in_the_message(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    name = blob(git, tmp_path, CODE.encode())
    commit_tree(git, tmp_path, ("100644", "blob", name, b"\x1b]0;owned\x07\n.py"))
    rewrite(loose(tmp_path, name), zlib.compress(b"blob %d\0" % len(CODE) + CODE.upper().encode()))
    with pytest.raises(DataError, match=r"the file \\x1b\]0;owned\\x07\\n.py is not what was committed") as refused:
        list(read_git_tree(tmp_path))
    assert refused.value.message.isprintable()


# --- Entries that are no files ----------------------------------------------------------------------------------------


def test_links_and_submodules_are_not_followed(repository: Repository, git: Git, tmp_path: Path) -> None:
    folder = repository({"z.py": "z = 1\n"})
    link = blob(git, folder, b"/etc/passwd")
    other = repository({"inner.py": "inner = 1\n"}, name="project/sub.py")
    commit = git(other, "rev-parse", "HEAD").decode()
    commit_tree(
        git,
        folder,
        ("100644", "blob", blob(git, folder, b"z = 1\n"), b"a.py"),
        ("120000", "blob", link, b"link.py"),
        ("160000", "commit", commit, b"sub.py"),
        ("160000", "commit", "1" * 40, b"void.py"),
        ("100755", "blob", blob(git, folder, b"x = 1\n"), b"x.py"),
    )
    assert read(folder) == (["a.py", "x.py"], {"link": 1, "submodule": 2})


def test_a_replacement_object_is_not_taken_for_the_real_one(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": "real = 1\n"})
    git(folder, "replace", git(folder, "rev-parse", "HEAD:a.py").decode(), blob(git, folder, b"planted = 1\n"))
    assert git(folder, "show", "HEAD:a.py") == b"planted = 1", "the trap does not work"
    (file,) = read_git_tree(folder)
    assert file.text == "real = 1\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_giant_that_hardly_takes_room_is_passed_over(
    repository: Repository, git: Git, tmp_path: Path, packed: bool
) -> None:
    folder = repository({"a.py": "a = 1\n"})
    with (folder / "giant.py").open("wb") as file:
        file.truncate(64 << 20)
    git(folder, "-c", "core.bigFileThreshold=1m", "add", "giant.py")
    git(folder, "commit", "-q", "-m", "giant")
    if packed:
        git(folder, "-c", "core.bigFileThreshold=1m", "gc", "-q")
    assert sum(file.stat().st_size for file in (folder / ".git" / "objects").rglob("*")) < 1 << 20
    assert read(folder) == (["a.py"], {"over 1 MiB": 1})


def test_of_a_giant_nothing_but_its_size_is_read(repository: Repository, git: Git) -> None:
    folder = repository({"a.py": "a = 1\n", "giant.py": "small = 1\n"})
    # Whoever reads beyond the size finds nothing, and fails.
    rewrite(loose(folder, git(folder, "rev-parse", "HEAD:giant.py").decode()), zlib.compress(b"blob 9999999999\0"))
    assert read(folder) == (["a.py"], {"over 1 MiB": 1})


@pytest.mark.slow
def test_folders_that_hold_one_folder_ten_times_over_are_refused(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    entry = ("100644", "blob", blob(git, tmp_path, CODE.encode()), b"a.py")
    for _ in range(9):  # 10⁹ files in nine objects
        mode, kind, name, _ = entry
        listing = b"".join(f"{mode} {kind} {name}\t{letter}.py".encode() + b"\0" for letter in "abcdefghij")
        entry = ("040000", "tree", git(tmp_path, "mktree", "-z", data=listing).decode(), b"x")
    commit_object(git, tmp_path, entry[2])
    with pytest.raises(DataError, match=f"lists over {MAX_ENTRIES:,} files"):
        list(read_git_tree(tmp_path))
    assert not running_git()
