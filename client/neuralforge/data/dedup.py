"""Texts that say the same, exactly or nearly: the first is kept.

Near means a Jaccard similarity of at least 0.8 between the sets of shingles. Candidates come from MinHash and
locality-sensitive hashing (Broder 1997, "On the resemblance and containment of documents"), which miss a pair at the
threshold once in ten million; each candidate is then decided on the sets themselves, not on MinHash's estimate. After
Lee et al. 2022, "Deduplicating training data makes language models better".

What of a text is compared is its print. Prints are made anywhere and travel between processes; only the looking up has
an order.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, chain

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
_TOKEN = re.compile(r"\w+|\S")
_ASCII_TOKEN = re.compile(r"[0-9A-Za-z_]+|\S")  # the same for such a text, in two thirds of the time
_CONTEXT = 120


@dataclass(frozen=True)  # (slots would make pickling it ten times as slow)
class Print:
    """What of a text is compared: all of it, its set of shingles, and that set's sketch.

    `hashes` are 64-bit numbers in ascending order, each once; `sketch` is the state of a MinHash.
    """

    name: bytes
    hashes: bytes
    sketch: bytes


class Deduplicator:
    """Tells of each text in turn whether it repeats an earlier one that was kept."""

    def __init__(self, shingles: Callable[[str], Sequence[str]] | None = None) -> None:
        self._shingles = shingles
        self._exact: dict[bytes, int] = {}
        self._index = RMinHashLSH(THRESHOLD, _VALUES, _BANDS)
        self._kept: list[bytes] = []
        self.twin = 0
        """Which of the kept texts, counted from 0, the last one that repeated something repeats."""

    def add(self, text: str) -> str:
        """Say "exact" or "near" of a text that repeats a kept one, "" of any other, which is kept from now on."""
        return self.add_print(self._print(text))

    def add_print(self, seen: Print) -> str:
        """The same of a text's print."""
        sketch = _sketch(seen)
        if repeats := self._repeats(seen, sketch):
            self._exact[seen.name] = self.twin
            return repeats
        self._exact[seen.name] = len(self._kept)
        self._index.insert(len(self._kept), sketch)
        self._kept.append(seen.hashes)
        return ""

    def find(self, text: str) -> str:
        """Say the same as `add`, and keep nothing."""
        seen = self._print(text)
        return self._repeats(seen, _sketch(seen))

    def _print(self, text: str) -> Print:
        return token_prints([text])[0] if self._shingles is None else _print_of(self._shingles(text))

    def _repeats(self, seen: Print, sketch: RMinHash) -> str:
        if seen.name in self._exact:
            self.twin = self._exact[seen.name]
            return "exact"
        for key in self._index.query(sketch):
            if _jaccard(seen.hashes, self._kept[key]) >= THRESHOLD:
                self.twin = key
                return "near"
        return ""


# --- Prints -----------------------------------------------------------------------------------------------------------


def token_prints(texts: Sequence[str]) -> list[Print]:
    """The prints of texts by runs of five tokens; a shorter text is one shingle. White space does not count.

    Many at once take half the time of each alone.
    """
    tokens = [(_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text) or [""] for text in texts]
    # A run's number is made of its tokens' numbers: putting the runs together as texts takes longer than all the rest.
    numbers = _mixed(np.array(RMinHash.hash_token_sets([list(chain.from_iterable(tokens))])[0], dtype=np.uint64))
    count = len(numbers) - _SHINGLE + 1
    runs = np.zeros(max(count, 0), dtype=np.uint64)
    for place in range(_SHINGLE if count > 0 else 0):
        runs += numbers[place : place + count] * _FACTORS[place]
    _mixed(runs)
    ends = list(accumulate(map(len, tokens)))
    spans = [
        slice(end - len(words), max(end - len(words), end - _SHINGLE + 1))
        for words, end in zip(tokens, ends, strict=True)
    ]
    for span in spans:
        runs[span].sort()
    # Of equal neighbours the first, and the first of each text whatever stands before it.
    first = np.ones(len(runs), dtype=np.bool_)
    np.not_equal(runs[1:], runs[:-1], out=first[1:])
    first[[span.start for span in spans if span.start < span.stop]] = True
    prints: list[Print] = []
    for words, span in zip(tokens, spans, strict=True):
        name = _name(" ".join(words))
        hashes = runs[span][first[span]] if len(words) >= _SHINGLE else np.frombuffer(name[:8], dtype=np.uint64)
        prints.append(_printed(name, hashes))
    return prints


def _print_of(shingles: Sequence[str]) -> Print:
    hashes = np.array(RMinHash.hash_token_sets([shingles])[0], dtype=np.uint64)
    return _printed(_name("\0".join(shingles)), np.unique(hashes))


def _printed(name: bytes, hashes: NDArray[np.uint64]) -> Print:
    sketch = RMinHash(_VALUES, _SEED)
    # As bytes, eight each. (numpy cuts zeros off the end of such: they stay apart, as all are of one length with them.)
    sketch.update(hashes.view("S8").tolist())
    return Print(name, hashes.tobytes(), sketch.__getstate__())


def _name(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD],
    dtype=np.uint64,
)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The numbers themselves, each scattered over all 64 bits (the end of Steele et al.'s SplitMix64)."""
    for shift, factor in ((30, _FACTORS[1]), (27, _FACTORS[2])):
        numbers ^= numbers >> np.uint64(shift)
        numbers *= factor
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _sketch(seen: Print) -> RMinHash:
    sketch = RMinHash(_VALUES, _SEED)
    sketch.__setstate__(seen.sketch)
    return sketch


def line_shingles(text: str) -> list[str]:
    """Lines without indentation: coarser than tokens, and fast enough for whole files."""
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def example_text(example: Example) -> str:
    """What makes an example the same as another: its completion, behind the line that it continues.

    Not the whole context: neighbours in a file share most of theirs, and it is the answer that leaks.
    """
    tail = example.context[-_CONTEXT:].rstrip()
    return f"{tail[tail.rfind(chr(10)) + 1 :]}\n{example.completion}"


def _jaccard(first: bytes, second: bytes) -> float:
    small, large = sorted((len(first) // 8, len(second) // 8))
    if small < THRESHOLD * large:  # sets of such different sizes cannot be that similar
        return 0.0
    one, other = np.frombuffer(first, dtype=np.uint64), np.frombuffer(second, dtype=np.uint64)
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (small + large - shared)
