"""What an extraction has found so far: a file that only grows, and is cut back to its last mark when opened again.

One line an example, as in a dataset; after some commits a mark, `{"mark": …}`, with how many commits are done and what
was left out of them. Lines behind the last mark belong to commits that were not finished.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.data.example import Example
from neuralforge.data.jsonl import MAX_LINE_BYTES, decode_example, encode_example
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import DataError

if TYPE_CHECKING:
    from neuralforge.data.extraction import CutCommit

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


class Journal:
    """An open journal; nobody else can open it meanwhile. `commits` are settled, `kept` examples stand in it."""

    def __init__(self, path: Path, key: str, *, resume: bool) -> None:
        """Open or begin it.

        Raises:
            DataError: there is one of another extraction, or another process has it open.
            StorageError: the place cannot be written.
        """
        self.path = path
        self.commits = self.kept = 0
        self.counts = Counts()
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
                self._append(self._header)

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
        examples = 0
        while line := self._file.readline(MAX_LINE_BYTES + 2):
            at += len(line)
            if line.startswith(_MARK) and line.endswith(b"\n"):
                self._believe(json.loads(line)["mark"])
                self.kept += examples
                end, examples = at, 0
            else:
                examples += 1
        return end

    def _believe(self, mark: dict[str, Any]) -> None:
        self.commits = mark["commits"]
        counters = {item.name: Counter(mark[item.name]) for item in fields(Counts) if item.name != "files"}
        self.counts = Counts(files=mark["files"], **counters)

    def settle(self, examples: Iterable[Example], *, commits: int) -> None:
        """Add the examples of some more commits, and mark them done."""
        lines = [encode_example(example, str(self.path)) for example in examples]
        self.commits += commits
        mark = {"commits": self.commits} | {item.name: getattr(self.counts, item.name) for item in fields(Counts)}
        with storage_errors(self.path):
            self._append(b"".join(lines) + json.dumps({"mark": mark}).encode() + b"\n")
        self.kept += len(lines)

    def examples(self) -> Iterator[Example]:
        """All examples up to the last mark, in order."""
        with storage_errors(self.path), self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.startswith(_MARK):
                    yield decode_example(line, f"{self.path}:{number}", complete=line.endswith(b"\n"))

    def close(self) -> None:
        """Keep the file, to go on later."""
        self._file.close()

    def remove(self) -> None:
        """The extraction is done."""
        with storage_errors(self.path):
            self.path.unlink()
        self.close()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
