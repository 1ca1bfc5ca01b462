"""The files of one commit, straight from a git repository's objects, whoever made the repository.

Nothing of it is checked out or executed (see `git_process`). A blob's size is asked before its content is, names come
NUL-separated and may hold anything, links and submodules are not followed, and every text is checked against the name
that the commit gives it.
"""

import hashlib
import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from neuralforge.data.git_process import DAMAGED, Git, GitProcess, open_git
from neuralforge.data.language import language_of
from neuralforge.data.source import (
    MAX_FILE_BYTES,
    Selection,
    SourceFile,
    SourceFiles,
    Tally,
    decode_source,
    printable,
    select,
)
from neuralforge_common.errors import DataError

MAX_ENTRIES = 1_000_000
"""More names than this in one commit are a trap (folders that hold one folder ten times over), not a project."""

_BATCH = 60  # names asked for before the first answer is read: 60 of 65 bytes never fill a pipe of 4 KiB


def read_git_tree(
    repository: Path,
    *,
    revision: str = "HEAD",
    since: str | None = None,
    patterns: Iterable[str] = (),
    languages: Iterable[str] = (),
    silence: float = 60.0,
) -> SourceFiles:
    """Stream the wanted files of one commit in git's order; content that appears under two names counts once.

    Of a folder inside a repository, only what the commit holds under it; `path` starts at the repository's root all
    the same. With `since`, a date as git takes it, only files that differ from the newest commit before it (on the
    line of first parents). `silence` is how many seconds git may go without a byte before it is stopped.

    Raises:
        NothingChanged: no file differs.
        DataError: no git, no repository, no commit, another user's repository, a damaged one, a silent one; a date
            that git does not know.
    """
    selection = select(patterns, languages)
    check_repository(repository)
    git = open_git(repository, silence=silence)
    name = repository_name(git)
    tally = Tally()
    commit = commit_named(git, revision)
    changed = None if since is None else _changed(git, commit, since)
    return SourceFiles(_files(git, name, commit, selection, changed, tally), tally)


def check_repository(repository: Path) -> None:
    """Raises DataError where there is no folder that could be a repository."""
    try:
        what = "" if repository.is_dir() else "this is a file" if repository.exists() else "no such folder"
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
    if what:
        raise DataError(f"{printable(str(repository))}: {what}", hint="wanted the folder of a git repository")


def repository_name(git: Git) -> str:
    """The name of the folder that all work trees of a repository share: each of them has the same name."""
    common = Path(git.ask("rev-parse", "--path-format=absolute", "--git-common-dir"))
    return printable(common.parent.name if common.name == ".git" else common.name.removesuffix(".git"))


class NothingChanged(DataError):
    """There is nothing to learn from, and nothing is wrong with that."""


@dataclass(frozen=True, slots=True)
class _Blob:
    name: bytes
    size: int
    path: str


def commit_named(git: Git, revision: str) -> str:
    """The full name of a commit; raises DataError where there is none of that name."""
    hint = "wanted HEAD, a branch, a tag or a commit"
    if not revision or revision.startswith("-"):
        raise DataError(f"{revision!r} is not a revision", hint=hint)
    commit = git.ask("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return commit
    if git.ask("rev-parse", "--verify", "--quiet", revision):
        raise DataError(f"{git.name}: {revision} names no commit that can be read", hint=DAMAGED)
    if revision == "HEAD":
        raise DataError(f"{git.name}: the repository has no commit yet", hint="commit your code, then try again")
    raise DataError(f"{git.name}: no commit named {revision!r}", hint=hint)


def moment_of(git: Git, since: str) -> int:
    """Seconds since 1970 for a date as git takes it; raises DataError where it names no moment of the past."""
    asked = int(time.time())
    answer = git.ask("rev-parse", f"--since={since}").removeprefix("--max-age=")
    moment = int(answer) if answer.isdecimal() else 0
    # Git takes any word for a date; one that it does not know is the moment in which it is asked.
    if not 0 < moment < asked:
        raise DataError(f"{since!r} names no moment of the past", hint="a date as git takes it: 2026-03-01, 1 week ago")
    return moment


def _changed(git: Git, commit: str, since: str) -> frozenset[bytes] | None:
    """The names of all files that differ from the newest commit before that moment; None where there is none."""
    moment = moment_of(git, since)
    base = git.ask("rev-list", "-n", "1", "--first-parent", f"--min-age={moment}", commit)
    if not base:
        if git.ask("rev-parse", "--is-shallow-repository") == "true":
            raise DataError(
                f"{git.name}: the clone is shallow and does not reach back to {_day(moment)}",
                hint="git fetch --unshallow",
            )
        return None
    changed = set()
    # Trees alone are compared: no content is read, so that no attribute has an occasion to name a program.
    quiet = ("--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
    with git.run("diff-tree", "-r", "-z", "--name-only", "--diff-filter=d", *quiet, base, commit) as lister:
        while name := lister.until(b"\0"):
            changed.add(name)
            if len(changed) > MAX_ENTRIES:
                raise DataError(f"{git.name}: over {MAX_ENTRIES:,} files have changed, wanted fewer", hint=DAMAGED)
        lister.succeeded()
    if not changed:
        raise NothingChanged(f"{git.name}: nothing has changed since {_day(moment)} ({since})")
    return frozenset(changed)


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def _files(
    git: Git, repo: str, commit: str, selection: Selection, changed: frozenset[bytes] | None, tally: Tally
) -> Iterator[SourceFile]:
    with closing(_wanted(git, commit, selection, changed, tally)) as wanted, git.run("cat-file", "--batch") as reader:
        while batch := list(islice(wanted, _BATCH)):
            reader.write(b"".join(blob.name + b"\n" for blob in batch))
            for blob in batch:
                text, reason = decode_source(_read(reader, blob, git))
                if reason:
                    tally.skip(reason, blob.path)
                    continue
                language = language_of(blob.path)
                yield SourceFile(path=blob.path, text=text, language=language, repo=repo, commit=commit)


def _wanted(
    git: Git, commit: str, selection: Selection, changed: frozenset[bytes] | None, tally: Tally
) -> Generator[_Blob, None, None]:
    """Go through the commit's names, never their content, and pass on what is worth reading."""
    seen: set[bytes] = set()
    with git.run("ls-tree", "-r", "-l", "-z", "--full-name", commit) as lister:
        while line := lister.until(b"\0"):
            tally.found += 1
            if tally.found > MAX_ENTRIES:
                raise DataError(f"{git.name}: the commit lists over {MAX_ENTRIES:,} files, wanted fewer", hint=DAMAGED)
            details, _, raw_path = line.partition(b"\t")
            mode, _, name, size = details.split()
            path = raw_path.decode("utf-8", "backslashreplace")
            reason = _refused(mode, size, path, selection)
            if not reason and changed is not None and raw_path not in changed:
                reason = "not changed since then"
            if not reason and name in seen:
                reason = "same content as another file"
            if reason:
                tally.skip(reason, path)
            else:
                seen.add(name)
                yield _Blob(name, int(size), path)
        lister.succeeded()


def _refused(mode: bytes, size: bytes, path: str, selection: Selection) -> str:
    if mode == b"120000":
        return "link"
    if mode == b"160000":
        return "submodule"
    if reason := selection.refuses(path):
        return reason
    if not size.isdigit():  # "BAD": a partial clone that never fetched this file
        return "not in this partial clone"
    return "over 1 MiB" if int(size) > MAX_FILE_BYTES else ""


def _read(reader: GitProcess, blob: _Blob, git: Git) -> bytes:
    header = reader.until(b"\n")
    if header != b"%b blob %d" % (blob.name, blob.size):
        if not header:
            reader.succeeded()  # raises with git's own words where it has left some
        got = printable(header.decode("utf-8", "replace"))[:120] or "nothing"
        raise DataError(f"{git.name}: asked git for the file {printable(blob.path)}, got {got}", hint=DAMAGED)
    content = reader.exactly(blob.size + 1)[:-1]
    # Git checks folders and commits against their names, but not files. Now the commit vouches for every text.
    if not is_object(content, b"blob", blob.name):
        raise DataError(f"{git.name}: the file {printable(blob.path)} is not what was committed", hint=DAMAGED)
    return content


def is_object(content: bytes, kind: bytes, name: bytes) -> bool:
    """Whether an object's content is what its name says."""
    digest = hashlib.sha1(usedforsecurity=False) if len(name) == 40 else hashlib.sha256()
    digest.update(b"%b %d\0" % (kind, len(content)) + content)
    return digest.hexdigest().encode() == name
