"""Robust rules against slow ones written down a second time, and against clients that lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge_server.aggregation.robust import (
    Rule,
    clipped_mean,
    coordinate_median,
    geometric_median,
    multi_krum,
    trimmed_mean,
)

RULES: dict[str, Rule] = {
    "median": coordinate_median,
    "trimmed-mean": partial(trimmed_mean, trim=0.3),
    "multi-krum": partial(multi_krum, byzantine=2),
    "geometric-median": geometric_median,
}

Rows = list[npt.NDArray[np.float32]]


def rows_of(count: int, size: int = 40, seed: int = 0) -> Rows:
    return [*np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)]


def test_the_median_is_that_of_every_coordinate() -> None:
    for count in (1, 2, 5, 8):
        rows = rows_of(count, 20_000)
        np.testing.assert_allclose(coordinate_median(rows, [1] * count)[0], np.median(np.stack(rows), axis=0))


def test_the_trimmed_mean_leaves_out_the_ends() -> None:
    rows = rows_of(10)
    found, figures = trimmed_mean(rows, [1] * 10, trim=0.25)
    wanted = [np.mean(sorted(float(row[column]) for row in rows)[2:-2]) for column in range(40)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert figures == {"trimmed": 4.0}


def test_a_trim_that_would_leave_nobody_leaves_one() -> None:
    rows = rows_of(3)
    np.testing.assert_allclose(trimmed_mean(rows, [1] * 3, trim=0.49)[0], np.median(np.stack(rows), axis=0))
    np.testing.assert_allclose(trimmed_mean(rows[:1], [1], trim=0.49)[0], rows[0])


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(5, 10), byzantine=st.integers(0, 3))
def test_multi_krum_keeps_those_with_the_nearest_neighbours(seed: int, count: int, byzantine: int) -> None:
    rows = rows_of(count, seed=seed)
    liars = min(byzantine, (count - 3) // 2)
    scores = []
    for index, row in enumerate(rows):
        others = sorted(
            float(np.sum((row.astype(np.float64) - other) ** 2)) for j, other in enumerate(rows) if j != index
        )
        scores.append(sum(others[: count - liars - 2]))
    chosen = sorted(range(count), key=lambda index: scores[index])[: count - liars]
    wanted = np.mean([rows[index].astype(np.float64) for index in chosen], axis=0)
    np.testing.assert_allclose(multi_krum(rows, [1] * count, byzantine=byzantine)[0], wanted, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_multi_krum_of_too_few_for_its_liars_is_still_within_them(count: int) -> None:
    rows = rows_of(count)
    found, _ = multi_krum(rows, [1] * count, byzantine=5)
    assert (found <= np.max(rows, axis=0) + 1e-9).all()
    assert (found >= np.min(rows, axis=0) - 1e-9).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9))
def test_no_step_from_the_geometric_median_comes_nearer_to_all(seed: int, count: int) -> None:
    rows = rows_of(count, 6, seed)
    found, _ = geometric_median(rows, [1] * count)

    def total(point: npt.NDArray[np.float64]) -> float:
        return sum(float(np.linalg.norm(point - row)) for row in rows)

    random = np.random.default_rng(seed)
    for length in (1e-3, 1e-2, 0.1, 1.0):
        step = random.standard_normal(6)
        step *= length / np.linalg.norm(step)
        assert total(found) <= total(found + step) + 1e-5


def test_the_geometric_median_of_a_majority_in_one_place_is_that_place() -> None:
    place = rows_of(1)[0]
    rows = [place] * 4 + rows_of(3, seed=9)
    np.testing.assert_allclose(geometric_median(rows, [1] * 7)[0], place, atol=1e-4)


def test_equal_rows_are_their_own_centre() -> None:
    row = rows_of(1)[0]
    for rule in (*RULES.values(), clipped_mean):
        np.testing.assert_allclose(rule([row] * 5, [1] * 5)[0], row, atol=1e-6)
        np.testing.assert_allclose(rule([row * 0] * 5, [1] * 5)[0], row * 0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1e3, 1e9, 1e15])
@pytest.mark.parametrize("lie", ["far away", "opposite", "noise"])
def test_one_liar_among_eight_cannot_leave_the_honest_spread(name: str, size: float, lie: str) -> None:
    honest = [1 + 0.1 * row for row in rows_of(7)]
    liar = {"far away": np.ones(40), "opposite": -honest[0], "noise": rows_of(1, seed=5)[0]}[lie]
    rows = [*honest, (size * liar / np.linalg.norm(liar)).astype(np.float32)]
    centre, _ = RULES[name](rows, [1] * 7 + [10**9])
    middle = np.mean(honest, axis=0)
    spread = max(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(honest, 2))
    assert np.linalg.norm(centre - middle) <= spread
    # And coordinate by coordinate, where the rule works on coordinates.
    if name in ("median", "trimmed-mean"):
        assert (centre <= np.max(honest, axis=0) + 1e-6).all()
        assert (centre >= np.min(honest, axis=0) - 1e-6).all()


def test_clipping_bounds_what_one_client_can_add() -> None:
    honest = [0.01 * row for row in rows_of(7)]
    liar = 1e6 * rows_of(1, seed=5)[0]
    found, figures = clipped_mean([*honest, liar], [1] * 8)
    median = float(np.median([np.linalg.norm(row) for row in [*honest, liar]]))
    assert np.linalg.norm(found) <= median * (1 + 1e-6)
    assert figures["clipped"] == 4
    bounded, _ = clipped_mean([*honest, liar], [1] * 8, bound=0.001)
    assert np.linalg.norm(bounded) <= 0.001


def test_clipping_beyond_every_norm_is_the_weighted_mean() -> None:
    rows, weights = rows_of(4), [1, 2, 3, 4]
    found, _ = clipped_mean(rows, weights, bound=1e9)
    np.testing.assert_allclose(found, np.average(np.stack(rows), axis=0, weights=weights), atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_stated_weight_buys_no_influence(name: str) -> None:
    rows = rows_of(6)
    rule: Callable[..., tuple[npt.NDArray[np.float64], object]] = RULES[name]
    assert np.array_equal(rule(rows, [1] * 6)[0], rule(rows, [1, 10_000, 3, 1, 1, 5])[0])
