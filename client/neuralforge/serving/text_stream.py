"""Tokens back to text while they come: no half characters, no lost spaces, and an end at a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 4
"""Tokens that a character of UTF-8 can be spread over; what is still unfinished then never will be finished."""


class TextStream:
    """Turns tokens into text one by one; the tokens before them decide whether a first space is shown."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-_LONGEST_CHARACTER:])
        self._start, self._read = 0, len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._text(self._start, len(self._ids))
        if text.endswith(_UNFINISHED) and len(self._ids) - self._read < _LONGEST_CHARACTER:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What is left, finished or not."""
        return self._take(self._text(self._start, len(self._ids)))

    def _take(self, text: str) -> str:
        new = text[len(self._text(self._start, self._read)) :]
        self._start, self._read = self._read, len(self._ids)
        return new

    def _text(self, start: int, stop: int) -> str:
        if start == stop:
            return ""
        ids = self._ids[start:stop]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Lets text through up to the first stop string, wherever the borders of tokens are."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that no stop string can take back any more."""
        if self.found:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            return self._release(min(places))
        return self._release(len(self._held) - self._hopeful())

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        return "" if self.found else self._release(len(self._held))

    def _hopeful(self) -> int:
        """The length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _release(self, size: int) -> str:
        released, self._held = self._held[:size], self._held[size:]
        return released
