"""From rates to a lower bound on ε: closed forms, published figures, and bounds that hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.privacy.audit.bounds import (
    Scored,
    any_mechanism,
    at_least,
    binomial,
    gaussian_epsilon,
    gaussian_mechanism,
    highest_bound,
    highest_rate,
    lowest_rate,
    threshold_bound,
)
from neuralforge.privacy.audit.guesses import Guesses, guess, lower_bound, p_value, power

DELTA = 1e-5


def hockey_stick(mu: float, epsilon: float, rate: float = 1.0) -> float:
    """∫ max(0, P - e^ε·Q) by the trapezoidal rule; P draws from N(μ, 1) with this rate, else from Q = N(0, 1)."""
    x = np.linspace(-12, 12 + mu, 400_001)
    q = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    p = rate * np.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi) + (1 - rate) * q
    return float(np.trapezoid(np.maximum(0.0, p - math.exp(epsilon) * q), x))


@pytest.mark.parametrize("trials", [1, 20, 1000])
@pytest.mark.parametrize("miss", [0.025, 0.001])
def test_clopper_and_pearson_without_a_hit_have_a_closed_form(trials: int, miss: float) -> None:
    assert lowest_rate(0, trials, miss=miss) == 0.0
    assert highest_rate(0, trials, miss=miss) == pytest.approx(1 - miss ** (1 / trials), abs=1e-8)
    assert lowest_rate(trials, trials, miss=miss) == pytest.approx(miss ** (1 / trials), abs=1e-8)


@given(st.integers(1, 300), st.data())
def test_at_the_end_of_the_interval_as_many_hits_are_as_rare_as_was_asked(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(1, trials))
    low, high = lowest_rate(hits, trials, miss=0.01), highest_rate(hits, trials, miss=0.01)
    assert low < hits / trials <= high
    assert at_least(hits, trials, low) == pytest.approx(0.01, abs=1e-5)
    if hits < trials:
        assert 1 - at_least(hits + 1, trials, high) == pytest.approx(0.01, abs=1e-5)
    else:
        assert high == 1


@pytest.mark.parametrize(("mu", "epsilon"), [(0.5, 2.0), (1.0, 4.377), (2.0, 10.0), (4.1, 25.24)])
def test_the_gaussian_has_the_epsilon_that_integration_gives(mu: float, epsilon: float) -> None:
    found = gaussian_epsilon(mu, DELTA)
    assert found == pytest.approx(epsilon, abs=0.15)
    assert hockey_stick(mu, found) == pytest.approx(DELTA, rel=1e-3)


@pytest.mark.parametrize(("mu", "rate"), [(1.0, 0.05), (2.0, 0.3), (3.0, 0.01)])
def test_a_sampled_gaussian_has_the_epsilon_that_integration_gives(mu: float, rate: float) -> None:
    # Rates with exactly this μ: a test at 0 that is right half of the time when the canary is not there.
    right = 0.5 * math.erfc(-mu / math.sqrt(2))
    found = gaussian_mechanism(DELTA, rate=rate)(0.5, right)
    assert hockey_stick(mu, found, rate) == pytest.approx(DELTA, rel=1e-3)
    assert found < gaussian_epsilon(mu, DELTA)


def test_rates_that_differ_by_what_epsilon_allows_give_that_epsilon() -> None:
    for epsilon in (0.5, 2.0, 6.0):
        right = math.exp(epsilon) / (1 + math.exp(epsilon))  # randomized response
        assert any_mechanism(0.0)(1 - right, right) == pytest.approx(epsilon)
    assert any_mechanism(DELTA)(0.5, 0.5) == 0.0
    assert any_mechanism(DELTA)(0.5, 0.4) == 0.0


@pytest.mark.parametrize("kind", [any_mechanism, gaussian_mechanism])
def test_a_threshold_bound_of_a_gaussian_stays_below_its_epsilon_and_its_power(kind: type) -> None:
    generator = np.random.default_rng(5)
    to_epsilon = kind(DELTA)
    best = highest_bound(1000, confidence=0.95, to_epsilon=to_epsilon)
    for mu, least in ((0.0, 0.0), (1.0, 0.8), (3.0, 3.5)):
        scored = [Scored(without=generator.normal(0, 1, 1000), with_it=generator.normal(mu, 1, 1000)) for _ in range(2)]
        found = threshold_bound(*scored, confidence=0.95, to_epsilon=to_epsilon)
        assert least <= found <= min(gaussian_epsilon(mu, DELTA), best)
    apart = Scored(without=np.zeros(1000), with_it=np.ones(1000))
    assert threshold_bound(apart, apart, confidence=0.95, to_epsilon=to_epsilon) == best


def test_the_published_figure_of_the_one_run_audit() -> None:
    # Steinke, Nasr & Jagielski 2023 (arXiv:2305.08846v1), appendix D, p. 46.
    found = lower_bound(Guesses(canaries=1000, made=100, right=75), delta=1e-4, confidence=0.95)
    assert found == pytest.approx(0.673, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_randomized_response_is_accused_no_more_often_than_the_level(epsilon: float, level: float) -> None:
    made = 60
    chances = binomial(made, 1 / (1 + math.exp(-epsilon)))
    accused = [
        right
        for right in range(made + 1)
        if p_value(Guesses(canaries=made, made=made, right=right), epsilon=epsilon, delta=0.0) <= level
    ]
    assert sum(chances[right] for right in accused) <= level


def test_delta_only_ever_excuses() -> None:
    for right in (40, 55, 60):
        guesses = Guesses(canaries=200, made=60, right=right)
        values = [p_value(guesses, epsilon=1.0, delta=delta) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_a_bound_is_the_largest_epsilon_that_is_refuted_and_power_that_of_no_mistake() -> None:
    guesses = Guesses(canaries=128, made=64, right=60)
    found = lower_bound(guesses, delta=DELTA, confidence=0.95)
    assert (
        p_value(guesses, epsilon=found - 1e-3, delta=DELTA) < 0.05 < p_value(guesses, epsilon=found + 1e-3, delta=DELTA)
    )
    assert found < power(guesses, delta=DELTA, confidence=0.95)
    # All of r coins right: (e^ε / (1 + e^ε))^r = 0.05.
    exact = -math.log(0.05 ** (-1 / 64) - 1)
    assert power(guesses, delta=0.0, confidence=0.95) == pytest.approx(exact, abs=1e-4)


def test_the_highest_scores_are_guessed_in_the_lowest_out_and_the_rest_not_at_all() -> None:
    scores = np.array([5.0, -3.0, 0.1, 0.2, 4.0, -2.0, 0.3, 0.0])
    included = np.array([True, False, True, False, False, True, False, True])
    assert guess(scores, included, share=0.5) == Guesses(canaries=8, made=4, right=2)
    assert guess(scores, scores > 0.15, share=0.5) == Guesses(canaries=8, made=4, right=4)
