"""Languages kept from drowning each other: none has more than so many times the median."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np


def balanced(languages: Sequence[str], times_median: float | None, seed: int) -> list[int]:
    """Which of the examples stay, in order: each language is cut to `times_median` × the median of all languages.

    What stays of a language is drawn evenly from the seed and the language's name, so that it does not depend on which
    other languages there are. None keeps all, and a single language is never cut.
    """
    if times_median is None:
        return list(range(len(languages)))
    counts = Counter(languages)
    most = math.ceil(times_median * median(counts.values())) if counts else 0
    kept: list[int] = []
    for language, count in counts.items():
        places = [place for place, name in enumerate(languages) if name == language]
        if count > most:
            key = int.from_bytes(language.encode()[:8].ljust(8, b"\0"), "little")
            draw = np.random.Generator(np.random.Philox(key=[seed, key])).permutation(count)[:most]
            places = [places[number] for number in sorted(draw.tolist())]
        kept += places
    return sorted(kept)
