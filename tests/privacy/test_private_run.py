"""A private run of the trainer: what it charges, when it stops, what it changes, and what its folder says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engines import engine_of

from neuralforge.data.batch import Batch
from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge.models.load import load_base_model
from neuralforge.privacy.ledger import Account
from neuralforge.privacy.run import PrivateTraining
from neuralforge.training.engine import Engine
from neuralforge.training.events import Event, StepDone
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.errors import BudgetSpent, CheckpointError, PrivacyError
from neuralforge_common.privacy import PrivacyTerms

EXAMPLES = [
    Example(context=f"def add_{n}(x):\n    return x", completion=f" + {n * n}\n", repo="r", path=f"{n // 3}.py")
    for n in range(12)
]
DELTA = 1e-5
TERMS = {"noise_multiplier": 1.0, "sample_rate": 0.25, "target_epsilon": 50.0, "delta": DELTA}


class Killed(Exception):
    """The end of a process, as the run that it takes with it sees it."""


@contextmanager
def private(
    home: Path, *, steps: int = 4, terms: dict[str, Any] | None = None, **how: Any
) -> Iterator[PrivateTraining]:
    wanted = PrivacyTerms(**TERMS | (terms or {}))
    with Account.open(home, "adapter a", unit=wanted.unit, tell=print) as account:
        yield PrivateTraining(wanted, account, EXAMPLES, steps=steps, what="test", **how)


def learn(trainer: LoRATrainer, training: PrivateTraining, *, steps: int = 4, **how: Any) -> Any:
    options = {"epochs": 100, "max_steps": steps, "warmup_steps": 0, "max_grad_norm": 0.0, "keeps": "last"}
    return trainer.train(EXAMPLES, gradient=training.gradient, **options | how)


def spent(steps: int, *, q: float = 0.25, sigma: float = 1.0) -> float:
    return epsilon([Steps(sample_rate=q, noise_multiplier=sigma, count=steps)], DELTA)


@pytest.fixture(scope="module")
def anew() -> Callable[[], LoRATrainer]:
    """The same trainer each time, its adapter as at first: a base is loaded once."""
    trainer = LoRATrainer(load_base_model("nf-tiny", device="cpu"), rank=2, max_length=32, batch_size=8)
    first = trainer.state()

    def reset() -> LoRATrainer:
        trainer.load_state(first)
        return trainer

    return reset


def test_what_is_said_to_be_spent_is_what_the_accountant_says_of_the_steps(
    anew: Callable[[], LoRATrainer], tmp_path: Path
) -> None:
    with private(tmp_path, block=2) as training:
        learn(anew(), training)
        statement = training.statement()
    assert statement.epsilon == pytest.approx(spent(4), rel=1e-12)
    assert (statement.steps, statement.unit, statement.delta) == (4, "sample", DELTA)


def test_both_matrices_move_and_a_frozen_a_does_not(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    for sides in ("AB", "B"):
        trainer = anew()
        before = trainer.flat.vector.detach().clone()
        with private(tmp_path / sides) as training:
            learn(trainer, training, trainable=None if sides == "AB" else trainer.flat.mask("B"))
        moved = (trainer.flat.vector.detach() - before).abs()
        assert float(moved[trainer.flat.mask("B")].max()) > 0
        assert (float(moved[trainer.flat.mask("A")].max()) > 0) == (sides == "AB")


def test_a_seed_has_no_say_in_what_is_drawn_or_added(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        trainer = anew()
        torch.manual_seed(5)
        with private(tmp_path / str(number), steps=1) as training:
            learn(trainer, training, steps=1, seed=5)
        ends.append(trainer.state().digest())
    assert ends[0] != ends[1]


def test_a_run_that_was_killed_pays_again_for_the_block_that_it_repeats(
    anew: Callable[[], LoRATrainer], tmp_path: Path
) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise Killed

    how = {"checkpoint_dir": tmp_path / "run", "checkpoint_steps": 2}
    with private(tmp_path, block=2) as training, pytest.raises(Killed):
        learn(anew(), training, observers=[kill], **how)
    with private(tmp_path, block=2) as training:
        result = learn(anew(), training, resume=True, **how)
        assert result.steps == 4
        assert training.statement().epsilon == pytest.approx(spent(2 + 2 + 2), rel=1e-12)


def test_a_checkpoint_is_not_gone_on_with_under_less_noise(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    how = {"checkpoint_dir": tmp_path / "run", "checkpoint_steps": 1}
    with private(tmp_path, steps=2) as training:
        learn(anew(), training, steps=2, stop=iter((False, True)).__next__, **how)
    weaker = {"noise_multiplier": 0.9}
    with private(tmp_path, steps=2, terms=weaker) as training, pytest.raises(CheckpointError, match="another run"):
        learn(anew(), training, steps=2, resume=True, **how)


def test_a_run_stops_before_its_budget_is_exceeded_and_keeps_what_it_has(
    anew: Callable[[], LoRATrainer], tmp_path: Path
) -> None:
    target = (spent(5) + spent(6)) / 2
    trainer = anew()
    before = trainer.state().digest()
    with private(tmp_path, steps=8, block=4, terms={"target_epsilon": target}) as training:
        result = learn(trainer, training, steps=8, eval_dataset=EXAMPLES[:2], checkpoint_dir=tmp_path / "run")
        assert spent(4) < training.statement().epsilon <= target
    assert (result.completed, result.steps, result.best_step) == (True, 5, 5)
    assert "privacy budget" in result.reason
    assert trainer.state().digest() != before
    with private(tmp_path, steps=8, block=4, terms={"target_epsilon": spent(9)}) as training:
        how = {"checkpoint_dir": tmp_path / "run", "eval_dataset": EXAMPLES[:2]}
        assert learn(trainer, training, steps=8, resume=True, **how).steps == 8, "with more to spend it goes on"
        assert training.statement().steps == 8


def test_nothing_is_learnt_or_charged_where_nothing_is_left(tmp_path: Path) -> None:
    little = {"target_epsilon": spent(1) / 2}
    for block in (None, 2):
        with pytest.raises(BudgetSpent, match="privacy budget"), private(tmp_path, block=block, terms=little):
            pass
    with Account.open(tmp_path, "adapter a", unit="sample", tell=print) as account:
        assert account.spent(DELTA).steps == 0


def test_a_round_is_charged_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = (spent(3) + spent(4)) / 2
    with pytest.raises(BudgetSpent), private(tmp_path, steps=4, terms={"target_epsilon": target}):
        pass
    with private(tmp_path, steps=3, terms={"target_epsilon": target}):
        pass


def test_a_step_that_was_not_planned_is_not_taken(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    with private(tmp_path, steps=2) as training:
        with pytest.raises(PrivacyError, match="step 3 was not planned"):
            learn(anew(), training, steps=3)
        assert training.statement().steps == 2


def test_steps_that_are_taken_twice_are_paid_twice(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    with private(tmp_path, steps=2) as training:
        for _ in range(2):
            learn(anew(), training, steps=2)
        assert training.statement().epsilon == pytest.approx(spent(4), rel=1e-12)


def test_prv_counts_one_schedule_charged_as_a_whole(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    with (
        pytest.raises(PrivacyError, match="all at once"),
        private(tmp_path, block=2, accountant="prv"),
    ):
        pass
    with private(tmp_path, accountant="prv") as training:
        learn(anew(), training)
        assert training.statement().epsilon < spent(4)
    with pytest.raises(PrivacyError, match="fixed in advance"), private(tmp_path, accountant="prv"):
        pass


def test_the_last_weights_are_kept_whatever_is_held_out(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    trainer = anew()
    ends: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, StepDone):
            ends.append(trainer.state().digest())

    with private(tmp_path, terms={"noise_multiplier": 60.0}) as training:
        how = {"eval_dataset": EXAMPLES[:2], "eval_steps": 1, "lr_scheduler": lambda step: 0.3}
        result = learn(trainer, training, observers=[watch], **how)
    assert result.after.loss > result.before.loss + 1, "noise alone, in long steps"
    assert trainer.state().digest() == ends[-1]


def test_a_units_examples_are_its_files(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    with private(tmp_path, terms={"unit": "file"}) as training:
        learn(anew(), training)
        assert (training.units, training.statement().unit) == (4, "file")


def test_the_folder_says_what_was_spent_and_nothing_else_of_the_data(
    anew: Callable[[], LoRATrainer], tmp_path: Path
) -> None:
    trainer = anew()
    with private(tmp_path / "home") as training:
        learn(trainer, training, eval_dataset=EXAMPLES[:3])
        path = trainer.save_adapter(tmp_path / "a.lora", dataset_digest="d" * 64, privacy=training.statement())
    metadata = json.loads((path / "metadata.json").read_text())
    kept_back = ("training_samples", "accuracy", "dataset_digest", "evaluation")
    assert [metadata[name] for name in kept_back] == [None, None, "", None]
    assert metadata["privacy"]["epsilon"] == pytest.approx(spent(4), rel=1e-12)
    card = (path / "README.md").read_text()
    assert f"ε = {spent(4):.3g} at δ = 1e-05, example-level" in card
    assert "samples of code" not in card
    assert "| Perplexity" not in card


def test_an_engine_that_was_asked_for_is_the_one_that_runs(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    with private(tmp_path, engine="opacus") as training, pytest.raises(PrivacyError, match="wanted opacus"):
        learn(anew(), training)


class Counted:
    """An engine that notes how many examples go through it together."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.together: list[int] = []

    def accumulate_each(self, batch: Batch, rows: torch.Tensor, **how: Any) -> list[float]:
        self.together.append(len(batch.examples))
        return self._engine.accumulate_each(batch, rows, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@pytest.mark.parametrize(
    ("kind", "dtype", "together"),
    [("fast", torch.bfloat16, 4), ("general", torch.float32, 4), ("general", torch.bfloat16, 1)],
)
def test_examples_go_alone_where_neighbours_would_have_a_part_in_their_rounding(
    tmp_path: Path, kind: str, dtype: torch.dtype, together: int
) -> None:
    engine, flat = engine_of(kind, "llama", dtype=dtype)
    counted = Counted(engine)
    examples = [TokenizedExample(index=n, tokens=tuple(range(1, 5 + n)), start=2) for n in range(len(EXAMPLES))]
    with private(tmp_path, terms={"sample_rate": 1.0}, steps=1) as training:
        training.gradient(counted, flat, examples=examples, batch_size=4, trainable=None)(0)
    assert max(counted.together) == together
    assert sum(counted.together) == len(EXAMPLES)
