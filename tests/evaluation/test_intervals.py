"""Intervals hold the truth about as often as they say."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipys_bootstrap

from neuralforge.evaluation.intervals import (
    FEWEST_CLUSTERS,
    Interval,
    clusters_of,
    grouped_quantile_interval,
    quantile_interval,
    ratio_interval,
    share_interval,
)

Draw = Callable[[np.random.Generator], Interval]


def coverage(draw: Draw, truth: float, *, trials: int = 300) -> float:
    """How often the interval of fresh data holds the truth."""
    found = [draw(np.random.default_rng(trial)) for trial in range(trials)]
    return sum(interval.low <= truth <= interval.high for interval in found) / trials


def of_losses(rng: np.random.Generator) -> Interval:
    tokens = rng.integers(5, 40, size=60)
    losses = rng.gamma(tokens * 0.5, 4.0)  # 2 nats a token, skewed
    return ratio_interval(losses, tokens, np.arange(60), seed=int(rng.integers(1 << 30)), resamples=600)


def of_files(rng: np.random.Generator) -> Interval:
    files = np.repeat(np.arange(40), 5)
    losses = (rng.normal(2.0, 0.5, size=40)[files] + rng.normal(0, 0.3, size=200)) * 10
    return ratio_interval(losses, np.full(200, 10), files, seed=int(rng.integers(1 << 30)), resamples=600)


def of_files_as_if_independent(rng: np.random.Generator) -> Interval:
    files = np.repeat(np.arange(40), 5)
    losses = (rng.normal(2.0, 0.5, size=40)[files] + rng.normal(0, 0.3, size=200)) * 10
    return ratio_interval(losses, np.full(200, 10), np.arange(200), seed=int(rng.integers(1 << 30)), resamples=600)


def of_shares(rng: np.random.Generator) -> Interval:
    return share_interval(rng.random(50) < 0.1)


def of_shares_by_file(rng: np.random.Generator) -> Interval:
    files = np.repeat(np.arange(30), 8)
    return share_interval(rng.random(240) < rng.beta(1.0, 2.0, size=30)[files], files)


def of_p95(rng: np.random.Generator) -> Interval:
    return quantile_interval(rng.exponential(size=120), 0.95)


def of_tokens(rng: np.random.Generator) -> Interval:
    slow = rng.exponential(size=60)
    return grouped_quantile_interval([list(s + rng.exponential(size=8)) for s in slow], 0.5, seed=1, resamples=300)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (of_losses, 2.0),
        (of_files, 2.0),
        (of_shares, 0.1),
        (of_shares_by_file, 1 / 3),
        (of_p95, -math.log(0.05)),
        (of_tokens, 1.67834699),  # the median of Gamma(2)
    ],
)
def test_an_interval_at_95_percent_holds_the_truth_about_as_often(draw: Draw, truth: float) -> None:
    assert 0.905 <= coverage(draw, truth) <= 0.995


def test_samples_of_a_file_taken_as_independent_would_promise_too_much() -> None:
    assert coverage(of_files_as_if_independent, 2.0) < 0.75


def test_the_mean_of_independent_values_has_scipys_bca_interval() -> None:
    values = np.random.default_rng(4).gamma(1.0, 2.0, size=50)
    mine = ratio_interval(values, np.ones(50), np.arange(50), seed=1, resamples=20_000)
    scipys = scipys_bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(2))
    width = mine.high - mine.low
    assert mine.low == pytest.approx(scipys.confidence_interval.low, abs=0.03 * width)
    assert mine.high == pytest.approx(scipys.confidence_interval.high, abs=0.03 * width)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 17), (40, 40)])
def test_a_share_of_independent_samples_has_wilsons_interval(hits: int, n: int) -> None:
    mine = share_interval([1.0] * hits + [0.0] * (n - hits))
    wilson = binomtest(hits, n).proportion_ci(method="wilson")
    assert (mine.low, mine.high) == pytest.approx((wilson.low, wilson.high))


def test_too_few_values_leave_the_upper_end_of_a_high_quantile_open() -> None:
    assert quantile_interval(range(367), 0.99).high == math.inf
    assert quantile_interval(range(368), 0.99).high == 367


def test_of_no_values_nothing_is_known() -> None:
    for interval in (share_interval([]), quantile_interval([], 0.5), grouped_quantile_interval([], 0.5, seed=0)):
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)


def test_files_are_clusters_where_there_are_enough_of_them() -> None:
    many = [f"{i % FEWEST_CLUSTERS}.py" for i in range(30)]
    clusters, by_file = clusters_of(many)
    assert by_file
    assert len(set(clusters)) == FEWEST_CLUSTERS
    clusters, by_file = clusters_of([f"{i % (FEWEST_CLUSTERS - 1)}.py" for i in range(30)])
    assert not by_file
    assert len(set(clusters)) == 30
    clusters, by_file = clusters_of(["", "", *many])
    assert by_file
    assert clusters[0] != clusters[1]
