"""Noise: normal, never the same twice, deaf to seeds, and leaving no trace of the digits that it hides."""

import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from neuralforge_common.errors import PrivacyError
from neuralforge_common.noise import add_noise, random_words, standard_normal

UNLIKELY = 1e-7  # of a correct implementation to fail here

DRAW_AND_FORK = """if True:
    import os
    from neuralforge_common.noise import random_words, standard_normal
    standard_normal(5)
    children = [os.fork() == 0 for _ in range(2)]  # and a child's child
    text = "".join(f"{word}\\n" for word in random_words(50)) + "".join(f"{x!r}\\n" for x in standard_normal(50))
    os.write(1, text.encode())
    if not any(children):
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
    """


def two_sided(statistic: float, degrees: int) -> float:
    below = stats.chi2.cdf(statistic, degrees)
    return float(2 * min(below, 1 - below))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 32_768, 32_769, 100_001])
def test_as_many_values_as_were_asked_for(count: int) -> None:
    values = standard_normal(count)
    assert values.shape == (count,)
    assert np.isfinite(values).all()


def test_values_are_standard_normal() -> None:
    values = standard_normal(400_000)
    assert abs(values.mean()) * np.sqrt(len(values)) < 6
    assert two_sided(float((values**2).sum()), len(values)) > UNLIKELY
    assert stats.kstest(values, "norm").pvalue > UNLIKELY
    assert stats.kstest(values[np.abs(values) > 2.5], _tail).pvalue > UNLIKELY


def _tail(x: np.ndarray) -> np.ndarray:
    edge = stats.norm.cdf(-2.5)
    return np.where(x < 0, stats.norm.cdf(np.minimum(x, -2.5)), stats.norm.cdf(x) - 1 + 2 * edge) / (2 * edge)


@pytest.mark.parametrize("apart", [1, 2, 16_384, 32_768])
def test_values_know_nothing_of_each_other(apart: int) -> None:
    # Pairs of Box & Muller's method lie 16,384 apart: neither they nor their squares may be correlated.
    values = standard_normal(400_000)
    for of in (values, values**2 - 1, np.abs(values) - np.sqrt(2 / np.pi)):
        correlation = np.corrcoef(of[:-apart], of[apart:])[0, 1]
        assert abs(correlation) * np.sqrt(len(of)) < 6


def test_every_bit_of_a_word_is_as_often_set_as_not() -> None:
    words = random_words(20_000)
    set_ = [float(((words >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert two_sided(sum((count - 10_000) ** 2 / 5_000 for count in set_), 64) > UNLIKELY


def test_nothing_is_drawn_twice_in_three_starts_and_all_their_forks() -> None:
    drawn: list[str] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", DRAW_AND_FORK], capture_output=True, text=True, check=True)
        lines = done.stdout.split()
        assert len(lines) == 4 * 100  # a process, two children, and the child of one
        drawn += lines
    assert len(set(drawn)) == len(drawn)


def test_seeds_have_no_say() -> None:
    import torch

    drawn = []
    for _ in range(2):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        drawn.append(standard_normal(100))
    assert not np.isin(drawn[0], drawn[1]).any()


def test_added_noise_has_the_deviation_that_was_asked_for() -> None:
    # χ², for a deviation that is no power of two and is thus rounded on the finer side of its grid.
    values = add_noise(np.full(300_000, 5.0, np.float32), 0.37).astype(np.float64) - 5.0
    assert two_sided(float(((values / 0.37) ** 2).sum()), len(values)) > UNLIKELY


def test_added_noise_is_new_every_time() -> None:
    values = np.zeros(1000, np.float32)
    assert (add_noise(values, 1.0) == add_noise(values, 1.0)).mean() < 0.01


@pytest.mark.parametrize("deviation", [1e-6, 0.7, 1.0, 3e5])
def test_a_noised_value_lies_on_the_grid_whatever_digits_it_had(deviation: float) -> None:
    values = deviation * np.random.default_rng(0).uniform(-1, 1, 10_000)
    grid = 2.0 ** (np.floor(np.log2(deviation)) - 20)
    places = add_noise(values, deviation).astype(np.float64) / grid
    assert (places == np.rint(places)).all()
    assert len(np.unique(places)) > 9_800  # so fine that hardly any two are the same


def test_plain_addition_in_float32_shows_the_last_digit_that_the_grid_hides() -> None:
    # Mironov 2012. Noise below -1 is a multiple of 2⁻²³, sums above -1 keep 2⁻²⁴: that digit is the value's own.
    noise = standard_normal(200_000).astype(np.float32)
    for value, shown in ((0.25, 0), (0.25 + 2.0**-24, 1)):
        plain = np.float32(value) + noise
        assert {*(plain[(plain > -1) & (plain < -0.75)] / 2.0**-24 % 2)} == {shown}
        hidden = add_noise(np.full(200_000, value, np.float32), 1.0)
        assert {*(hidden[(hidden > -1) & (hidden < -0.75)] / 2.0**-24 % 2)} == {0}


def test_with_no_noise_only_the_grid_is_between() -> None:
    values = np.linspace(-3, 3, 1001).reshape(7, 143)
    found = add_noise(values, 1.0, noise=np.zeros)
    assert found.dtype == np.float32
    assert found.shape == values.shape
    assert np.abs(found - values).max() <= 2**-21
    assert (add_noise(values, 0.0) == values.astype(np.float32)).all()


def test_what_is_noised_is_left_as_it_was() -> None:
    values = np.ones(10)
    add_noise(values, 1.0)
    assert (values == 1).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0, 1e-40])
def test_a_deviation_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(PrivacyError, match="wanted a finite standard deviation"):
        add_noise(np.zeros(3), wrong)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_value_that_no_noise_hides_is_refused(wrong: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        add_noise(np.array([0.0, wrong]), 1.0)
