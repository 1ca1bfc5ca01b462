"""The verdict of a comparison: wrong no more often than it says, right where it can be."""

import numpy as np
import pytest

from neuralforge.evaluation.intervals import Interval
from neuralforge.evaluation.paired import (
    beyond,
    hits_interval,
    holm,
    mcnemar,
    mcnemar_samples_needed,
    paired_difference,
    samples_needed,
    sign_flip,
)
from neuralforge.evaluation.verdict import Compared, decide, overall

ALPHA = 0.05


def row(metric: str, change: float, p: float | None, *, sign: int = 1, needed: int | None = None) -> Compared:
    return Compared(
        metric=metric, a=0.0, b=0.0, change=change, interval=None, sign=sign, samples=100, p=p, needed=needed
    )


def trial(seed: int, *, better: float, files: int = 12) -> str:
    """The overall verdict on simulated scores: samples of a file are alike, A is `better` nats a token."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(files), 4)
    tokens = rng.integers(5, 30, size=clusters.size).astype(float)
    shift = rng.normal(0, 0.2, size=files)[clusters]
    b = rng.gamma(2.0, 1.0, size=clusters.size) * tokens
    a = b + (shift - better + rng.normal(0, 0.2, size=clusters.size)) * tokens
    loss = paired_difference(a, b, tokens, clusters, seed=seed)
    rights = rng.random((2, 60)) < 0.4 + np.array([[better], [0.0]])
    only_a, only_b = int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())
    rows = [
        row("perplexity", loss.value, loss.p, sign=-1),
        row("exact match", only_a - only_b, mcnemar(only_a, only_b)),
    ]
    return overall(decide(rows, alpha=ALPHA))


def test_of_two_equal_adapters_one_is_called_better_no_more_often_than_alpha() -> None:
    verdicts = [trial(seed, better=0.0) for seed in range(300)]
    wrong = sum(not verdict.startswith("inconclusive") for verdict in verdicts)
    # 300 verdicts at a true rate of 5 % are above 26 once in two hundred times.
    assert wrong <= 26


@pytest.mark.parametrize("files", [3, 5])
def test_a_handful_of_files_decides_nothing(files: int) -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(files), 10)
    b = rng.gamma(2.0, 1.0, size=clusters.size)
    found = paired_difference(b - 1.0, b, np.ones(clusters.size), clusters, seed=0)
    assert found.p > ALPHA


def test_the_better_adapter_wins() -> None:
    verdicts = [trial(seed, better=0.4) for seed in range(40)]
    assert sum(verdict.startswith("A better") for verdict in verdicts) >= 36
    assert not any("B better" in verdict for verdict in verdicts)


def test_the_same_scores_are_no_difference() -> None:
    values = np.random.default_rng(1).random(30)
    found = paired_difference(values, values, np.ones(30), np.arange(30), seed=0)
    assert (found.value, found.p) == (0.0, 1.0)
    assert samples_needed(found, alpha=ALPHA) is None


def test_exact_and_drawn_sign_flips_agree() -> None:
    rng = np.random.default_rng(3)
    exact = rng.normal(0.5, 1.0, size=14)
    # A fifteenth value too small to matter sends the same numbers down the other path.
    assert sign_flip(np.append(exact, 1e-13), seed=0) == pytest.approx(sign_flip(exact, seed=0), abs=0.015)


def test_mcnemar_is_the_two_sided_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(2, 8) == mcnemar(8, 2)


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_three_points_at_a_tenth_discordant_take_about_870_samples() -> None:
    assert mcnemar_samples_needed(65, 35, 1000, alpha=0.05) == pytest.approx(870, abs=5)
    assert mcnemar_samples_needed(4, 4, 100, alpha=0.05) is None


def test_as_many_samples_as_are_named_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0.2, 1.0, size=50)
    values += 0.2 - values.mean()
    found = paired_difference(values, np.zeros(50), np.ones(50), np.arange(50), seed=0)
    needed = samples_needed(found, alpha=ALPHA)
    assert needed is not None
    spread = float(values.std(ddof=1))
    rejected = 0
    for _ in range(200):
        again = rng.normal(0.2, spread, size=needed)
        rejected += sign_flip(again, seed=1) <= ALPHA
    assert 0.7 <= rejected / 200 <= 0.9


def test_a_difference_within_the_margin_is_none() -> None:
    rng = np.random.default_rng(6)
    small = rng.normal(0.03, 0.01, size=24)
    assert sign_flip(small, seed=0) < 0.001
    assert beyond(small, margin=0.05, seed=0) == 1.0
    assert beyond(small + 0.1, margin=0.05, seed=0) < 0.001


def test_where_no_sample_tells_two_apart_the_difference_still_has_a_width() -> None:
    interval = hits_interval(0, 0, 50)
    assert interval.low == pytest.approx(-interval.high)
    assert 0.02 < interval.high < 0.06
    assert isinstance(interval, Interval)


def test_the_overall_verdict_names_what_decided_it_or_what_is_missing() -> None:
    def said(*rows: Compared) -> str:
        return overall(decide(rows, alpha=ALPHA))

    assert said(row("accuracy", 0.1, 0.001), row("perplexity", 0.0, 1.0, sign=-1)) == "A better (accuracy)"
    assert said(row("perplexity", 0.1, 0.001, sign=-1)) == "B better (perplexity)"
    mixed = said(row("accuracy", 0.1, 0.001), row("speed", 0.1, 0.001, sign=-1))
    assert mixed == "inconclusive: A better in accuracy, B better in speed"
    missing = said(row("accuracy", 0.1, 0.2, needed=970), row("perplexity", 0.1, 0.2, sign=-1, needed=2000))
    assert missing.startswith("inconclusive, about 870 more samples needed (for accuracy")
    assert said(row("accuracy", 0.0, 1.0)) == "inconclusive: no difference was seen that more samples could show"
    # What is counted decides only where nothing was sampled.
    assert said(row("memory", -0.1, None, sign=-1)) == "A better (memory)"
    assert said(row("memory", -0.1, None, sign=-1), row("accuracy", 0.0, 1.0)).startswith("inconclusive")
    # Two at 0.03 are one wrong verdict in sixteen: Holm refuses both.
    assert said(row("accuracy", 0.1, 0.03), row("syntax", 0.1, 0.04)).startswith("inconclusive")


def test_an_interval_of_a_paired_difference_holds_the_truth() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        b = rng.gamma(2.0, 1.0, size=40)
        a = b + rng.gamma(1.0, 0.3, size=40)
        interval = paired_difference(a, b, np.ones(40), np.arange(40), seed=seed).interval
        held += interval.low <= 0.3 <= interval.high
    assert 0.9 <= held / 200 <= 0.99
