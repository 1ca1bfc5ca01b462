"""What stays in a replay buffer: the right sample, without secrets, the same whether or not it was put down between."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.continual import ReplayBuffer
from neuralforge.continual.item import MAX_ITEM_BYTES, Answer
from neuralforge.continual.keys import KeyFile
from neuralforge.continual.sampling import Balance, Reservoir
from neuralforge.data.example import Example
from neuralforge.data.soft import TopLogits
from neuralforge_common.errors import DataError, StorageError, VaultError


def example(number: int, *, language: str = "python", text: str = "") -> Example:
    return Example(context=f"def f{number}():\n", completion=text or f"    return {number}\n", language=language)


def stream(count: int, *, first: int = 0) -> list[Example]:
    return [example(n, language=("python", "rust", "go")[n % 3]) for n in range(first, first + count)]


def held_after(kinds: Sequence[str], *, size: int, balanced: bool, seed: int) -> list[int]:
    """Which places of a stream of these classes are held at its end."""
    reservoir = Reservoir(size=size, balanced=balanced, seed=seed)
    slots: list[int] = []
    for place, kind in enumerate(kinds):
        slot = reservoir.offer(kind)
        if slot == len(slots):
            slots.append(place)
        elif slot is not None:
            slots[slot] = place
    assert [kinds[place] for place in slots] == reservoir.classes
    return slots


def chi_square(counts: np.ndarray, expected: float, held: float) -> float:
    """Of how often each place was held, over runs that each hold a share `held` of the places without repetition.

    Sampling without replacement varies less than with it, by the factor 1 − held.
    """
    return float(((counts - expected) ** 2 / expected).sum() / (1 - held))


# 99.9 % point of chi-square for n degrees of freedom, by Wilson and Hilferty's cube.
def critical(degrees: int) -> float:
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_a_reservoir_is_uniform_over_everything_ever_offered() -> None:
    runs, length, size = 800, 30, 6
    counts = np.zeros(length)
    for seed in range(runs):
        counts[held_after(["python"] * length, size=size, balanced=False, seed=seed)] += 1
    assert counts.sum() == runs * size
    assert chi_square(counts, runs * size / length, size / length) < critical(length - 1)


def test_a_reservoir_is_the_one_of_random_keys_in_distribution() -> None:
    # Avalanche's ReservoirSamplingBuffer gives each example a random key and keeps the largest: another algorithm for
    # the same sample. How many of the first ten of thirty are held must follow the same law.
    runs, length, size = 800, 30, 6
    generator = np.random.default_rng(0)
    theirs = Counter(int((generator.random(length).argsort()[-size:] < 10).sum()) for _ in range(runs))
    ours = Counter(
        sum(place < 10 for place in held_after(["x"] * length, size=size, balanced=False, seed=seed))
        for seed in range(runs)
    )
    table = np.array([[ours[n], theirs[n]] for n in range(size + 1) if ours[n] + theirs[n] >= 10], dtype=float)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    assert float(((table - expected) ** 2 / expected).sum()) < critical(len(table) - 1)


def test_classes_are_held_evenly_however_rare_they_are() -> None:
    kinds = ["python"] * 300 + ["rust"] * 30 + ["python"] * 100 + ["go"] * 4
    held = Counter(kinds[place] for place in held_after(kinds, size=24, balanced=True, seed=1))
    assert held == {"python": 10, "rust": 10, "go": 4}
    plain = Counter(kinds[place] for place in held_after(kinds, size=24, balanced=False, seed=1))
    assert plain["python"] > 15


def test_within_a_class_each_example_is_equally_likely() -> None:
    runs = 600
    kinds = (["python"] * 3 + ["rust"]) * 10
    counts = np.zeros(len(kinds))
    for seed in range(runs):
        counts[held_after(kinds, size=8, balanced=True, seed=seed)] += 1
    for kind in ("python", "rust"):
        mine = counts[[place for place, name in enumerate(kinds) if name == kind]]
        share = mine.sum() / runs / len(mine)
        assert chi_square(mine, mine.mean(), share) < critical(len(mine) - 1), kind


@given(
    kinds=st.lists(st.sampled_from("abcd"), max_size=60),
    size=st.integers(0, 12),
    balanced=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_a_reservoir_is_bounded_and_full_as_soon_as_it_can_be(
    kinds: list[str], size: int, balanced: bool, seed: int
) -> None:
    slots = held_after(kinds, size=size, balanced=balanced, seed=seed)
    assert len(slots) == len(set(slots)) == min(size, len(kinds))


@pytest.mark.parametrize("balance", ["uniform", "language", "session"])
def test_a_buffer_taken_up_again_is_the_one_that_was_never_put_down(tmp_path: Path, balance: Balance) -> None:
    kept = ReplayBuffer(max_size=20, balance=balance, seed=3)
    for session in range(5):
        kept.add(stream(17, first=17 * session), session=f"s{session}")
        opened = ReplayBuffer.open(tmp_path / "replay", KeyFile(tmp_path / "key"), max_size=20, balance=balance, seed=3)
        opened.add(stream(17, first=17 * session), session=f"s{session}")
    again = ReplayBuffer.open(tmp_path / "replay", KeyFile(tmp_path / "key"), max_size=20, balance=balance)
    assert [item.example for item in again.items] == [item.example for item in kept.items]
    assert again.seen == kept.seen == 85
    assert again.sessions == kept.sessions
    assert again.sample(8) == kept.sample(8)


def test_a_sample_has_no_example_twice_and_the_next_one_is_another() -> None:
    buffer = ReplayBuffer(max_size=100)
    buffer.add(stream(80))
    first, second = buffer.sample(batch_size=32), buffer.sample(batch_size=32)
    assert len({e.id for e in first}) == len({e.id for e in second}) == 32
    assert first != second
    assert buffer.sample(32, seed=5) == buffer.sample(32, seed=5)
    assert len(buffer.sample(500)) == 80
    assert ReplayBuffer().sample(4) == []


def test_an_example_that_is_held_is_not_held_twice() -> None:
    buffer = ReplayBuffer(max_size=50)
    buffer.add(stream(10), session="first")
    added = buffer.add([*stream(10), *stream(5, first=10), example(10, language="rust")], session="second")
    assert (added.chosen, added.repeated) == (5, 11)
    assert buffer.sessions == {"first": 10, "second": 5}
    assert buffer.seen == len(buffer) == 15


def test_secrets_are_taken_out_and_what_is_nothing_else_is_refused() -> None:
    token = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    buffer = ReplayBuffer()
    added = buffer.add(
        [
            example(0, text=f'    token = "{token}"\n    return token\n'),
            example(1, text=token),
            example(2, text="x" * MAX_ITEM_BYTES),
        ]
    )
    assert (added.chosen, added.refused) == (1, 2)
    assert "<REDACTED:" in buffer.items[0].example.completion
    assert token not in repr(buffer.items)


def test_an_answer_to_a_text_with_a_secret_is_not_kept() -> None:
    logits = TopLogits(ids=np.ones((3, 2), np.int32), values=np.ones((3, 2), np.float16))
    answer = Answer(logits=logits, of="these tokens")
    buffer = ReplayBuffer()
    secret = example(0, text='    password = "hunter2-Tr0ub4dor&3"\n')
    buffer.add([secret, example(1)], answers=[answer, answer])
    assert [item.answer for item in buffer.items] == [None, answer]


def test_two_processes_may_add_to_one_buffer(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "key")
    one = ReplayBuffer.open(tmp_path / "replay", key)
    other = ReplayBuffer.open(tmp_path / "replay", key)
    one.add(stream(5), session="one")
    other.add(stream(5, first=5), session="other")
    one.add(stream(5, first=10), session="one")
    assert one.sessions == {"one": 10, "other": 5}
    assert ReplayBuffer.open(tmp_path / "replay", key).sessions == one.sessions


def test_a_smaller_buffer_drops_the_rest_evenly(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "key")
    ReplayBuffer.open(tmp_path / "replay", key, max_size=40).add(stream(40))
    smaller = ReplayBuffer.open(tmp_path / "replay", key, max_size=10)
    smaller.add(stream(1, first=40))
    held = [int(item.example.completion.split()[-1]) for item in smaller.items]
    assert len(held) == 10
    assert held != list(range(10))
    assert len(ReplayBuffer.open(tmp_path / "replay", key, max_size=10)) == 10


def test_a_buffer_is_not_taken_up_under_another_balance(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "key")
    ReplayBuffer.open(tmp_path / "replay", key, balance="language").add(stream(3))
    with pytest.raises(VaultError, match="balance 'language', asked for is 'session'"):
        ReplayBuffer.open(tmp_path / "replay", key, balance="session")


def test_what_the_disk_refuses_leaves_the_buffer_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = KeyFile(tmp_path / "key")
    buffer = ReplayBuffer.open(tmp_path / "replay", key, max_size=10)
    buffer.add(stream(10), session="first")
    before = buffer.items

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="disk is full"):
            buffer.add(stream(50, first=10), session="second")
    assert buffer.items == before
    assert ReplayBuffer.open(tmp_path / "replay", key, max_size=10).items == before
    buffer.add(stream(50, first=10), session="second")
    assert buffer.sessions["second"] > 0


def test_an_answer_for_each_example_or_none_at_all() -> None:
    with pytest.raises(DataError, match="2 answers for 3 examples"):
        ReplayBuffer().add(stream(3), answers=[None, None])
