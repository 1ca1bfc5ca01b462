"""Penalties and masks: what they add, what they hold still, and that without them nothing is different."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralforge.data.dataset import Dataset
from neuralforge.models.base import BaseModel
from neuralforge.training import LoRATrainer
from neuralforge.training.events import Event, StepDone
from neuralforge.training.penalty import Proximal
from neuralforge_common.errors import AdapterError, CheckpointError

Fresh = Callable[..., BaseModel]


def trainer_on(base: BaseModel, **options: Any) -> LoRATrainer:
    """A trainer whose B is not zero, so that A has a gradient as well."""
    trainer = LoRATrainer(base, **{"rank": 4, "max_length": 64, "learning_rate": 3e-3, **options})
    generator = torch.Generator().manual_seed(7)
    trainer.flat.load(torch.randn(trainer.flat.vector.shape, generator=generator) * 0.02)
    return trainer


def test_the_pull_is_the_gradient_of_its_own_value() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor, vector = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    vector.requires_grad_(True)
    (0.5 * 3.0 * (vector - anchor).square().sum()).backward()
    gradient = torch.ones(50, dtype=torch.float64)
    value = Proximal(mu=3.0, anchor=anchor).add(vector, gradient)
    assert value == pytest.approx(1.5 * float((vector - anchor).detach().square().sum()))
    torch.testing.assert_close(gradient - 1, vector.grad)


@pytest.mark.parametrize("engine", ["fast", "general"])
def test_no_weight_and_a_mask_of_everything_change_no_bit(fresh_base: Fresh, dataset: Dataset, engine: Any) -> None:
    digests = set()
    for held in (False, True):
        trainer = trainer_on(fresh_base(), engine=engine, weight_decay=0.1)
        anchor = torch.randn(trainer.flat.vector.shape)
        trainer.train(
            dataset.train,
            max_steps=4,
            penalties=[Proximal(mu=0.0, anchor=anchor)] if held else (),
            trainable=trainer.flat.mask() if held else None,
        )
        digests.add(trainer.state().digest())
    assert len(digests) == 1


@pytest.mark.parametrize(("sides", "components"), [("A", None), ("B", None), ("AB", 3), ("A", 1), ("", None)])
def test_what_is_held_still_does_not_move_by_a_bit(
    fresh_base: Fresh, dataset: Dataset, sides: str, components: int | None
) -> None:
    trainer = trainer_on(fresh_base(), weight_decay=0.1)
    before = trainer.state()
    mask = trainer.flat.mask(sides, components=components)
    anchor = trainer.flat.vector.detach() + 1
    trainer.train(dataset.train, max_steps=4, trainable=mask, penalties=[Proximal(mu=0.5, anchor=anchor)])
    for name, after in trainer.state().items():
        moved = after.view(np.uint32) != before[name].view(np.uint32)
        moved = moved if ".lora_A." in name else moved.T
        trained = moved[:components] if ("A" if ".lora_A." in name else "B") in sides else moved[:0]
        assert not moved[len(trained) :].any(), name
        assert trained.mean() > 0.9 if trained.size else True, name


def test_what_is_held_still_takes_no_part_in_clipping(fresh_base: Fresh, dataset: Dataset) -> None:
    def first_norm(sides: str) -> float:
        events: list[Event] = []
        trainer = trainer_on(fresh_base())
        trainer.train(dataset.train, max_steps=1, observers=[events.append], trainable=trainer.flat.mask(sides))
        return next(event.gradient_norm for event in events if isinstance(event, StepDone))

    assert first_norm("A") ** 2 + first_norm("B") ** 2 == pytest.approx(first_norm("AB") ** 2, rel=1e-5)


def test_the_pull_is_told_beside_the_loss(fresh_base: Fresh, dataset: Dataset) -> None:
    events: list[Event] = []
    trainer = trainer_on(fresh_base())
    anchor = trainer.flat.vector.detach().clone()
    trainer.train(dataset.train, max_steps=3, observers=[events.append], penalties=[Proximal(mu=2.0, anchor=anchor)])
    pulls = [event.penalty for event in events if isinstance(event, StepDone)]
    assert pulls[0] == 0.0
    assert min(pulls[1:]) > 0


def test_a_call_has_its_own_seed_and_clip_and_takes_tokens_as_they_are(fresh_base: Fresh, dataset: Dataset) -> None:
    given = trainer_on(fresh_base(), seed=9, max_grad_norm=0.1)
    given.train(given.tokenize(dataset.train), max_steps=4)
    start = trainer_on(fresh_base())
    begin = start.state()
    start.train(start.tokenize(dataset.train), max_steps=4, seed=9, max_grad_norm=0.1)
    assert start.state() == given.state()
    # The same call again from the same state: nothing of the optimizer or of what was read before is left.
    start.load_state(begin)
    start.train(dataset.train, max_steps=4, seed=9, max_grad_norm=0.1)
    assert start.state() == given.state()
    start.load_state(begin)
    start.train(dataset.train, max_steps=4, seed=10, max_grad_norm=0.1)
    assert start.state() != given.state()


def test_a_state_of_another_shape_is_refused_whole(fresh_base: Fresh) -> None:
    trainer = trainer_on(fresh_base())
    before = trainer.state()
    with pytest.raises(AdapterError, match="shape"):
        trainer.load_state(LoRATrainer(fresh_base(), rank=5).state())
    assert trainer.state() == before


def test_activations_that_were_kept_for_other_examples_are_not_used(fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base(), top_layers_only=2)
    begin = trainer.state()
    trainer.train(dataset.train[:20], epochs=2)  # keeps the prefix of examples 0 to 19
    trainer.load_state(begin)
    trainer.train(dataset.train[20:40], epochs=1)
    fresh = trainer_on(fresh_base(), top_layers_only=2)
    fresh.train(dataset.train[20:40], epochs=1)
    assert trainer.state() == fresh.state()


@pytest.mark.parametrize("change", ["penalties", "trainable"])
def test_a_checkpoint_is_not_resumed_under_another_pull_or_mask(
    tmp_path: Path, fresh_base: Fresh, dataset: Dataset, change: str
) -> None:
    def run(*, changed: bool) -> LoRATrainer:
        trainer = trainer_on(fresh_base())
        options: dict[str, Any] = {
            "penalties": [Proximal(mu=1.0, anchor=trainer.flat.vector.detach().clone())],
            "trainable": trainer.flat.mask("B"),
        }
        if changed:
            del options[change]
        trainer.train(dataset.train, max_steps=4, checkpoint_dir=tmp_path, resume=True, **options)
        return trainer

    first = run(changed=False).state()
    assert run(changed=False).state() == first
    with pytest.raises(CheckpointError, match="another run"):
        run(changed=True)
