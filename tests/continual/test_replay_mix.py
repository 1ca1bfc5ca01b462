"""New and replayed examples in one run: the exact share, the same batches each time, and runs that can be resumed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.continual import Dark, Mix, ReplayBuffer, replayed
from neuralforge.continual.dark import answers
from neuralforge.continual.keys import KeyFile
from neuralforge.continual.mix import MixedSource, Replayed
from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.data.tokens import TokenizedExample
from neuralforge.models.load import load_base_model
from neuralforge.training import LoRATrainer
from neuralforge.training.source import EpochSource
from neuralforge_common.errors import CheckpointError, TrainingError


def tokens(count: int) -> tuple[TokenizedExample, ...]:
    return tuple(TokenizedExample(index=i, tokens=(1, 2, 3 + i % 5), start=1) for i in range(count))


def mixed(
    new: int, old: int, *, share: float, batch_size: int = 4, accumulation: int = 1, seed: int = 0
) -> MixedSource:
    made = Mix(replayed=Replayed(examples=tokens(old)), share=share)
    return made(tokens(new), batch_size=batch_size, accumulation=accumulation, seed=seed)


def drawn(source: MixedSource, steps: int) -> list[list[int]]:
    return [[e.index for batch in source.batches(step) for e in batch.examples] for step in range(steps)]


def test_with_a_batch_of_four_each_step_has_one_replayed_example() -> None:
    for indices in drawn(mixed(40, 30, share=0.2), 10):
        assert [index >= 40 for index in indices] == [False] * 4 + [True]


@given(
    new=st.integers(1, 30),
    old=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.75]),
    batch_size=st.integers(1, 7),
    accumulation=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_the_share_is_exact_over_time_and_passes_are_even(
    new: int, old: int, share: float, batch_size: int, accumulation: int, seed: int
) -> None:
    source = mixed(new, old, share=share, batch_size=batch_size, accumulation=accumulation, seed=seed)
    part = Fraction(str(share))
    fresh, again = 0, Counter[int]()
    for indices in drawn(source, 3 * source.steps_per_epoch):
        fresh += sum(index < new for index in indices)
        again.update(index for index in indices if index >= new)
        assert again.total() == int(fresh * part / (1 - part))
        if again.total() >= old:
            assert max(again.values()) - min(again.values()) <= 1
            assert len(again) == old
    assert fresh == 3 * new


def test_batches_are_a_function_of_seed_and_step() -> None:
    inorder = drawn(mixed(23, 9, share=0.3, accumulation=2), 12)
    source = mixed(23, 9, share=0.3, accumulation=2)
    backwards = [[e.index for batch in source.batches(step) for e in batch.examples] for step in reversed(range(12))]
    assert backwards[::-1] == inorder
    assert drawn(mixed(23, 9, share=0.3, accumulation=2, seed=1), 12) != inorder


@pytest.mark.parametrize(("old", "share"), [(0, 0.2), (10, 0.0)])
def test_nothing_to_replay_is_the_plain_source(old: int, share: float) -> None:
    plain = EpochSource(tokens(11), batch_size=4, accumulation=1, seed=0)
    source = mixed(11, old, share=share)
    assert [source.batches(step) for step in range(9)] == [plain.batches(step) for step in range(9)]


@pytest.mark.parametrize("share", [1.0, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_no_room_for_new_ones_is_refused(share: float) -> None:
    with pytest.raises(TrainingError, match="share of replayed examples"):
        mixed(4, 4, share=share)


# --- In the trainer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sessions(team_code: Path) -> tuple[Dataset, Dataset]:
    """What was learnt before, and what is new."""
    half = [gather(sources=[team_code], patterns=[name], max_samples=12, seed=0) for name in ("csv.py", "heapq.py")]
    return half[0], half[1]


@pytest.fixture
def trainer() -> Callable[..., LoRATrainer]:
    def make(**options: Any) -> LoRATrainer:
        base = load_base_model("nf-tiny", dtype="float32", device="cpu")
        return LoRATrainer(base, **{"rank": 4, "max_length": 48, "learning_rate": 3e-3, **options})

    return make


Make = Callable[..., LoRATrainer]


def learnt(trainer: LoRATrainer, sessions: tuple[Dataset, Dataset], *, logits: bool = True) -> ReplayBuffer:
    """Learn the first session, and remember it."""
    old = sessions[0].train
    trainer.train(old, max_steps=2)
    buffer = ReplayBuffer(max_size=8)
    buffer.add(old, session="old", answers=answers(trainer, old) if logits else None)
    return buffer


@pytest.mark.parametrize("engine", ["fast", "general"])
def test_zero_weights_are_plain_replay_bit_for_bit(
    trainer: Make, sessions: tuple[Dataset, Dataset], engine: str
) -> None:
    digests = {}
    for name, dark in {"replay": None, "nothing": Dark(alpha=0.0, beta=1.0), "der++": Dark()}.items():
        learner = trainer(engine=engine)
        buffer = learnt(learner, sessions)
        old = replayed(buffer.items, learner, dark=dark)
        assert old.stale == 0
        assert all(soft.logits is not None for soft in old.soft.values())
        learner.train(sessions[1].train, max_steps=4, source=Mix(replayed=old, share=0.5))
        digests[name] = learner.state().digest()
    assert digests["nothing"] == digests["replay"]
    assert digests["der++"] != digests["replay"]


def test_a_source_without_replay_is_the_run_as_it_was(trainer: Make, sessions: tuple[Dataset, Dataset]) -> None:
    states = []
    for source in (None, Mix(replayed=Replayed(examples=()))):
        learner = trainer()
        learner.train(sessions[1].train, max_steps=5, **({} if source is None else {"source": source}))
        states.append(learner.state())
    assert states[0] == states[1]


def test_a_resumed_run_ends_with_the_same_bytes_and_not_with_another_mix(
    tmp_path: Path, trainer: Make, sessions: tuple[Dataset, Dataset]
) -> None:
    buffer = learnt(trainer(), sessions)

    def run(folder: Path, *, stop_at: int = 99, share: float = 0.4, dark: Dark | None = None) -> LoRATrainer:
        learner = trainer(dropout=0.1)
        asked = itertools.count()
        old = replayed(buffer.items, learner, dark=dark or Dark())
        learner.train(
            sessions[1].train,
            max_steps=8,
            epochs=9,
            checkpoint_dir=folder,
            resume=True,
            stop=lambda: next(asked) >= stop_at,
            source=Mix(replayed=old, share=share),
        )
        return learner

    whole = run(tmp_path / "whole").state()
    run(tmp_path / "halved", stop_at=3)
    with pytest.raises(CheckpointError, match="another run"):
        run(tmp_path / "halved", share=0.2)
    with pytest.raises(CheckpointError, match="another run"):
        run(tmp_path / "halved", dark=Dark(alpha=0.1))
    assert run(tmp_path / "halved").state() == whole


def test_a_kept_prefix_is_of_the_example_that_is_learnt(trainer: Make, sessions: tuple[Dataset, Dataset]) -> None:
    states = []
    for cache_bytes in (0, 2**28):
        learner = trainer(top_layers_only=1, cache_bytes=cache_bytes)
        buffer = learnt(learner, sessions, logits=False)
        source = Mix(replayed=replayed(buffer.items, learner), share=0.5)
        learner.train(sessions[1].train, epochs=3, max_steps=14, source=source)
        states.append(learner.flat.vector.detach().clone())
    assert float((states[0] - states[1]).abs().max()) < 1e-4


def test_answers_survive_the_vault_and_go_stale_with_another_length(
    tmp_path: Path, trainer: Make, sessions: tuple[Dataset, Dataset]
) -> None:
    learner = trainer()
    old = sessions[0].train
    key = KeyFile(tmp_path / "key")
    ReplayBuffer.open(tmp_path / "replay", key).add(old, answers=answers(learner, old, k=5))
    items = ReplayBuffer.open(tmp_path / "replay", key).items
    back, there = replayed(items, learner, dark=Dark()), answers(learner, [item.example for item in items], k=5)
    assert back.stale == 0
    for index, soft in back.soft.items():
        answer = there[index]
        assert answer is not None
        assert soft.logits is not None
        assert (soft.logits.ids == answer.logits.ids).all()
        assert (soft.logits.values == answer.logits.values).all()
    shorter = trainer(max_length=24)
    cut = replayed(items, shorter, dark=Dark())
    assert cut.stale == sum(soft.logits is None for soft in cut.soft.values()) > 0
    shorter.train(sessions[1].train, max_steps=2, source=Mix(replayed=cut, share=0.5))


def test_examples_that_are_held_out_are_not_replayed(trainer: Make, sessions: tuple[Dataset, Dataset]) -> None:
    learner = trainer()
    buffer = learnt(learner, sessions, logits=False)
    first = {item.example.id for item in buffer.items[:5]}
    assert len(replayed(buffer.items, learner, without=first).examples) == len(buffer) - 5
    everything = {item.example.id for item in buffer.items}
    assert replayed(buffer.items, learner, without=everything).examples == ()
