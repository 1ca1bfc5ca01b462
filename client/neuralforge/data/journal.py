"""What an extraction has found so far: a file that only grows, and is cut back to its last mark when opened again.

One line an example, as in a dataset; after some commits a mark, `{"mark": …}`, with how many commits are done and what
was left out of them. Lines behind the last mark belong to commits that were not finished.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.data.example import Example
from neuralforge.data.jsonl import MAX_LINE_BYTES, decode_example
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import DataError

if TYPE_CHECKING:
    from neuralforge.data.cutting import CutCommit

_MARK = b'{"mark": '


@dataclass(slots=True, kw_only=True)
class Counts:
    """What was met up to the last mark."""

    files: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    without_grammar: Counter[str] = field(default_factory=Counter)

    def add(self, cut: CutCommit) -> None:
        """Count a commit."""
        self.files += cut.files
        if cut.passed_over:
            self.passed_over[cut.passed_over] += 1
        self.skipped += cut.skipped
        self.dropped += cut.dropped
        self.redacted += cut.redacted
        self.without_grammar += cut.without_grammar


class Origins:
    """Which file and which language each example of a journal is of, in order: a number each, by first appearance."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], int] = {}
        self.languages: dict[str, int] = {}
        self.file, self.language = array("Q"), array("Q")

    def add(self, repo: str, path: str, language: str) -> None:
        """One more."""
        self.file.append(self.files.setdefault((repo, path), len(self.files)))
        self.language.append(self.languages.setdefault(language, len(self.languages)))


class Journal:
    """An open journal; nobody else can open it meanwhile. `commits` are settled, `kept` examples stand in it.

    `origins` are those of the examples.
    """

    def __init__(self, path: Path, key: str, *, resume: bool) -> None:
        """Open or begin it.

        Raises:
            DataError: there is one of another extraction, or another process has it open.
            StorageError: the place cannot be written.
        """
        self.path = path
        self.commits = 0
        self.counts = Counts()
        self.origins = Origins()
        self._header = json.dumps({"mark": {"journal": 1, "key": key}}).encode() + b"\n"
        with storage_errors(path):
            # Private: what is in it is code, redacted or not.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._file = os.fdopen(descriptor, "r+b")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.close()
                raise DataError(
                    f"{path}: another extraction is writing it", hint="wait, or another --output"
                ) from error
            end = self._read(resume)
            self._file.truncate(end)
            self._file.seek(end)
            if not end:
                self._file.write(self._header)
                self._file.flush()
        for example in self.examples():
            self.origins.add(example.repo, example.path, example.language)

    @property
    def kept(self) -> int:
        """How many examples stand in it."""
        return len(self.origins.file)

    def _read(self, resume: bool) -> int:
        """Where the last mark ends; 0 to begin anew."""
        if not resume:
            return 0
        first = self._file.readline(MAX_LINE_BYTES)
        if not first:
            return 0
        if first != self._header:
            raise DataError(
                f"{self.path} belongs to another extraction: commits or options differ",
                hint="leave --resume out to begin anew",
            )
        end = at = len(first)
        while line := self._file.readline(MAX_LINE_BYTES + 2):
            at += len(line)
            if line.startswith(_MARK) and line.endswith(b"\n"):
                self._believe(json.loads(line)["mark"])
                end = at
        return end

    def _believe(self, mark: dict[str, Any]) -> None:
        self.commits = mark["commits"]
        counters = {item.name: Counter(mark[item.name]) for item in fields(Counts) if item.name != "files"}
        self.counts = Counts(files=mark["files"], **counters)

    def add(self, repo: str, path: str, language: str, line: bytes) -> None:
        """One more example, as a line of JSON; it counts once its commit is settled."""
        with storage_errors(self.path):
            self._file.write(line)
        self.origins.add(repo, path, language)

    def settle(self, *, commits: int) -> None:
        """Mark some more commits done: what was added since the last mark is theirs."""
        self.commits += commits
        mark = {"commits": self.commits} | {item.name: getattr(self.counts, item.name) for item in fields(Counts)}
        with storage_errors(self.path):
            self._file.write(json.dumps({"mark": mark}).encode() + b"\n")
            self._file.flush()

    def lines(self) -> Iterator[bytes]:
        """All examples up to the last mark, in order, each as it was added."""
        with storage_errors(self.path), self.path.open("rb") as stream:
            yield from (line for line in stream if not line.startswith(_MARK))

    def examples(self) -> Iterator[Example]:
        """The same as examples."""
        for number, line in enumerate(self.lines(), start=1):
            yield decode_example(line, f"{self.path}: example {number}", complete=line.endswith(b"\n"))

    def close(self) -> None:
        """Keep the file, to go on later."""
        self._file.close()

    def remove(self) -> None:
        """The extraction is done."""
        with storage_errors(self.path):
            self.path.unlink()
        self.close()
