"""What noisy steps cost: the same as two other accountants say, and in every case what the theory demands."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge_common import accounting
from neuralforge_common.accounting import LEAST_NOISE, ORDERS, Steps, calibrate, cost, epsilon, step_cost
from neuralforge_common.errors import PrivacyError

DELTA = 1e-5


def steps(sample_rate: float, noise_multiplier: float, count: int) -> Steps:
    return Steps(sample_rate=sample_rate, noise_multiplier=noise_multiplier, count=count)


HISTORIES = {
    "one": [steps(0.02, 1.1, 1000)],
    "a federation that changed its terms": [steps(0.05, 1.2, 300), steps(0.02, 0.8, 120), steps(0.05, 1.2, 90)],
    "new data, then a replay": [steps(0.1, 2.0, 200), steps(0.01, 1.0, 800)],
    "every user, once a round": [steps(1, 8.0, 30)],
    "much and little": [steps(0.9, 4.0, 10), steps(1e-4, 0.7, 5000)],
}

rates = st.floats(1e-4, 1.0)
noises = st.floats(0.3, 20.0)
counts = st.integers(1, 2000)
few = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_dp_accounting_finds_the_same_epsilon(history: list[Steps]) -> None:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    other = RdpAccountant(list(ORDERS))
    for each in history:
        event = dp_accounting.GaussianDpEvent(each.noise_multiplier)
        other.compose(dp_accounting.PoissonSampledDpEvent(each.sample_rate, event), each.count)
    # Its own series for orders that are not whole ends early, by some 1e-6 of the result.
    assert epsilon(history, DELTA) == pytest.approx(other.get_epsilon(DELTA), rel=1e-4)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_opacus_finds_the_same_epsilon(history: list[Steps]) -> None:
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = list(ORDERS)
    curve = sum(
        compute_rdp(q=each.sample_rate, noise_multiplier=each.noise_multiplier, steps=each.count, orders=orders)
        for each in history
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = get_privacy_spent(orders=orders, rdp=curve, delta=DELTA)
    assert epsilon(history, DELTA) == pytest.approx(found, rel=1e-6)


def test_the_figure_that_opacus_1_6_and_dp_accounting_0_6_agree_on() -> None:
    assert epsilon([steps(0.02, 1.1, 1000)], DELTA) == pytest.approx(3.588, abs=1e-3)


def test_a_tighter_accountant_finds_less_but_not_much() -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    tight = PLDAccountant()
    tight.compose(dp_accounting.PoissonSampledDpEvent(0.02, dp_accounting.GaussianDpEvent(1.1)), 1000)
    assert (
        0.85 * epsilon([steps(0.02, 1.1, 1000)], DELTA)
        < tight.get_epsilon(DELTA)
        < epsilon([steps(0.02, 1.1, 1000)], DELTA)
    )


@pytest.mark.parametrize(("q", "sigma"), [(0.02, 1.1), (0.3, 0.6), (0.001, 5.0), (0.7, 0.15)])
def test_quadrature_and_binomials_agree_where_both_apply(q: float, sigma: float) -> None:
    whole = np.array([2.0, 3.0, 7.0, 32.0])
    sums = [accounting._log_moment(int(order), q, sigma) for order in whole]
    assert accounting._log_moments_by_quadrature(whole, q, sigma) == pytest.approx(sums, rel=1e-11, abs=1e-13)


def test_without_sampling_it_is_the_plain_gaussian() -> None:
    assert step_cost(1.0, 2.0) == pytest.approx(ORDERS / 8)
    # The limit from below: a unit that is all but always drawn.
    assert step_cost(1 - 1e-12, 2.0) == pytest.approx(ORDERS / 8, rel=1e-6)


def test_the_exact_epsilon_of_a_gaussian_is_below_and_near() -> None:
    # Balle & Wang 2018, "Improving the Gaussian Mechanism", theorem 8: δ(ε) of one Gaussian release.
    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta(eps: float, sigma: float) -> float:
        return normal(1 / (2 * sigma) - eps * sigma) - math.exp(eps) * normal(-1 / (2 * sigma) - eps * sigma)

    for sigma in (1.0, 3.0, 10.0):
        found = epsilon([steps(1, sigma, 1)], DELTA)
        assert delta(found, sigma) < DELTA < delta(0.85 * found, sigma)


def test_twenty_rounds_of_thirty_steps_are_six_hundred_steps() -> None:
    rounds = [steps(0.05, 1.1, 30)] * 20
    assert epsilon(rounds, DELTA) == pytest.approx(epsilon([steps(0.05, 1.1, 600)], DELTA), rel=1e-12)
    # What an accountant that begins anew each round would say.
    assert epsilon(rounds[:1], DELTA) < 0.5 * epsilon(rounds, DELTA)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], DELTA) == 0
    assert epsilon([steps(0.1, 1.0, 0)], DELTA) == 0
    assert epsilon([steps(0, 1.0, 100)], DELTA) == 0
    assert epsilon([steps(0.1, 0.0, 1)], DELTA) == math.inf


def test_noise_of_next_to_nothing_is_bounded_without_an_endless_sum() -> None:
    assert step_cost(0.01, 1e-6) == pytest.approx(ORDERS / 2e-12)
    assert (step_cost(0.01, LEAST_NOISE * 0.999) > step_cost(0.01, LEAST_NOISE)).all()


@few
@given(rates, noises, counts)
def test_more_steps_cost_more(q: float, sigma: float, count: int) -> None:
    assert epsilon([steps(q, sigma, count)], DELTA) <= epsilon([steps(q, sigma, count + 1)], DELTA)


@few
@given(rates, noises, st.floats(1.0, 2.0))
def test_more_noise_costs_less(q: float, sigma: float, factor: float) -> None:
    assert (step_cost(q, sigma * factor) <= step_cost(q, sigma) * (1 + 1e-9) + 1e-14).all()


@few
@given(rates, noises, st.floats(0.0, 1.0))
def test_a_lower_sample_rate_costs_less(q: float, sigma: float, factor: float) -> None:
    assert (step_cost(q * factor, sigma) <= step_cost(q, sigma) * (1 + 1e-9) + 1e-14).all()


@few
@given(st.lists(st.tuples(rates, noises, counts), min_size=2, max_size=3))
def test_histories_add_up_in_any_order(parts: list[tuple[float, float, int]]) -> None:
    history = [steps(*part) for part in parts]
    assert cost(history) == pytest.approx(sum(cost([each]) for each in history))
    assert epsilon(history[::-1], DELTA) == pytest.approx(epsilon(history, DELTA))
    assert epsilon(history, DELTA) >= max(epsilon([each], DELTA) for each in history)


@few
@given(rates, noises)
def test_orders_rise_together(q: float, sigma: float) -> None:
    curve = step_cost(q, sigma)  # Rényi divergence grows with its order: van Erven & Harremoës 2014, theorem 3
    assert (np.diff(curve) >= -1e-9 * curve[1:] - 1e-14).all()


@pytest.mark.parametrize(("target", "q", "count"), [(8, 0.05, 600), (1, 0.01, 3000), (0.1, 0.02, 10), (3, 1.0, 20)])
def test_calibrated_noise_reaches_the_target_and_a_little_less_does_not(target: float, q: float, count: int) -> None:
    sigma = calibrate(target_epsilon=target, delta=DELTA, sample_rate=q, steps=count)
    assert epsilon([steps(q, sigma, count)], DELTA) <= target
    assert epsilon([steps(q, sigma * 0.998, count)], DELTA) > target
    assert sigma == float(f"{sigma:.4g}")


def test_what_is_spent_already_makes_the_noise_larger() -> None:
    history = [steps(0.05, 1.5, 400)]
    sigma = calibrate(target_epsilon=8, delta=DELTA, sample_rate=0.05, steps=300, history=history)
    assert sigma > calibrate(target_epsilon=8, delta=DELTA, sample_rate=0.05, steps=300)
    assert epsilon([*history, steps(0.05, sigma, 300)], DELTA) <= 8
    with pytest.raises(PrivacyError, match="no noise keeps 1 more steps within ε = 2 at"):
        calibrate(target_epsilon=2, delta=DELTA, sample_rate=0.05, steps=1, history=history)


@pytest.mark.parametrize("wrong", [(1.1, 1.0, 1), (-0.1, 1.0, 1), (math.nan, 1.0, 1), (0.1, math.nan, 1), (0.1, 1, -1)])
def test_numbers_out_of_bounds_are_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(PrivacyError):
        steps(*wrong)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta: wanted"):
        epsilon([steps(0.1, 1.0, 1)], delta)
