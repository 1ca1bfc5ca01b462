"""A folder of source code is read in git's order, and nothing in it can harm or hang the reader."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.git import read_git_tree
from neuralforge.data.source import (
    MAX_FILE_BYTES,
    SourceFile,
    SourceFiles,
    decode_source,
    join_sources,
    printable,
    read_source_tree,
    select,
)
from neuralforge_common.errors import DataError

CODE = "print('hello')\n"


def write(root: Path, *paths: str, content: str | bytes = CODE) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def paths_of(files: Iterable[SourceFile]) -> list[str]:
    return [file.path for file in files]


def read(root: Path, **wanted: Iterable[str]) -> tuple[list[str], SourceFiles]:
    stream = read_source_tree(root, **wanted)
    paths = paths_of(stream)
    tally = stream.tally
    assert tally.found == len(paths) + sum(tally.skipped.values()), "every name is either read or passed over"
    return paths, stream


def test_a_file_comes_with_its_text_language_path_and_root(tmp_path: Path) -> None:
    write(tmp_path, "project/src/a.py")
    (file,) = read_source_tree(tmp_path / "project")
    assert file == SourceFile(path="src/a.py", text=CODE, language="python", repo="project")


def test_one_file_may_be_named_itself_whatever_it_is_written_in(tmp_path: Path) -> None:
    write(tmp_path, "project/notes.txt", content="some words\n")
    (file,) = read_source_tree(tmp_path / "project" / "notes.txt")
    assert file == SourceFile(path="notes.txt", text="some words\n", repo="project")


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path, "project/a.py")
    (tmp_path / "link").symlink_to("project")
    assert [(file.path, file.repo) for file in read_source_tree(tmp_path / "link")] == [("a.py", "project")]


# --- What is passed over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x = 1\0\n", "binary"),
        (b"x = '\xe9'\n", "not UTF-8"),
        (b"# " + b"x" * (MAX_FILE_BYTES - 1), "over 1 MiB"),
        (b"", "empty"),
        (b" \n\t\n", "empty"),
    ],
)
def test_a_file_that_is_no_text_is_passed_over_and_counted(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, "good.py")
    write(tmp_path, "bad.py", content=content)
    paths, stream = read(tmp_path)
    assert paths == ["good.py"]
    assert stream.tally.skipped == {reason: 1}


def test_a_file_of_exactly_one_mebibyte_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.py", content=b"# " + b"x" * (MAX_FILE_BYTES - 2))
    assert read(tmp_path)[0] == ["a.py"]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (".venv", "hidden folder"),
        (".git", "hidden folder"),
        *((name, "vendored folder") for name in ("node_modules", "vendor", "vendored", "third_party", "thirdparty")),
        *((name, "vendored folder") for name in ("third-party", "site-packages", "__pycache__", "venv", "Pods")),
    ],
)
def test_other_peoples_code_and_hidden_folders_are_passed_over_whole(tmp_path: Path, folder: str, reason: str) -> None:
    write(tmp_path, "src/a.py", f"src/{folder}/b.py", f"src/{folder}/deep/c.py")
    paths, stream = read(tmp_path)
    assert paths == ["src/a.py"]
    assert stream.tally.skipped == {reason: 1}


@pytest.mark.parametrize("name", ["vendors", "my_vendor", "third_party_api", "environment", "pods"])
def test_a_folder_with_almost_such_a_name_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}/a.py")
    assert read(tmp_path)[0] == [f"{name}/a.py"]


@pytest.mark.parametrize("marker", ["pyvenv.cfg", "CACHEDIR.TAG"])
def test_an_environment_or_cache_of_any_name_is_known_by_its_marker(tmp_path: Path, marker: str) -> None:
    write(tmp_path, "a.py", "stuff/lib/b.py")
    assert read(tmp_path)[0] == ["a.py", "stuff/lib/b.py"]
    write(tmp_path, f"stuff/{marker}")
    paths, stream = read(tmp_path)
    assert paths == ["a.py"]
    assert stream.tally.skipped == {"virtual environment or cache": 1}


def _outside(root: Path) -> Path:
    write(root.parent, "outside/secret.py")
    return root.parent / "outside"


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to a file": (lambda root: (root / "x.py").symlink_to(_outside(root) / "secret.py"), "link"),
    "link to a folder": (lambda root: (root / "x.py").symlink_to(_outside(root)), "link"),
    "link to its own folder": (lambda root: (root / "x.py").symlink_to("."), "link"),
    "link to itself": (lambda root: (root / "x.py").symlink_to("x.py"), "link"),
    "dangling link": (lambda root: (root / "x.py").symlink_to("nowhere"), "link"),
    "pipe": (lambda root: os.mkfifo(root / "x.py"), "neither file nor folder"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", NOT_FILES)
def test_links_are_not_followed_and_pipes_not_opened(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "project"
    write(root, "a.py", "z.py")
    make, reason = NOT_FILES[kind]
    make(root)
    paths, stream = read(root)
    assert paths == ["a.py", "z.py"]
    assert stream.tally.skipped == {reason: 1}


def test_a_socket_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.py")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.py")
        assert read(tmp_path)[1].tally.skipped == {"neither file nor folder": 1}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("exchange", "reason"),
    [
        (lambda file: os.mkfifo(file), "neither file nor folder"),
        (lambda file: file.symlink_to("/etc/passwd"), "unreadable"),
        (lambda file: file.write_bytes(b"#" * (MAX_FILE_BYTES + 1)), "over 1 MiB"),
        (lambda file: file.mkdir(), "unreadable"),
        (lambda file: None, "unreadable"),
    ],
    ids=["pipe", "link", "giant", "folder", "gone"],
)
def test_a_file_exchanged_while_its_neighbour_is_read_does_no_harm(
    tmp_path: Path, exchange: Callable[[Path], object], reason: str
) -> None:
    write(tmp_path, "a.py", "b.py", "c.py")
    stream = read_source_tree(tmp_path)
    assert next(stream).path == "a.py"
    (tmp_path / "b.py").unlink()
    exchange(tmp_path / "b.py")
    assert paths_of(stream) == ["c.py"]
    assert stream.tally.skipped == {reason: 1}


def test_a_folder_that_vanishes_meanwhile_is_counted_and_the_rest_read(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "b/x.py", "c.py")
    stream = read_source_tree(tmp_path)
    next(stream)
    (tmp_path / "b" / "x.py").unlink()
    (tmp_path / "b").rmdir()
    assert paths_of(stream) == ["c.py"]
    assert stream.tally.skipped == {"unreadable": 1}


def test_a_folder_nested_too_deep_for_any_path_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "z.py")
    monkeypatch.chdir(tmp_path)
    for _ in range(30):
        os.mkdir("d" * 200)  # noqa: PTH102 (no path may be this long, so each step is taken from within)
        os.chdir("d" * 200)
    Path("deep.py").write_text(CODE)
    os.chdir(tmp_path)
    paths, stream = read(tmp_path)
    assert paths == ["z.py"]
    assert stream.tally.skipped == {"unreadable": 1}


def test_unsupported_files_are_told_by_suffix(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "b.md", "c.MD", "d.json", "LICENCE", "e.\x1b[31m")
    _, stream = read(tmp_path)
    assert stream.tally.skipped == {"no supported language": 5}
    assert stream.tally.unsupported == {".md": 2, ".json": 1, "no suffix": 1, ".\\x1b[31m": 1}


# --- Which are wanted -------------------------------------------------------------------------------------------------

TREE = ("a.py", "b.js", "docs/c.txt", "src/d.py", "src/deep/e.py", "src/deep/f.java")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*.py"], ["a.py", "src/d.py", "src/deep/e.py"]),
        (["*.txt"], ["docs/c.txt"]),
        (["*.js", "*.java"], ["b.js", "src/deep/f.java"]),
        (["src/*"], ["src/d.py", "src/deep/e.py", "src/deep/f.java"]),
        (["src/**/*.py"], ["src/d.py", "src/deep/e.py"]),
        (["**/*.py"], ["a.py", "src/d.py", "src/deep/e.py"]),
        (["[ab].*"], ["a.py", "b.js"]),
        (["*.PY"], []),
        ([""], ["a.py", "b.js", "src/d.py", "src/deep/e.py", "src/deep/f.java"]),
    ],
)
def test_a_pattern_is_of_the_name_or_with_a_slash_of_the_path(
    tmp_path: Path, patterns: list[str], found: list[str]
) -> None:
    write(tmp_path, *TREE)
    assert read(tmp_path, patterns=patterns)[0] == found


def test_a_language_may_be_asked_for_by_its_short_name(tmp_path: Path) -> None:
    write(tmp_path, *TREE)
    paths, stream = read(tmp_path, languages=["js", "Java"])
    assert paths == ["b.js", "src/deep/f.java"]
    assert stream.tally.skipped == {"other language than asked for": 3, "no supported language": 1}


def test_pattern_and_language_must_both_agree(tmp_path: Path) -> None:
    write(tmp_path, *TREE)
    assert read(tmp_path, patterns=["src/*"], languages=["python"])[0] == ["src/d.py", "src/deep/e.py"]


def test_a_pattern_does_not_open_vendored_folders(tmp_path: Path) -> None:
    write(tmp_path, "vendor/a.py", ".hidden/b.py")
    assert read(tmp_path, patterns=["*.py"])[0] == []
    assert select(["*.py"]).refuses("x/vendor/a.py") == "vendored folder"


def test_an_unknown_language_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'pythn' is not known"):
        read_source_tree(tmp_path / "missing", languages=["pythn"])


# --- Text -------------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_and_carriage_returns_are_taken_out() -> None:
    assert decode_source(b"\xef\xbb\xbfa\r\nb\rc\r\r\nd") == ("a\nb\nc\n\nd", "")


@given(st.text(st.characters(exclude_characters="\0\r\ufeff", exclude_categories=["Cs"])).filter(str.strip))
def test_any_text_with_line_feeds_comes_back_to_the_character(text: str) -> None:
    assert decode_source(text.encode()) == (text, "")


@given(st.binary())
def test_any_bytes_are_text_or_have_a_reason(raw: bytes) -> None:
    text, reason = decode_source(raw)
    assert bool(text.strip()) == (not reason)
    assert "\r" not in text
    assert "\0" not in text


@given(st.text(st.characters()))
def test_a_printable_name_is_one_line_without_controls_and_the_same_again(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable() or not shown
    assert printable(shown) == shown
    assert (shown == name) == (name.isprintable() or not name)


# --- Order and counting -----------------------------------------------------------------------------------------------


def test_files_come_in_the_order_and_with_the_text_that_git_gives(
    repository: Callable[..., Path], tmp_path: Path
) -> None:
    # Names that differ where "/" sorts: a.py, a/b.py, a-b.py, a0.py, … and letters beyond ASCII and beyond UTF-16.
    source = random.Random(3)
    parts = ["a", "a-", "a.b", "a0", "A", "b", "é", "ﬀ", "𝔸", "a b", "_", "~"]
    names = {"/".join(source.choices(parts, k=source.randint(1, 4))) + ".d/x.py" for _ in range(150)}
    names |= {"/".join(source.choices(parts, k=source.randint(1, 3))) + ".py" for _ in range(150)}
    folder = repository({name: f"name = {name!r}\n" for name in names})
    from_tree = [(file.path, file.text, file.language, file.repo) for file in read_source_tree(folder)]
    assert len(from_tree) == len(names)
    assert from_tree == [(file.path, file.text, file.language, file.repo) for file in read_git_tree(folder)]


def test_a_name_that_is_not_utf8_is_read_under_an_escaped_name(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text(CODE)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    paths, _ = read(tmp_path)
    assert paths == ["a.py", "caf\\xe9.py"]


def test_streams_joined_are_read_in_turn_and_counted_together(tmp_path: Path) -> None:
    write(tmp_path, "one/a.py", "one/b.md", "two/c.py", "two/.d/e.py", "two/f.md")
    stream = join_sources([read_source_tree(tmp_path / name) for name in ("two", "one")])
    assert [(file.repo, file.path) for file in stream] == [("two", "c.py"), ("one", "a.py")]
    assert stream.tally.found == 5
    assert stream.tally.skipped == {"no supported language": 2, "hidden folder": 1}
    assert stream.tally.unsupported == {".md": 2}


def test_nothing_joined_is_an_empty_stream() -> None:
    stream = join_sources([])
    assert list(stream) == []
    assert stream.tally.found == 0


# --- Roots that are none ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such folder"),
        ("a.py/below", "no such folder"),
        ("loop", "cannot be read: "),
        ("x" * 300, "cannot be read: "),
        ("pipe.py", "neither a folder nor a file"),
    ],
)
def test_a_root_that_is_no_folder_is_a_clear_error(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=f"{name[:20]}.*: {message}"):
        read_source_tree(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_error_at_the_root_and_counted_below(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "closed/b.py", "closed.py")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "closed.py").chmod(0)
    try:
        assert read(tmp_path)[1].tally.skipped == {"unreadable": 2}
        with pytest.raises(DataError, match="closed: cannot be read: Permission denied"):
            read_source_tree(tmp_path / "closed")
    finally:
        (tmp_path / "closed").chmod(0o700)
