"""`records.jsonl`: everything that happened, a line each, for people and for plots."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from io import RawIOBase
from pathlib import Path

from neuralforge_common.atomic import storage_errors
from neuralforge_common.key_files import PRIVATE_FILE
from neuralforge_server.events import Event

RECORDS = "records.jsonl"


class Records:
    """An observer that writes every event as a line of `records.jsonl`, for people and for plots.

    A line that a coordinator before this one was killed over is taken away: every line is whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            # Without a buffer: what a full disk refused must not be tried again when the file is closed.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE), "rb+", 0)
            self._file.truncate(_end_of_lines(self._file))
            self._file.seek(0, os.SEEK_END)

    def __call__(self, event: Event) -> None:
        """Write the event."""
        line = json.dumps({"kind": type(event).__name__, **asdict(event)}, default=str) + "\n"
        left = memoryview(line.encode())
        with storage_errors(self._path):
            while left:
                left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _end_of_lines(file: RawIOBase) -> int:
    """Where the last line that is whole ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 4096)
        file.seek(begin)
        found = (file.read(end - begin) or b"").rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
