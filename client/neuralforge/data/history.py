"""What was written in each commit of a history, newest first, in the context in which it was written.

Read as `git` reads one commit: from the repository's objects alone, nothing checked out or executed. Git compares trees
and never content, so that no attribute and no driver is looked at; which lines are new is found out here. Merges bring
nothing of their own, and what a bot writes is nobody's style: both are passed over.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from neuralforge.data.decision import Decision, Watch, nobody
from neuralforge.data.git import MAX_ENTRIES, check_repository, commit_named, is_object, moment_of, repository_name
from neuralforge.data.git_process import DAMAGED, Git, GitProcess, open_git
from neuralforge.data.language import language_of
from neuralforge.data.new_lines import new_lines
from neuralforge.data.source import MAX_FILE_BYTES, Selection, SourceFile, decode_source, printable, select
from neuralforge_common.errors import DataError

MAX_CHANGED = 2_000
"""A commit that changes more files than this was not written by hand: an import, a reformatting, a trap."""

PART = 1 << 20
"""Characters of files after which a commit is handed on, to be continued: what is under way stays bounded."""

RENAMED = 0.5
"""Share of lines that a new file has in common with a deleted one to be that file under another name (as git's -M)."""

_BOT = re.compile(
    r"\[bot\]|^(?:dependabot|renovate|greenkeeper|github-actions|snyk|pre-commit-ci|mergify|pyup|weblate|"
    r"allcontributors|semantic-release)\b|\bbot@|-bot@|noreply@github\.com$",
    re.IGNORECASE,
)
_IDENTITY = re.compile(rb"(?P<name>[^<]*)<(?P<mail>[^>]*)> (?P<time>-?\d{1,18})")
_LONGEST_COMMIT = 1 << 20
_MOST_RENAMES = 40  # pairs of files compared in one commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file as a commit left it: `lines` are the ranges of lines that are new in it, in order.

    `time` is when it was committed, RFC 3339 in UTC; `author` an e-mail address.
    """

    file: SourceFile
    lines: tuple[tuple[int, int], ...]
    time: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRead:
    """What one commit has written that is of use; files left out by reason, and why the whole commit was, if it was.

    A commit of much text comes in parts, the last of which `is_last` and knows what was left out.
    """

    commit: str
    written: tuple[Written, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    passed_over: str = ""
    is_last: bool = True

    @property
    def size(self) -> int:
        """Characters of the files in it."""
        return sum(len(one.file.text) for one in self.written)


class History:
    """A repository's commits, to be read in order; `commits` are their names, newest first.

    `bytes_read` counts the text that was read, former versions of files included.
    """

    def __init__(self, git: Git, name: str, commits: tuple[str, ...], selection: Selection, author: str) -> None:
        self._git = git
        self._selection = selection
        self._author = author.casefold()
        self.name = name
        self.commits = commits
        self.bytes_read = 0

    def read(self, commits: Iterable[str] | None = None, watch: Watch = nobody) -> Iterator[CommitRead]:
        """Go through these commits, or all; every one of them comes, that of a bot with nothing written.

        `watch` is told of each file that is left out.
        """
        names = list(self.commits if commits is None else commits)
        quiet = ("--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
        with (
            self._git.run("diff-tree", "--stdin", "--root", "--always", "-r", "-z", "--raw", *quiet) as differ,
            self._git.run("cat-file", "--batch-check") as sizes,
            self._git.run("cat-file", "--batch") as reader,
        ):
            differ.feed("".join(f"{name}\n" for name in names).encode())
            objects = _Objects(self._git, sizes, reader)
            for name, changes in _changes(differ, names):
                author, mail, moment = objects.commit(name)
                skipped: Counter[str] = Counter()
                if reason := self._passed_over(author, mail, changes):
                    for change in changes:
                        watch(Decision(path=change.path, commit=name, reason=f"commit {reason}"))
                    yield CommitRead(commit=name, passed_over=reason)
                    continue
                stamp = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                written: list[Written] = []
                size = 0
                skip = partial(_skip, skipped, watch, name)
                for file, lines in self._written(name, changes, objects, skip):
                    if size and size + len(file.text) > PART:
                        yield CommitRead(commit=name, written=tuple(written), is_last=False)
                        written, size = [], 0
                    written.append(Written(file=file, lines=lines, time=stamp, author=mail))
                    size += len(file.text)
                self.bytes_read = objects.bytes_read
                yield CommitRead(commit=name, written=tuple(written), skipped=skipped)

    def _passed_over(self, author: str, mail: str, changes: list[_Change]) -> str:
        if _BOT.search(author) or _BOT.search(mail):
            return "by a bot"
        if self._author and self._author not in (author.casefold(), mail.casefold()):
            return "by another author"
        return "changes too many files" if len(changes) > MAX_CHANGED else ""

    def _written(
        self, commit: str, changes: list[_Change], objects: _Objects, skip: Callable[[str, str], None]
    ) -> Iterator[tuple[SourceFile, tuple[tuple[int, int], ...]]]:
        gone = _Gone([change for change in changes if change.is_gone and not self._selection.refuses(change.path)])
        for change in changes:
            if change.is_gone:
                continue
            if reason := change.refused or self._selection.refuses(change.path):
                skip(reason, change.path)
                continue
            text, reason = objects.text(change.new, change.path)
            if reason:
                skip(reason, change.path)
                continue
            lines = text.split("\n")
            before = objects.text(change.old, change.path)[0] if change.old else gone.nearest(lines, objects)
            added = new_lines(before.split("\n") if before else [], lines)
            if not added:
                skip("nothing written", change.path)
                continue
            language = language_of(change.path)
            yield (
                SourceFile(path=change.path, text=text, language=language, repo=self.name, commit=commit),
                added,
            )


def open_history(
    repository: Path,
    *,
    revision: str = "HEAD",
    since: str | None = None,
    author: str = "",
    first_parent: bool = False,
    patterns: Iterable[str] = (),
    languages: Iterable[str] = (),
    silence: float = 60.0,
) -> History:
    """Everything that leads to one commit, merges left out; `author` is a whole e-mail address or name.

    With `first_parent` only the line that the branch itself went. `since` is a date as git takes it.

    Raises:
        DataError: as of `read_git_tree`; or there is no such commit.
    """
    selection = select(patterns, languages)
    check_repository(repository)
    git = open_git(repository, silence=silence)
    commit = commit_named(git, revision)
    limits = [] if since is None else [f"--max-age={moment_of(git, since)}"]
    if first_parent:
        limits.append("--first-parent")
    names: list[str] = []
    with git.run("rev-list", "--topo-order", "--no-merges", *limits, commit) as lister:
        while name := lister.until(b"\n"):
            names.append(name.decode("ascii", "replace"))
            if len(names) > MAX_ENTRIES:
                raise DataError(f"{git.name}: over {MAX_ENTRIES:,} commits, wanted fewer", hint="--since DATE")
        lister.succeeded()
    if not names:
        what = f" since {since}" if since else ""
        raise DataError(f"{git.name}: no commits{what} to learn from", hint="another --since, or none")
    return History(git, repository_name(git), tuple(names), selection, author)


@dataclass(frozen=True, slots=True)
class _Change:
    """One file between a commit and its parent; `old` and `new` are blobs' names, empty where there is none."""

    path: str
    old: bytes
    new: bytes
    refused: str = ""

    @property
    def is_gone(self) -> bool:
        return not self.new


def _skip(skipped: Counter[str], watch: Watch, commit: str, reason: str, path: str) -> None:
    skipped[reason] += 1
    watch(Decision(path=path, commit=commit, reason=reason))


class _Gone:
    """The files that a commit deleted: one of them may be a new file's former self."""

    def __init__(self, changes: list[_Change]) -> None:
        self._left = changes[:_MOST_RENAMES]
        self._texts: dict[bytes, str] = {}
        self._compared = 0

    def nearest(self, lines: list[str], objects: _Objects) -> str:
        """The text of the deleted file that shares most lines with this new one, if it shares enough; else ""."""
        wanted = {line for line in lines if line.strip()}
        best, share = "", RENAMED
        for change in self._left:
            if self._compared >= _MOST_RENAMES:
                break
            self._compared += 1
            if change.old not in self._texts:
                self._texts[change.old] = objects.text(change.old, change.path)[0]
            text = self._texts[change.old]
            there = {line for line in text.split("\n") if line.strip()}
            common = len(wanted & there) / max(1, len(wanted), len(there))
            if common >= share:
                best, share = text, common
        return best


class _Objects:
    """Commits and files by their names; sizes are asked first."""

    def __init__(self, git: Git, sizes: GitProcess, reader: GitProcess) -> None:
        self._git, self._sizes, self._reader = git, sizes, reader
        self.bytes_read = 0

    def commit(self, name: str) -> tuple[str, str, int]:
        """Author, e-mail address and the time of the commit, in seconds."""
        content, reason = self._content(name.encode(), b"commit", _LONGEST_COMMIT)
        if reason:
            return "", "", 0
        head = content.partition(b"\n\n")[0].split(b"\n")
        author = next((_IDENTITY.match(line[7:]) for line in head if line.startswith(b"author ")), None)
        committer = next((_IDENTITY.match(line[10:]) for line in head if line.startswith(b"committer ")), None)
        named = author or committer
        if named is None or committer is None:
            return "", "", 0
        moment = int(committer["time"])
        # Nobody wrote code before 1970 or long after today: such a time is no help and breaks calendars.
        moment = moment if 0 <= moment <= time.time() + 86_400 * 3650 else 0
        decoded = [printable(named[part].decode("utf-8", "replace").strip()) for part in ("name", "mail")]
        return decoded[0], decoded[1], moment

    def text(self, name: bytes, path: str) -> tuple[str, str]:
        """The text of a file, and "" or why it has none."""
        content, reason = self._content(name, b"blob", MAX_FILE_BYTES)
        if reason:
            return "", reason
        self.bytes_read += len(content)
        return decode_source(content)

    def _content(self, name: bytes, kind: bytes, most: int) -> tuple[bytes, str]:
        self._sizes.write(name + b"\n")
        answer = self._sizes.until(b"\n").split(b" ")
        if len(answer) != 3 or answer[1] != kind or not answer[2].isdigit():
            return b"", "not in this partial clone"
        size = int(answer[2])
        if size > most:
            return b"", "over 1 MiB"
        self._reader.write(name + b"\n")
        header = self._reader.until(b"\n")
        if header != b"%b %b %d" % (name, kind, size):
            got = printable(header.decode("utf-8", "replace"))[:120] or "nothing"
            raise DataError(f"{self._git.name}: asked git for {name.decode()}, got {got}", hint=DAMAGED)
        content = self._reader.exactly(size + 1)[:-1]
        if not is_object(content, kind, name):
            raise DataError(f"{self._git.name}: {name.decode()} is not what was committed", hint=DAMAGED)
        return content, ""


def _changes(differ: GitProcess, names: list[str]) -> Iterator[tuple[str, list[_Change]]]:
    """Each commit with its changes, in order; `diff-tree --always` names every commit before its files."""
    expected = iter(names)
    current, changes = "", list[_Change]()
    entries = 0
    while token := differ.until(b"\0"):
        if token.startswith(b":"):
            entries += 1
            if entries > MAX_ENTRIES:
                raise DataError(f"the commit {current} changes over {MAX_ENTRIES:,} files", hint=DAMAGED)
            path = differ.until(b"\0").decode("utf-8", "backslashreplace")
            if len(changes) <= MAX_CHANGED:
                changes.append(_change(token, path))
            continue
        if current:
            yield current, changes
        current, changes, entries = next(expected), [], 0
        if token.strip() != current.encode():
            got = printable(token.decode("utf-8", "replace"))[:80]
            raise DataError(f"asked git for the commit {current}, got {got}", hint=DAMAGED)
    differ.succeeded()
    if current:
        yield current, changes


def _change(token: bytes, path: str) -> _Change:
    _, mode, old, new, _ = token.split(b" ")
    refused = {b"120000": "link", b"160000": "submodule"}.get(mode, "")
    return _Change(path, b"" if not old.strip(b"0") else old, b"" if not new.strip(b"0") else new, refused)
