"""Work beside: every block once, whoever takes it, and a fault in a thread is the caller's."""

from __future__ import annotations

import numpy as np
import pytest

from neuralforge_server.aggregation.walk import BLOCK, Walk


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2**19 + 7, 2**20])
def test_every_value_is_visited_once(count: int) -> None:
    visits = np.zeros(count, np.int64)

    def work(begin: int, end: int) -> None:
        assert end - begin <= BLOCK
        visits[begin:end] += 1

    walk = Walk(work, count)
    walk.finish()
    walk.finish()
    assert (visits == 1).all()


@pytest.mark.parametrize("count", [10, 2**20])
def test_a_fault_in_any_thread_reaches_whoever_waits(count: int) -> None:
    def work(begin: int, end: int) -> None:
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        Walk(work, count).finish()
