"""Texts that say the same, exactly or nearly: the first is kept.

Near means a Jaccard similarity of at least 0.8 between the sets of shingles. Candidates come from MinHash and
locality-sensitive hashing (Broder 1997, "On the resemblance and containment of documents"), which miss a pair at the
threshold once in ten million; each candidate is then decided on the sets themselves, not on MinHash's estimate. After
Lee et al. 2022, "Deduplicating training data makes language models better".
"""

import re
from collections.abc import Callable, Sequence
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


class Deduplicator:
    """Tells of each text in turn whether it repeats an earlier one that was kept."""

    def __init__(self, shingles: Callable[[str], Sequence[str]] | None = None) -> None:
        self._shingles = shingles or token_shingles
        self._exact: set[bytes] = set()
        self._index = RMinHashLSH(THRESHOLD, _VALUES, _BANDS)
        self._kept: list[NDArray[np.uint64]] = []

    def add(self, text: str) -> str:
        """Say "exact" or "near" of a text that repeats a kept one, "" of any other, which is kept from now on."""
        shingles = self._shingles(text)
        name = blake2b("\0".join(shingles).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if name in self._exact:
            return "exact"
        self._exact.add(name)
        hashes = np.unique(np.array(RMinHash.hash_token_sets([shingles])[0], dtype=np.uint64))
        sketch = RMinHash(_VALUES, _SEED)
        sketch.update(shingles)  # (rensa's batch constructors wake a thread pool: ten times the time for one text)
        if any(_jaccard(hashes, self._kept[key]) >= THRESHOLD for key in self._index.query(sketch)):
            return "near"
        self._index.insert(len(self._kept), sketch)
        self._kept.append(hashes)
        return ""


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
