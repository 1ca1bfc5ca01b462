"""Products of thin matrices recompressed, against dense singular value decompositions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rounds import LAYOUT, dense, distance

from neuralforge_common.low_rank import product_norm, refactor
from neuralforge_server.aggregation.exactness import norm_of, rounding_error

shapes = st.tuples(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(1, 14), st.integers(0, 9_999)
)


@settings(max_examples=60)
@given(shape=shapes)
def test_the_result_is_the_best_approximation(shape: tuple[int, int, int, int, int]) -> None:
    d_out, d_in, inner, rank, seed = shape
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((d_out, inner)), random.standard_normal((inner, d_in))
    b, a = refactor(left, right, rank)
    u, sigma, v = np.linalg.svd(left @ right, full_matrices=False)
    assert b.shape == (d_out, rank)
    assert a.shape == (rank, d_in)
    np.testing.assert_allclose(b @ a, (u[:, :rank] * sigma[:rank]) @ v[:rank], atol=1e-10)


def test_a_product_of_low_rank_keeps_its_rank_and_the_rest_is_zero() -> None:
    random = np.random.default_rng(0)
    left, right = random.standard_normal((9, 2)), random.standard_normal((2, 7))
    b, a = refactor(np.hstack([left, left]), np.vstack([right, 3 * right]), 5)
    np.testing.assert_allclose(b @ a, 4 * left @ right, atol=1e-12)
    assert not b[:, 2:].any()
    assert not a[2:].any()


def test_nothing_becomes_nothing() -> None:
    b, a = refactor(np.zeros((4, 0)), np.zeros((0, 3)), 2)
    assert not b.any()
    assert not a.any()
    b, a = refactor(np.zeros((4, 6)), np.zeros((6, 3)), 2)
    assert not b.any()
    assert not a.any()


def test_signs_are_fixed() -> None:
    random = np.random.default_rng(1)
    left, right = random.standard_normal((6, 3)), random.standard_normal((3, 5))
    one, other = refactor(left, right, 3), refactor(-left, -right, 3)
    for found, wanted in zip(other, one, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert all(column[np.argmax(np.abs(column))] > 0 for column in one[0].T)


@settings(max_examples=40)
@given(shape=shapes)
def test_the_norm_of_a_product_needs_no_product(shape: tuple[int, int, int, int, int]) -> None:
    d_out, d_in, inner, _, seed = shape
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((d_out, inner)), random.standard_normal((inner, d_in))
    assert product_norm(left, right) == pytest.approx(np.linalg.norm(left @ right), rel=1e-9)


def test_a_difference_far_below_the_whole_is_measured() -> None:
    random = np.random.default_rng(2)
    left, right = random.standard_normal((9, 3)), random.standard_normal((3, 7))
    error = product_norm(np.hstack([left * (1 + 1e-9), -left]), np.vstack([right, right]))
    assert error == pytest.approx(1e-9 * np.linalg.norm(left @ right), rel=1e-4)


@pytest.mark.parametrize("part", ["A", "B"])
def test_the_rounding_error_is_that_of_the_dense_products(part: str) -> None:
    exact = np.random.default_rng(3).standard_normal(LAYOUT.size)
    fixed = LAYOUT.part_slice("B" if part == "A" else "A")
    exact[fixed] = exact[fixed].astype(np.float32)
    found = exact.astype(np.float32)
    true = distance(dense(LAYOUT, found), dense(LAYOUT, exact))
    assert rounding_error(LAYOUT, found, exact) == pytest.approx(true, rel=1e-6)


def test_there_is_nothing_to_compare_with_nothing() -> None:
    assert rounding_error(LAYOUT, np.zeros(LAYOUT.size, np.float32), np.zeros(LAYOUT.size)) is None


def test_a_norm_of_large_values_does_not_overflow() -> None:
    assert norm_of(np.full(100_000, 3e38, np.float32)) == pytest.approx(3e38 * 100_000**0.5)
