"""Work on long vectors in threads beside the one that goes on taking replies."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread

BLOCK = 2**17
"""Values taken at a time: few enough for the cache, so many that the interpreter does not count."""

_WORTH_IT = 2**19
_MOST_HELPERS = 3


class Walk:
    """`work(begin, end)` over all blocks of [0, count), begun at once by other threads; short walks wait for `finish`.

    Blocks must not depend on each other: whoever has time takes the next one, the caller as well when it waits.
    """

    def __init__(self, work: Callable[[int, int], None], count: int) -> None:
        self._work = work
        self._count = count
        self._begins = iter(range(0, count, BLOCK))
        self._faults: list[Exception] = []
        helpers = min(_MOST_HELPERS, (os.cpu_count() or 1) - 1) if count >= _WORTH_IT else 0
        self._helpers = [Thread(target=self._take_blocks, daemon=True) for _ in range(helpers)]
        for helper in self._helpers:
            helper.start()

    def finish(self) -> None:
        """Return when everything is done; raises what `work` raised."""
        self._take_blocks()
        for helper in self._helpers:
            helper.join()
        if self._faults:
            raise self._faults[0]

    def _take_blocks(self) -> None:
        try:
            for begin in self._begins:  # shared by all threads: each block is taken once
                self._work(begin, min(begin + BLOCK, self._count))
        except Exception as fault:  # told to whoever waits
            self._faults.append(fault)
