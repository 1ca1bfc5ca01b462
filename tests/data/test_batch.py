"""Batches: every example once, the same for the same seed and epoch, hardly any padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.batch import WINDOW_BATCHES, Batch, epoch_batches, evaluation_batches
from neuralforge.data.tokens import TokenizedExample


def of_lengths(lengths: Sequence[int]) -> list[TokenizedExample]:
    return [TokenizedExample(index=i, tokens=tuple(range(n)), start=n // 2) for i, n in enumerate(lengths)]


def realistic(count: int) -> list[TokenizedExample]:
    """What code looks like: context and completion of very unlike lengths, many cut at the limit."""
    lengths = np.random.default_rng(5).lognormal(mean=4.6, sigma=0.7, size=count)
    return of_lengths(np.clip(lengths, 4, 256).astype(int).tolist())


def padding(batches: Sequence[Batch]) -> float:
    return 1 - sum(batch.tokens for batch in batches) / sum(batch.padded_tokens for batch in batches)


def gathered(examples: Sequence[TokenizedExample], batches: Sequence[tuple[int, ...]]) -> list[Batch]:
    return [Batch(examples=tuple(examples[i] for i in batch)) for batch in batches]


lengths = st.lists(st.integers(1, 50), max_size=300)


@given(lengths, st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 100))
def test_an_epoch_holds_every_example_once_in_batches_of_the_size_asked_for(
    sizes: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(of_lengths(sizes), batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(position for batch in batches for position in batch) == list(range(len(sizes)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    # Only the last batch of a window may be short.
    assert len(batches) == -(-len(sizes) // batch_size)


@given(lengths, st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 100))
def test_an_epoch_is_a_pure_function_of_seed_and_epoch(
    sizes: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    examples = of_lengths(sizes)
    first = epoch_batches(examples, batch_size=batch_size, seed=seed, epoch=epoch)
    np.random.default_rng(seed % 1000).random(3)
    epoch_batches(examples, batch_size=batch_size, seed=seed, epoch=epoch + 1)
    assert epoch_batches(examples, batch_size=batch_size, seed=seed, epoch=epoch) == first


def test_another_seed_or_epoch_is_another_order() -> None:
    examples = realistic(500)
    orders = [
        tuple(epoch_batches(examples, batch_size=4, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len(set(orders)) == 4


def test_batch_mates_change_from_epoch_to_epoch() -> None:
    examples = realistic(1000)
    first, second = (
        {frozenset(batch) for batch in epoch_batches(examples, batch_size=4, seed=0, epoch=epoch)} for epoch in (0, 1)
    )
    assert len(first & second) < len(first) / 20


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_padding_stays_under_five_percent(batch_size: int) -> None:
    examples = realistic(2000)
    for epoch in range(3):
        batches = epoch_batches(examples, batch_size=batch_size, seed=0, epoch=epoch)
        assert padding(gathered(examples, batches)) < 0.05
    in_any_order = [tuple(range(i, i + batch_size)) for i in range(0, 2000, batch_size)]
    assert padding(gathered(examples, in_any_order)) > 0.25, "these lengths are too alike to show anything"
    assert padding(evaluation_batches(examples, batch_size=batch_size)) < 0.05


def test_short_and_long_examples_come_in_no_order_over_the_epoch() -> None:
    # Sorted within windows only, and the batches shuffled: the first half must not be the short ones.
    examples = realistic(4 * WINDOW_BATCHES * 8)
    means = [
        np.mean([examples[i].length for i in batch]) for batch in epoch_batches(examples, batch_size=4, seed=0, epoch=0)
    ]
    half = len(means) // 2
    assert abs(np.mean(means[:half]) - np.mean(means[half:])) < 0.1 * np.mean(means)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2


@pytest.mark.parametrize(("windows", "sorted_as_one"), [(1, True), (2, False)])
def test_lengths_are_sorted_within_a_window_and_no_further(windows: int, sorted_as_one: bool) -> None:
    examples = of_lengths(list(range(1, 1 + 4 * WINDOW_BATCHES * windows)))
    batches = epoch_batches(examples, batch_size=4, seed=0, epoch=0)
    assert (all(batch[-1] - batch[0] == 3 for batch in batches)) == sorted_as_one
    assert batches != sorted(batches)


@given(lengths, st.integers(1, 9))
def test_evaluation_takes_every_example_once_shortest_first(sizes: list[int], batch_size: int) -> None:
    batches = evaluation_batches(of_lengths(sizes), batch_size=batch_size)
    order = [example for batch in batches for example in batch.examples]
    assert sorted(example.index for example in order) == list(range(len(sizes)))
    assert [example.length for example in order] == sorted(sizes)
    assert all(len(batch.examples) == batch_size for batch in batches[:-1])


def test_a_batch_counts_what_it_reads_learns_and_pads() -> None:
    causal = Batch(examples=tuple(of_lengths([4, 10])))
    assert (causal.tokens, causal.targets, causal.padded_tokens) == (14, 2 + 5, 20)
    pair = (
        TokenizedExample(index=0, tokens=(1, 2), start=0, context=(1, 2, 3, 4, 5)),
        TokenizedExample(index=1, tokens=(1, 2, 3), start=0, context=(1,)),
    )
    # Encoder and decoder are padded apart: (5 + 3) for each of the two.
    assert (Batch(examples=pair).tokens, Batch(examples=pair).targets, Batch(examples=pair).padded_tokens) == (
        11,
        5,
        16,
    )
