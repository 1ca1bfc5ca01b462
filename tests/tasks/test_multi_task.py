"""Several tasks by shares: what is drawn, what is learnt, and that a stopped run goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_batch

from neuralforge.data.example import Example
from neuralforge.data.jsonl import write_examples
from neuralforge.models import load_base_model
from neuralforge.tasks import BugDetection, Completion
from neuralforge.tasks.task import resolve_tasks
from neuralforge.training import MultiTaskTrainer
from neuralforge.training.shares import Shares, SharesSource
from neuralforge_common.errors import DataError, TrainingError

GUIDE = {"completion": 0.5, "bug_detection": 0.3, "documentation": 0.2}
OPTIONS: dict[str, Any] = {"rank": 2, "max_length": 64, "batch_size": 4, "seed": 3}


def function(number: int) -> Example:
    code = (
        f'def total_{number}(items, limit):\n    """Give the sum of the items up to a limit."""\n    found = {number}\n'
    )
    code += "    for item in items:\n        if item < limit:\n            found = found + item\n"
    code += f"    return found + {number}\n"
    return Example(context="import math\n\n\n", completion=code, language="python", path=f"m{number}.py")


CODE = [function(number) for number in range(8)]
HELD_OUT = [function(number) for number in range(20, 23)]


def source_of(shares: dict[str, float], *, count: int = 23, seed: int = 0, size: int = 4) -> SharesSource:
    names = list(shares)
    groups = [names[i % len(names)] for i in range(count)]
    batch = tiny_batch(count=count)
    return Shares(groups=groups, shares=shares)(batch.examples, batch_size=size, accumulation=2, seed=seed)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=4), steps=st.integers(1, 40))
def test_after_any_number_of_steps_every_task_has_had_its_share(weights: list[int], steps: int) -> None:
    shares = {f"task {i}": weight / 10 for i, weight in enumerate(weights)}
    drawn = source_of(shares, count=2 * len(weights)).drawn(steps)
    assert sum(drawn.values()) == 8 * steps
    for (name, count), weight in zip(drawn.items(), weights, strict=True):
        assert abs(count - Fraction(weight, sum(weights)) * 8 * steps) < len(weights), name


def test_the_batches_hold_what_is_drawn_and_a_step_is_the_same_whatever_was_asked_before() -> None:
    forwards, backwards = source_of(GUIDE), source_of(GUIDE)
    steps = range(12)
    one = [forwards.batches(step) for step in steps]
    other = [backwards.batches(step) for step in reversed(steps)][::-1]
    assert one == other
    assert source_of(GUIDE, seed=1).batches(0) != one[0]
    seen = [example.index % 3 for batches in one for batch in batches for example in batch.examples]
    assert [seen.count(group) for group in range(3)] == list(forwards.drawn(12).values())
    assert all(len(batch.examples) == 4 for batches in one for batch in batches)


def test_no_example_of_a_task_is_seen_twice_before_all_of_it_was_seen_once() -> None:
    source = source_of({"a": 1.0, "b": 1.0}, count=16)
    seen = [example.index for batch in source.batches(0) + source.batches(1) for example in batch.examples]
    assert sorted(seen) == list(range(16))


def test_other_shares_or_examples_are_another_source() -> None:
    digests = {source_of(GUIDE).digest(), source_of(GUIDE, seed=1).digest(), source_of(GUIDE, count=22).digest()}
    assert len(digests | {source_of(GUIDE | {"completion": 0.4}).digest()}) == 4
    assert source_of(GUIDE).digest() in digests
    with pytest.raises(TrainingError, match="b: no example to draw"):
        Shares(groups=["a"], shares={"a": 1, "b": 1})(
            tiny_batch(count=1).examples, batch_size=1, accumulation=1, seed=0
        )


@pytest.fixture(scope="module")
def trained() -> tuple[MultiTaskTrainer, Any]:
    trainer = MultiTaskTrainer(GUIDE, load_base_model("nf-tiny", device="cpu"), learning_rate=2e-3, **OPTIONS)
    return trainer, trainer.train(CODE, HELD_OUT, max_steps=20, epochs=9, warmup_steps=0)


def test_the_guides_tasks_are_learnt_by_their_shares_and_judged_apart(trained: Any, tmp_path: Path) -> None:
    trainer, result = trained
    assert result.run.completed
    assert [task.name for task in result.tasks] == list(GUIDE)
    assert [task.drawn for task in result.tasks] == [40, 24, 16]
    assert [task.examples for task in result.tasks] == [8, 16, 8]
    for task in result.tasks:
        assert task.after.loss < task.before.loss
        assert task.after.examples == {"bug_detection": 6}.get(task.name, 3)
    whole = sum(task.before.loss * task.before.tokens for task in result.tasks)
    assert result.run.before.loss * result.run.before.tokens == pytest.approx(whole, rel=1e-4)
    path = trainer.save_adapter(tmp_path / "tasks.lora")
    assert "bug_detection 0.3" in (path / "metadata.json").read_text()


def test_a_stopped_run_goes_on_to_the_same_bytes(trained: Any, tmp_path: Path) -> None:
    def run(stop_at: int | None, *, resume: bool) -> MultiTaskTrainer:
        trainer = MultiTaskTrainer(GUIDE, load_base_model("nf-tiny", device="cpu"), **OPTIONS)
        left = iter(range(stop_at if stop_at is not None else 1000))
        trainer.train(
            CODE,
            max_steps=6,
            checkpoint_dir=tmp_path / ("whole" if stop_at is None and not resume else "parts"),
            resume=resume,
            stop=lambda: next(left, None) is None,
        )
        return trainer

    whole = run(None, resume=False).trainer.flat.vector
    run(3, resume=False)
    assert torch.equal(run(None, resume=True).trainer.flat.vector, whole)


@dataclass(frozen=True)
class Reversed:
    """A task of one's own."""

    name = "reversed"

    def examples(self, example: Example) -> Iterator[Example]:
        yield Example(context=example.completion, completion=example.context, language=example.language)


def test_a_task_of_ones_own_is_learnt_beside_the_shipped_ones(tmp_path: Path) -> None:
    write_examples(tmp_path / "code.jsonl", CODE)
    trainer = MultiTaskTrainer({Reversed(): 1, "completion": 3}, "nf-tiny", **OPTIONS)
    result = trainer.train(tmp_path / "code.jsonl", max_steps=2)
    # All contexts are alike, but the completions before which they stand are not.
    assert [(task.name, task.share, task.drawn) for task in result.tasks] == [
        ("reversed", 0.25, 2),
        ("completion", 0.75, 6),
    ]
    assert all(task.after is None for task in result.tasks)


def test_folders_are_read_and_held_out_by_file(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"m{number}.py").write_text(
            "".join(function(50 * number + n).completion + "\n\n" for n in range(4))
        )
    trainer = MultiTaskTrainer({"completion": 0.5, BugDetection(per_function=1): 0.5}, "nf-tiny", **OPTIONS)
    result = trainer.train(sources=[tmp_path], max_steps=1, eval_fraction=0.3)
    assert all(task.before.examples > 0 for task in result.tasks)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "no task has a weight above 0"),
        ({"completion": 0}, "no task has a weight above 0"),
        ({"bugs": 1}, "no task is called 'bugs', known: completion, bug_detection, documentation"),
        ({"completion": -1}, "the weight of the task completion is -1, wanted a number from 0"),
        ({"completion": float("nan")}, "the weight of the task completion is nan"),
        ({"completion": 1, Completion(): 1}, "two tasks are called completion"),
    ],
)
def test_what_are_no_tasks_is_refused(tasks: dict[Any, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        MultiTaskTrainer(tasks)


def test_tasks_of_weight_zero_take_no_part() -> None:
    assert [task.name for task in resolve_tasks(GUIDE | {"completion": 0})] == ["bug_detection", "documentation"]


def test_without_data_or_with_data_that_has_nothing_the_way_out_is_said(tmp_path: Path) -> None:
    trainer = MultiTaskTrainer(GUIDE, "nf-tiny", **OPTIONS)
    with pytest.raises(DataError, match="no data: nothing says what to learn from"):
        trainer.train()
    with pytest.raises(DataError, match="two kinds of data"):
        trainer.train(CODE, sources=[tmp_path])
    with pytest.raises(TrainingError, match="nothing has been learnt yet"):
        trainer.save_adapter(tmp_path / "a.lora")
    prose = [Example(context="x = ", completion="1\n", language="python")]
    with pytest.raises(DataError, match="bug_detection, documentation: nothing to learn in 1 examples of code"):
        trainer.train(prose)
