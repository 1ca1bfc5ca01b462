"""True Poisson sampling: coins of each unit's own, and nothing else has a say in them."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from neuralforge.data.batch import epoch_batches
from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge.privacy.sampling import PoissonSampler, Population
from neuralforge.privacy.units import by_unit, hidden, unit_ids
from neuralforge_common.errors import PrivacyError

UNLIKELY = 1e-7  # of a correct implementation to fail here


def example(index: int) -> TokenizedExample:
    return TokenizedExample(index=index, tokens=(1, 2, index), start=1)


def population(count: int, q: float, *, each: int = 1, name: str = "u") -> Population:
    return Population(
        units={f"{name}{n}": tuple(example(n * each + i) for i in range(each)) for n in range(count)}, sample_rate=q
    )


def poisson_fit(batches: Sequence[Sequence[int]], units: int, q: float) -> dict[str, float]:
    """How likely what is farther off would be, if each unit were drawn by a coin of its own: of three statistics."""
    drawn = np.zeros((len(batches), units))
    for row, batch in zip(drawn, batches, strict=True):
        row[list(batch)] = 1
    spread = q * (1 - q)

    def two_sided(statistic: float, degrees: int) -> float:
        below = stats.chi2.cdf(statistic, degrees)
        return float(2 * min(below, 1 - below))

    steps = len(batches)
    after = drawn[:-1] * drawn[1:]
    return {
        "how often each unit is drawn": two_sided(
            float(((drawn.sum(0) - steps * q) ** 2).sum() / (steps * spread)), units
        ),
        "how many are drawn in a step": two_sided(
            float(((drawn.sum(1) - units * q) ** 2).sum() / (units * spread)), steps
        ),
        "how often one is drawn twice in a row": float(stats.binomtest(int(after.sum()), after.size, q * q).pvalue),
    }


def batches_of(sampler: PoissonSampler, steps: int) -> list[list[int]]:
    return [[draw.unit for draw in sampler.draw(step)] for step in range(steps)]


@pytest.mark.parametrize("q", [0.01, 0.05, 0.5])
def test_inclusion_counts_are_binomial(q: float) -> None:
    sampler = PoissonSampler([population(200, q)], max_unit_examples=4)
    fit = poisson_fit(batches_of(sampler, 1000), 200, q)
    assert min(fit.values()) > UNLIKELY, fit


def test_shuffled_epochs_of_the_same_size_are_told_from_it() -> None:
    # What is often reported as Poisson sampling: each unit exactly once an epoch, in batches of one size.
    examples = [example(n) for n in range(200)]
    epochs = [epoch_batches(examples, batch_size=10, seed=1, epoch=epoch) for epoch in range(50)]
    fit = poisson_fit([batch for epoch in epochs for batch in epoch], 200, 0.05)
    assert max(fit.values()) < UNLIKELY, fit


def test_each_population_has_a_rate_of_its_own() -> None:
    new, replayed = population(100, 0.2, name="new"), population(150, 0.02, name="old")
    batches = batches_of(PoissonSampler([new, replayed], max_unit_examples=4), 1000)
    fits = (
        poisson_fit([[unit for unit in batch if unit < 100] for batch in batches], 100, 0.2),
        poisson_fit([[unit - 100 for unit in batch if unit >= 100] for batch in batches], 150, 0.02),
    )
    assert min(min(fit.values()) for fit in fits) > UNLIKELY, fits


def test_a_rate_of_one_draws_everybody_and_most_steps_of_a_low_one_draw_nobody() -> None:
    assert batches_of(PoissonSampler([population(5, 1.0)], max_unit_examples=4), 3) == [[0, 1, 2, 3, 4]] * 3
    empty = sum(not batch for batch in batches_of(PoissonSampler([population(10, 0.01)], max_unit_examples=4), 1000))
    assert stats.binomtest(empty, 1000, 0.99**10).pvalue > UNLIKELY


def test_nobody_at_all_is_a_population_too() -> None:
    assert batches_of(PoissonSampler([population(0, 0.5)], max_unit_examples=4), 3) == [[], [], []]


def seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def test_seeds_and_the_step_have_no_say() -> None:
    sampler = PoissonSampler([population(400, 0.5, each=6)], max_unit_examples=4)
    drawn = []
    for _ in range(2):
        seed_everything()
        drawn.append(sampler.draw(0))
    assert [draw.unit for draw in drawn[0]] != [draw.unit for draw in drawn[1]]
    both = [(one.examples, other.examples) for one in drawn[0] for other in drawn[1] if one.unit == other.unit]
    assert sum(one != other for one, other in both) > len(both) / 2


def test_of_a_large_unit_a_few_examples_take_part_each_as_likely_as_any_other() -> None:
    sampler = PoissonSampler([population(1, 1.0, each=10)], max_unit_examples=4)
    chosen = [draw.examples for step in range(2000) for draw in sampler.draw(step)]
    assert {len({each.index for each in examples}) for examples in chosen} == {4}
    counts = Counter(each.index for examples in chosen for each in examples)
    assert stats.chisquare([counts[n] for n in range(10)]).pvalue > UNLIKELY


def test_a_small_unit_takes_part_as_a_whole() -> None:
    sampler = PoissonSampler([population(3, 1.0, each=4)], max_unit_examples=4)
    assert [[each.index for each in draw.examples] for draw in sampler.draw(0)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]


def test_a_unit_in_two_populations_is_refused() -> None:
    with pytest.raises(PrivacyError, match="in one population"):
        PoissonSampler([population(3, 0.1), population(5, 0.2)], max_unit_examples=4)


@pytest.mark.parametrize("q", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(q: float) -> None:
    with pytest.raises(PrivacyError, match="sample rate"):
        population(3, q)


Make = Callable[..., Example]


@pytest.fixture
def cut() -> Make:
    def make(text: str, *, repo: str = "team/app", path: str = "a.py") -> Example:
        return Example(context="", completion=text, repo=repo, path=path)

    return make


def test_units_are_what_stands_or_falls_together(cut: Make) -> None:
    examples = [cut("x"), cut("y"), cut("y", path="b.py"), cut("y", repo="team/lib"), cut("x")]
    assert [len(set(unit_ids(examples, unit))) for unit in ("sample", "file", "repository")] == [4, 3, 2]
    ids = unit_ids(examples, "file")
    tokenized = [example(index) for index in (0, 1, 3, 4)]  # one had nothing to learn from
    assert {unit: [each.index for each in members] for unit, members in by_unit(tokenized, ids).items()} == {
        ids[0]: [0, 1, 4],
        ids[3]: [3],
    }


def test_names_that_run_into_each_other_are_different_files(cut: Make) -> None:
    first, second = unit_ids([cut("x", repo="a", path="b/c"), cut("x", repo="a/b", path="c")], "file")
    assert first != second


@pytest.mark.parametrize(("unit", "nameless"), [("file", {"path": ""}), ("repository", {"repo": ""})])
def test_examples_from_nowhere_have_no_file_to_protect(cut: Make, unit: str, nameless: dict[str, str]) -> None:
    with pytest.raises(PrivacyError, match=f"1 of 2 examples do not say which {unit} they are from"):
        unit_ids([cut("x"), cut("y", **nameless)], unit)  # type: ignore[arg-type]


def test_a_hidden_unit_depends_on_the_key(cut: Make) -> None:
    (unit,) = unit_ids([cut("x")], "sample")
    assert hidden(unit, b"a" * 32) == hidden(unit, b"a" * 32)
    assert hidden(unit, b"a" * 32) != hidden(unit, b"b" * 32)
