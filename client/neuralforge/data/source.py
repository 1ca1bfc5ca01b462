"""Source files of a folder, read so that nothing in the folder can harm the reader."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from neuralforge.data.language import canonical_languages, language_of
from neuralforge_common.errors import DataError

MAX_FILE_BYTES = 1 << 20
"""A larger file was not written by hand; it is not opened."""

# Other people's code and what tools leave behind, by folder name. Environments and caches under any other name are
# known by the marker files that their standards prescribe (PEP 405; https://bford.info/cachedir/).
_FOREIGN_FOLDER = re.compile(
    "node_modules|bower_components|jspm_packages|vendor(?:ed)?|third[_-]?party|site-packages|dist-packages|"
    "__pycache__|__pypackages__|venv|virtualenv|Pods|Carthage"
)
_MARKER_FILES = ("pyvenv.cfg", "CACHEDIR.TAG")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One text file: `text` with line feeds only, `path` relative to the root of `repo`, slash-separated.

    `license` is what its repository stands under, as an SPDX identifier, where somebody has looked.
    """

    path: str
    text: str
    language: str = ""
    repo: str = ""
    commit: str = ""
    license: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a reader met: `found` names, how many it passed over for which reason, and those in no language we read.

    A folder that is passed over whole counts once. `unsupported` is by file name suffix.
    """

    found: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    unsupported: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: str, path: str) -> None:
        """Count one name as passed over."""
        self.skipped[reason] += 1
        if reason == UNSUPPORTED:
            self.unsupported[printable(PurePosixPath(path).suffix.lower())[:24] or "no suffix"] += 1


UNSUPPORTED = "no supported language"


class SourceFiles(Iterator[SourceFile]):
    """A stream of source files; its `tally` grows as the stream is read and is complete at its end."""

    def __init__(self, files: Iterator[SourceFile], tally: Tally) -> None:
        self._files = files
        self.tally = tally

    def __next__(self) -> SourceFile:
        return next(self._files)


def join_sources(streams: Sequence[SourceFiles]) -> SourceFiles:
    """Several streams one after the other, counted together."""
    total = Tally()

    def files() -> Iterator[SourceFile]:
        for stream in streams:
            yield from stream
            total.found += stream.tally.found
            total.skipped += stream.tally.skipped
            total.unsupported += stream.tally.unsupported

    return SourceFiles(files(), total)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which paths are wanted: by shell pattern, by language, and never other people's code."""

    patterns: tuple[str, ...]
    languages: frozenset[str]

    def refuses(self, path: str) -> str:
        """Why the file at this path is not wanted, or "" if it is; its content is not looked at."""
        *folders, name = path.split("/")
        for folder in folders:
            if reason := folder_refused(folder):
                return reason
        if self.patterns and not any(_matches(path, name, pattern) for pattern in self.patterns):
            return "other name than asked for"
        language = language_of(path)
        # A pattern that names files asks for them, whatever they are written in.
        if not language and not self.patterns:
            return UNSUPPORTED
        if self.languages and language not in self.languages:
            return "other language than asked for"
        return ""


def select(patterns: Iterable[str] = (), languages: Iterable[str] = ()) -> Selection:
    """A selection from what a person typed: patterns as in `*.java`, language names or short names.

    A pattern with a slash is matched against the whole path, any other against the file's name. DataError for an
    unknown language.
    """
    return Selection(tuple(pattern for pattern in patterns if pattern), canonical_languages(languages))


def folder_refused(name: str) -> str:
    """Why nothing under a folder of this name is wanted, or ""."""
    if name.startswith("."):
        return "hidden folder"
    return "vendored folder" if _FOREIGN_FOLDER.fullmatch(name) else ""


def decode_source(raw: bytes) -> tuple[str, str]:
    """The text of a file with line feeds only, and "" or the reason why it has none."""
    if b"\0" in raw:
        return "", "binary"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", "not UTF-8"
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text, "" if text.strip() else "empty"


def printable(text: str) -> str:
    """A name as one line that cannot steer a terminal: control and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def read_source_tree(root: Path, *, patterns: Iterable[str] = (), languages: Iterable[str] = ()) -> SourceFiles:
    """Stream the wanted files under a folder (or one file) in the order in which git would list them.

    Links, devices and pipes are not followed or opened; hidden and vendored folders, virtual environments, caches,
    binary files, files over `MAX_FILE_BYTES` and files that are not UTF-8 are passed over and counted.

    Raises:
        DataError: there is nothing at `root`, it may not be read, or a language is unknown.
    """
    selection = select(patterns, languages)
    tally = Tally()
    top = Path(os.path.realpath(root))  # (resolve() raises RuntimeError for a link to itself)
    try:
        mode = top.stat().st_mode
        first = _entries(top) if stat.S_ISDIR(mode) else []
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{root}: no such folder", hint="wanted a folder of source code") from error
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error.strerror or error}") from error
    if stat.S_ISREG(mode):
        return SourceFiles(_read_file(top, top.name, top.parent.name, tally), tally)
    if not stat.S_ISDIR(mode):
        raise DataError(f"{root}: neither a folder nor a file")
    return SourceFiles(_walk(top, first, selection, tally), tally)


def _walk(top: Path, first: list[os.DirEntry[str]], selection: Selection, tally: Tally) -> Iterator[SourceFile]:
    waiting = [("", entry) for entry in reversed(first)]
    while waiting:
        prefix, entry = waiting.pop()
        path = prefix + _text_name(entry.name)
        tally.found += 1
        if entry.is_symlink():
            tally.skip("link", path)
        elif entry.is_dir(follow_symlinks=False):
            try:
                reason = folder_refused(entry.name) or _marked(entry.path)
                inside = [] if reason else _entries(Path(entry.path))
            except OSError:
                reason = "unreadable"
            if reason:
                tally.skip(reason, path)
            else:
                tally.found -= 1
                waiting += [(f"{path}/", one) for one in reversed(inside)]
        elif not entry.is_file(follow_symlinks=False):
            tally.skip("neither file nor folder", path)
        elif reason := selection.refuses(path):
            tally.skip(reason, path)
        else:
            tally.found -= 1
            yield from _read_file(Path(entry.path), path, top.name, tally)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=_git_order)


def _git_order(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"")


def _marked(folder: str) -> str:
    if any(Path(folder, marker).is_file() for marker in _MARKER_FILES):
        return "virtual environment or cache"
    return ""


def _read_file(file: Path, path: str, repo: str, tally: Tally) -> Iterator[SourceFile]:
    tally.found += 1
    try:
        raw, reason = _read_regular(file)
    except OSError:
        raw, reason = b"", "unreadable"
    text = ""
    if not reason:
        text, reason = decode_source(raw)
    if reason:
        tally.skip(reason, path)
    else:
        yield SourceFile(path=path, text=text, language=language_of(path), repo=repo)


def _read_regular(file: Path) -> tuple[bytes, str]:
    # The name was a regular file when the folder was listed; it may have been exchanged since. NOFOLLOW refuses a
    # link, NONBLOCK keeps a pipe from hanging the open, and only what was opened is asked for its kind and size.
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            return b"", "neither file nor folder"
        if status.st_size > MAX_FILE_BYTES:
            return b"", "over 1 MiB"
        raw = stream.read(MAX_FILE_BYTES + 1)
    return (raw, "") if len(raw) <= MAX_FILE_BYTES else (b"", "over 1 MiB")


def _text_name(name: str) -> str:
    # Python hands over the bytes of a name that is not UTF-8 as lone surrogates, which no JSON file can hold.
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _matches(path: str, name: str, pattern: str) -> bool:
    if "/" not in pattern:
        return fnmatchcase(name, pattern)
    # "**/" may also stand for no folder at all; fnmatch's "*" already crosses slashes.
    return fnmatchcase(path, pattern) or fnmatchcase(path, pattern.replace("**/", ""))
