"""Two threads for work that numpy does without holding the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

WORTH_IT = 2**19


def in_halves(work: Callable[[int, int], None], count: int, *, worth_it: int = WORTH_IT, even: int = 64) -> None:
    """Run `work(begin, end)` over [0, count): in two threads where `count` is large, else in this one.

    The halves must not depend on each other. The cut is a multiple of `even`: values stay aligned.
    """
    middle = count // 2 // even * even
    if count < worth_it or not middle or (os.cpu_count() or 1) < 2:
        work(0, count)
        return
    with ThreadPoolExecutor(1) as other:
        second = other.submit(work, middle, count)
        work(0, middle)
        second.result()
