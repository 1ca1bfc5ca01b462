"""Budgets: what fits, what the noise must be for a plan to fit, and the accountant for plans that are fixed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.privacy.budget import Block, Budget, Standing, lasts, noise_for, prv_epsilon
from neuralforge.privacy.ledger import Account
from neuralforge_common.accounting import ORDERS, Steps, allowance, calibrate, cost, epsilon
from neuralforge_common.errors import BudgetSpent, PrivacyError

BUDGET = Budget(target_epsilon=8, delta=1e-5)


def steps(sample_rate: float, noise_multiplier: float, count: int) -> Steps:
    return Steps(sample_rate=sample_rate, noise_multiplier=noise_multiplier, count=count)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1.0), st.floats(0.6, 8.0), st.floats(0.5, 20.0))
def test_as_many_steps_last_as_stay_within_the_target(q: float, sigma: float, target: float) -> None:
    budget = Budget(target_epsilon=target, delta=1e-5)
    count, _ = lasts(Standing(), budget, sample_rate=q, noise_multiplier=sigma)
    assert epsilon([steps(q, sigma, count)], 1e-5) <= target + 1e-6
    assert epsilon([steps(q, sigma, count + 1)], 1e-5) > target - 1e-6


def test_a_budget_that_is_used_up_in_many_small_steps_gives_no_more(tmp_path: Path) -> None:
    # At the highest orders these steps cost a billion times their budget: rounding there must not be counted here.
    count, order = lasts(Standing(), BUDGET, sample_rate=1e-3, noise_multiplier=0.6)
    used = Standing(history=(steps(1e-3, 0.6, count),), order=order)
    assert count > 100_000
    assert lasts(used, BUDGET, sample_rate=1e-3, noise_multiplier=0.6)[0] == 0


def test_a_budget_is_counted_at_the_order_that_was_fixed_when_it_began() -> None:
    # Steps chosen later, with much less noise, would be cheaper at another order: that one was not fixed in advance.
    _, order = lasts(Standing(), BUDGET, sample_rate=0.01, noise_multiplier=2.0)
    history = (steps(0.01, 2.0, 500),)
    begun = Standing(history=history, order=order)
    free = Standing(history=history)
    later, kept = lasts(begun, BUDGET, sample_rate=0.3, noise_multiplier=0.9)
    assert kept == order
    assert later < lasts(free, BUDGET, sample_rate=0.3, noise_multiplier=0.9)[0]
    at = int((order == ORDERS).argmax())
    spent = cost([*history, steps(0.3, 0.9, later)])[at]
    assert spent <= allowance(8, 1e-5)[at] * (1 + 1e-6)


def test_the_order_stands_in_the_ledger(tmp_path: Path) -> None:
    small = Block(rates={1: 0.01}, noise_multiplier=2.0, steps=1)
    with Account.open(tmp_path, "adapter x", unit="sample", tell=print) as account:
        account.enter(["a"])
        for _ in range(2):
            account.charge(small, BUDGET, what="little by little")
    with Account.open(tmp_path, "adapter x", unit="sample", tell=print) as account:
        _, order = lasts(Standing(), BUDGET, sample_rate=0.01, noise_multiplier=2.0)
        begun = Standing(history=(steps(0.01, 2.0, 2),), order=order)
        fits, _ = lasts(begun, BUDGET, sample_rate=0.3, noise_multiplier=0.9)
        account.check(Block(rates={1: 0.3}, noise_multiplier=0.9, steps=fits), BUDGET)
        with pytest.raises(BudgetSpent, match=f"hint: {fits:,} more steps are left"):
            account.check(Block(rates={1: 0.3}, noise_multiplier=0.9, steps=fits + 1), BUDGET)


def test_noise_for_a_plan_is_what_calibration_finds() -> None:
    fresh = noise_for({1: Standing()}, BUDGET, rates={1: 0.05}, steps=600)
    assert fresh == pytest.approx(calibrate(target_epsilon=8, delta=1e-5, sample_rate=0.05, steps=600), rel=1e-3)


def test_noise_for_a_plan_suits_the_cohort_that_has_spent_most() -> None:
    spent = Standing(history=(steps(0.05, 1.3, 500),))
    sigma = noise_for({1: spent, 2: Standing()}, BUDGET, rates={1: 0.05, 2: 0.05}, steps=200)
    assert epsilon([*spent.history, steps(0.05, sigma, 200)], 1e-5) <= 8
    assert sigma > noise_for({2: Standing()}, BUDGET, rates={2: 0.05}, steps=200)
    with pytest.raises(PrivacyError, match="no noise lets 200 more steps fit into ε = 2 at δ = 1e-05: ε = 5"):
        noise_for({1: spent}, Budget(target_epsilon=2, delta=1e-5), rates={1: 0.05}, steps=200)


@pytest.mark.parametrize("schedule", [steps(0.02, 1.1, 1000), steps(0.2, 3.0, 100)], ids=["long", "short"])
def test_prv_is_tighter_than_rdp_and_agrees_with_a_privacy_loss_distribution(schedule: Steps) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    other = PLDAccountant()
    event = dp_accounting.GaussianDpEvent(schedule.noise_multiplier)
    other.compose(dp_accounting.PoissonSampledDpEvent(schedule.sample_rate, event), schedule.count)
    found = prv_epsilon(schedule, 1e-5)
    assert found <= epsilon([schedule], 1e-5)
    assert found == pytest.approx(other.get_epsilon(1e-5), abs=0.05)


def test_a_fixed_schedule_by_prv_takes_less_noise_and_is_told_as_such(tmp_path: Path) -> None:
    with Account.open(tmp_path, "adapter x", unit="sample", tell=print) as account:
        account.enter(["a"])
        sigma = account.noise_for(BUDGET, rates={1: 0.05}, steps=300, accountant="prv")
        assert sigma < account.noise_for(BUDGET, rates={1: 0.05}, steps=300)
        whole = Block(rates={1: 0.05}, noise_multiplier=sigma, steps=300)
        with pytest.raises(BudgetSpent):
            account.charge(whole, BUDGET, what="a run, by rdp")
        account.charge(whole, BUDGET, what="a run", accountant="prv")
        assert account.spent(1e-5).epsilon <= 8 < epsilon([steps(0.05, sigma, 300)], 1e-5)
        assert account.spent(1e-5).statement().accountant == "prv"
        with pytest.raises(PrivacyError, match="prv counts only a schedule fixed in advance"):
            account.charge(whole, BUDGET, what="another", accountant="prv")
        # With anything after it, it is a part of a history that was not fixed: RDP counts all of it.
        later = Block(rates={1: 0.05}, noise_multiplier=5.0, steps=1)
        account.charge(later, Budget(target_epsilon=9, delta=1e-5), what="more")
        assert account.spent(1e-5).epsilon == pytest.approx(epsilon([steps(0.05, sigma, 300), steps(0.05, 5, 1)], 1e-5))
        assert account.spent(1e-5).statement().accountant == "rdp"


def test_prv_takes_no_more_than_it_may(tmp_path: Path) -> None:
    with Account.open(tmp_path, "adapter x", unit="sample", tell=print) as account:
        account.enter(["a"])
        with pytest.raises(BudgetSpent, match="600 more steps would come to ε = "):
            account.check(Block(rates={1: 0.05}, noise_multiplier=0.9, steps=600), BUDGET, accountant="prv")


@pytest.mark.parametrize(("target", "delta"), [(0, 1e-5), (float("inf"), 1e-5), (8, 0), (8, 1)])
def test_a_budget_is_a_number_and_a_probability(target: float, delta: float) -> None:
    with pytest.raises(PrivacyError):
        Budget(target_epsilon=target, delta=delta)
