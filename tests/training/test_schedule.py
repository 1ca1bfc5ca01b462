"""Learning rates: warm-up, decay, and the guide's scheduler."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.training import ConstantScheduler, CosineScheduler, LinearScheduler
from neuralforge.training.schedule import default_learning_rate, make_scheduler


def test_the_guides_scheduler_warms_up_and_reaches_zero() -> None:
    schedule = CosineScheduler(base_lr=0.0001, warmup_steps=100, total_steps=1000)
    rates = [schedule(step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.0001 / 101)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100] == pytest.approx(0.0001)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(0.00005)
    assert rates[1000] == pytest.approx(0.0, abs=1e-12)


def test_linear_falls_in_a_straight_line() -> None:
    schedule = LinearScheduler(base_lr=1.0, warmup_steps=0, total_steps=4)
    assert [schedule(step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_constant_stays() -> None:
    schedule = ConstantScheduler(base_lr=0.3, warmup_steps=2)
    assert [schedule(step) for step in (2, 3, 10**6)] == [0.3, 0.3, 0.3]


@given(
    name=st.sampled_from(["linear", "cosine", "constant"]),
    rate=st.floats(1e-6, 1.0),
    warmup=st.none() | st.integers(0, 500),
    total=st.integers(1, 500),
)
def test_no_rate_is_negative_or_above_the_base_rate(name: str, rate: float, warmup: int | None, total: int) -> None:
    schedule = make_scheduler(name, base_lr=rate, warmup_steps=warmup, total_steps=total)  # type: ignore[arg-type]
    rates = [schedule(step) for step in range(total)]
    assert all(0 <= r <= rate * (1 + 1e-12) for r in rates)
    assert rates[0] > 0, "a first step at rate zero would be wasted"


def test_a_warm_up_longer_than_half_the_run_is_cut_to_a_tenth() -> None:
    schedule = make_scheduler("linear", base_lr=1.0, warmup_steps=100, total_steps=20)
    assert schedule(2) == 1.0


@pytest.mark.parametrize(("total", "warmup"), [(5, 0), (20, 2), (99, 9), (100, 10), (5_000, 10)])
def test_a_run_that_is_not_told_warms_up_for_a_tenth_and_at_most_ten_steps(total: int, warmup: int) -> None:
    schedule = make_scheduler("constant", base_lr=1.0, warmup_steps=None, total_steps=total)
    assert [schedule(step) < 1.0 for step in range(warmup + 1)] == [True] * warmup + [False]


def test_larger_bases_get_smaller_rates() -> None:
    assert default_learning_rate(3_000_000) == default_learning_rate(135_000_000) == 3e-3
    assert math.isclose(default_learning_rate(7_000_000_000), 2e-4, rel_tol=0.2)
