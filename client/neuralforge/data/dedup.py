"""Texts that say the same, exactly or nearly: the first is kept.

Near means a Jaccard similarity of at least 0.8 between the sets of shingles. Candidates come from MinHash and
locality-sensitive hashing (Broder 1997, "On the resemblance and containment of documents"), which miss a pair at the
threshold once in ten million; each candidate is then decided on the sets themselves, not on MinHash's estimate. After
Lee et al. 2022, "Deduplicating training data makes language models better".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash, RMinHashLSH

from neuralforge.data.example import Example

THRESHOLD = 0.8
"""Jaccard similarity from which two texts are near-duplicates."""

_SHINGLE = 5  # tokens in a row
# A pair at 0.8 shares no band of 4 values out of 32 with probability (1 - 0.8**4)**32 < 1e-7.
_VALUES, _BANDS = 128, 32
_SEED = 1
_TOKEN = re.compile(r"\w+|[^\w\s]")
_CONTEXT = 120


@dataclass(frozen=True, slots=True)
class _Print:
    """What of a text is compared: all of it, its set of shingles, and that set's sketch."""

    name: bytes
    hashes: NDArray[np.uint64]
    sketch: RMinHash


class Deduplicator:
    """Tells of each text in turn whether it repeats an earlier one that was kept."""

    def __init__(self, shingles: Callable[[str], Sequence[str]] | None = None) -> None:
        self._shingles = shingles or token_shingles
        self._exact: dict[bytes, int] = {}
        self._index = RMinHashLSH(THRESHOLD, _VALUES, _BANDS)
        self._kept: list[NDArray[np.uint64]] = []
        self.twin = 0
        """Which of the kept texts, counted from 0, the last one that repeated something repeats."""

    def add(self, text: str) -> str:
        """Say "exact" or "near" of a text that repeats a kept one, "" of any other, which is kept from now on."""
        seen = self._print(text)
        if repeats := self._repeats(seen):
            self._exact[seen.name] = self.twin
            return repeats
        self._exact[seen.name] = len(self._kept)
        self._index.insert(len(self._kept), seen.sketch)
        self._kept.append(seen.hashes)
        return ""

    def find(self, text: str) -> str:
        """Say the same as `add`, and keep nothing."""
        return self._repeats(self._print(text))

    def _repeats(self, seen: _Print) -> str:
        if seen.name in self._exact:
            self.twin = self._exact[seen.name]
            return "exact"
        for key in self._index.query(seen.sketch):
            if _jaccard(seen.hashes, self._kept[key]) >= THRESHOLD:
                self.twin = key
                return "near"
        return ""

    def _print(self, text: str) -> _Print:
        shingles = self._shingles(text)
        name = blake2b("\0".join(shingles).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        hashes = np.unique(np.array(RMinHash.hash_token_sets([shingles])[0], dtype=np.uint64))
        sketch = RMinHash(_VALUES, _SEED)
        sketch.update(shingles)  # (rensa's batch constructors wake a thread pool: ten times the time for one text)
        return _Print(name, hashes, sketch)


def token_shingles(text: str) -> list[str]:
    """Runs of five tokens; a shorter text is one shingle. White space does not count."""
    tokens = _TOKEN.findall(text)
    if len(tokens) <= _SHINGLE:
        return [" ".join(tokens)]
    return [" ".join(run) for run in zip(*(tokens[i:] for i in range(_SHINGLE)), strict=False)]


def line_shingles(text: str) -> list[str]:
    """Lines without indentation: coarser than tokens, and fast enough for whole files."""
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def example_text(example: Example) -> str:
    """What makes an example the same as another: its completion, behind the line that it continues.

    Not the whole context: neighbours in a file share most of theirs, and it is the answer that leaks.
    """
    tail = example.context[-_CONTEXT:].rstrip()
    return f"{tail[tail.rfind(chr(10)) + 1 :]}\n{example.completion}"


def _jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    small, large = sorted((len(first), len(second)))
    if small < THRESHOLD * large:  # sets of such different sizes cannot be that similar
        return 0.0
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (small + large - shared)
