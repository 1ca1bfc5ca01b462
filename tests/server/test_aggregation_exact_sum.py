"""The sum that rounds every term by itself: exact to float32, and the same bits in every order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.errors import FederationError
from neuralforge_server.aggregation.exact_sum import MAX_WEIGHT, ExactSum

Vector = npt.NDArray[np.float32]

finite = st.floats(-1e9, 1e9, width=32)
terms = st.lists(st.tuples(st.lists(finite, min_size=3, max_size=3), st.integers(1, 10_000)), min_size=1, max_size=12)


def total(pairs: list[tuple[list[float], int]]) -> ExactSum:
    found = ExactSum(3)
    for values, weight in pairs:
        found.add(np.array(values, np.float32), weight)
    return found


@given(pairs=terms, data=st.data())
def test_the_order_does_not_change_a_bit(pairs: list[tuple[list[float], int]], data: st.DataObject) -> None:
    other = data.draw(st.permutations(pairs))
    assert total(pairs).precise_mean().tobytes() == total(other).precise_mean().tobytes()


@given(pairs=terms)
def test_the_mean_is_that_of_exact_fractions(pairs: list[tuple[list[float], int]]) -> None:
    found = total(pairs).precise_mean()
    weights = sum(weight for _, weight in pairs)
    for column in range(3):
        wanted = sum(Fraction(float(np.float32(values[column]))) * weight for values, weight in pairs) / weights
        largest = max(abs(value) * weight for values, weight in pairs for value in values)
        # Half a grid for each term, the grid of its own band; and the last additions in float64.
        bound = len(pairs) * max(largest * 2.0**-35, 2.0**-83) / weights + abs(float(wanted)) * 1e-15 + 1e-300
        assert abs(float(Fraction(float(found[column])) - wanted)) <= bound + largest * len(pairs) * 1e-15 / weights


@given(values=st.lists(st.floats(-0.5, 0.5, width=32), min_size=1, max_size=30), weight=st.sampled_from([1, 7, 10_000]))
def test_a_mean_of_one_is_itself(values: list[float], weight: int) -> None:
    vector = np.array(values, np.float32)
    found = ExactSum(vector.size)
    found.add(vector, weight)
    largest = float(np.abs(vector).max())
    # Its own grid, float32's rounding, and what float32 and the lowest band hold at all.
    assert np.abs(found.mean() - vector).max() <= 2.0**-35 * largest + 2.0**-24 * largest + 2.0**-83


def test_means_of_ordinary_deltas_are_rounded_once() -> None:
    random = np.random.default_rng(0)
    deltas = [(1e-3 * random.standard_normal(5_000)).astype(np.float32) for _ in range(9)]
    weights = [1, 3, 1_000, 77, 10_000, 5, 60, 2, 400]
    found = ExactSum(5_000)
    for delta, weight in zip(deltas, weights, strict=True):
        found.add(delta, weight)
    wanted = sum(w * d.astype(np.longdouble) for w, d in zip(weights, deltas, strict=True)) / sum(weights)
    np.testing.assert_array_max_ulp(found.mean(), np.asarray(wanted, np.float32), maxulp=1)
    assert found.total_weight == sum(weights)


@given(data=st.data(), pairs=terms)
def test_a_norm_that_is_known_gives_the_same_mean_in_every_order(
    pairs: list[tuple[list[float], int]], data: st.DataObject
) -> None:
    def with_norms(given_pairs: list[tuple[list[float], int]]) -> npt.NDArray[np.float64]:
        found = ExactSum(3)
        for values, weight in given_pairs:
            vector = np.array(values, np.float32)
            found.add(vector, weight, norm=float(np.linalg.norm(vector)))
        return found.precise_mean()

    found = with_norms(pairs)
    assert found.tobytes() == with_norms(data.draw(st.permutations(pairs))).tobytes()
    largest = max(abs(value) for values, _ in pairs for value in values)
    assert np.abs(found - total(pairs).precise_mean()).max() <= 2.0**-33 * largest + 2.0**-80


@pytest.mark.parametrize("size", [2**19 + 130, 2**20 + 1])
def test_two_threads_give_the_bits_of_one(size: int) -> None:
    random = np.random.default_rng(1)
    vectors = [random.standard_normal(size, dtype=np.float32) for _ in range(5)]
    whole = ExactSum(size)
    parts = [ExactSum(size // 3), ExactSum(size - size // 3)]
    largest = np.float32(max(np.abs(vector).max() for vector in vectors))
    for index, vector in enumerate(vectors):
        # The same largest value everywhere, so that the parts have the grid of the whole.
        vector[0] = vector[-1] = largest
        whole.add(vector, index + 1)
        parts[0].add(vector[: size // 3], index + 1)
        parts[1].add(vector[size // 3 :], index + 1)
    assert whole.mean().tobytes() == parts[0].mean().tobytes() + parts[1].mean().tobytes()


def test_a_tiny_vector_is_not_lost_beside_a_huge_one() -> None:
    found = ExactSum(2)
    found.add(np.array([1e9, 0], np.float32))
    found.add(np.array([0, 1e-9], np.float32))
    assert found.mean().tolist() == [np.float32(5e8), np.float32(0.5 * np.float32(1e-9))]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_what_cannot_be_added_exactly_is_refused_and_changes_nothing(bad: float) -> None:
    found = ExactSum(3)
    found.add(np.ones(3, np.float32), 2)
    with pytest.raises(FederationError, match="cannot be added"):
        found.add(np.array([0, bad, 0], np.float32))
    assert found.mean().tolist() == [1, 1, 1]
    assert found.total_weight == 2


def test_a_norm_that_is_not_finite_is_refused() -> None:
    for norm in (np.nan, np.inf, 1e30):
        with pytest.raises(FederationError, match="cannot be added"):
            ExactSum(3).add(np.ones(3, np.float32), norm=norm)


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1, 10**12])
def test_a_weight_out_of_bounds_is_refused(weight: int) -> None:
    with pytest.raises(FederationError, match="weight"):
        ExactSum(1).add(np.ones(1, np.float32), weight)


@pytest.mark.parametrize("values", [np.ones(2, np.float32), np.ones((1, 1), np.float32), np.ones(1, np.float64)])
def test_another_size_or_type_is_refused(values: Vector) -> None:
    with pytest.raises(FederationError, match="wanted 1 float32"):
        ExactSum(1).add(values)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(FederationError, match="no update"):
        ExactSum(1).mean()


def test_as_many_full_terms_as_the_accumulator_holds_and_no_more() -> None:
    found = ExactSum(1)
    largest = np.array([np.nextafter(np.float32(1), np.float32(0))], np.float32)
    for _ in range(2_048):
        found.add(largest)
    with pytest.raises(FederationError, match="as many as"):
        found.add(largest)
    assert found.mean() == largest
    # A band of its own for the next size: those are not in the way of each other.
    found.add(2 * largest)
