"""Weights learnt on a few samples: the adapter that knows the code gets the most, and noise next to nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralforge.composition.compose import compose
from neuralforge.composition.exact import Cat
from neuralforge.composition.learnt import learn_weights
from neuralforge.composition.parents import Part
from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.models.load import load_base_model
from neuralforge.training import LoRATrainer
from neuralforge_common.adapter import AdapterState
from neuralforge_common.errors import AdapterError, DataError


@pytest.fixture(scope="module")
def dataset(team_code: Path) -> Dataset:
    return gather(sources=[team_code], max_samples=32, max_eval_samples=8, seed=0)


@pytest.fixture(scope="module")
def parts(dataset: Dataset) -> list[Part]:
    """An adapter that has learnt from the team's code, and one of noise."""
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    trainer = LoRATrainer(base, rank=2, max_length=64, learning_rate=1e-2, batch_size=8, target_modules="q_proj,v_proj")
    trainer.train(dataset.train, max_steps=16, warmup_steps=2)
    state, generator = trainer.state(), np.random.default_rng(0)
    noise = AdapterState({key: 0.4 * generator.standard_normal(array.shape) for key, array in state.items()})
    return [
        Part(label="learnt", spec=trainer.spec, state=state, weight=1.0),
        Part(label="noise", spec=trainer.spec, state=noise, weight=1.0),
    ]


def test_the_weights_are_better_than_equal_ones_and_than_each_part_alone(parts: list[Part], dataset: Dataset) -> None:
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    learnt = learn_weights(parts, base, dataset.evaluation, max_length=64)
    assert learnt.samples == len(dataset.evaluation)
    assert learnt.loss <= min(learnt.equal, *learnt.alone)
    assert learnt.loss < learnt.equal
    assert learnt.alone[0] < learnt.alone[1]
    assert abs(learnt.weights[1]) < 0.2 < learnt.weights[0]

    # The loss that was told is that of the composition with these weights.
    chosen = [replace(part, weight=weight) for part, weight in zip(parts, learnt.weights, strict=True)]
    composed = compose(chosen, Cat())
    trainer = LoRATrainer(
        base,  # as it was: the search has taken its adapter off again
        rank=composed.spec.rank,
        alpha=composed.spec.alpha,
        target_modules=composed.spec.target_modules,
        max_length=64,
        state=composed.state,
    )
    assert trainer.evaluate(dataset.evaluation).loss == pytest.approx(learnt.loss, abs=1e-4)
    assert (
        learn_weights(
            parts, load_base_model("nf-tiny", dtype="float32", device="cpu"), dataset.evaluation, max_length=64
        )
        == learnt
    )


def test_another_base_and_no_samples_are_refused(parts: list[Part], dataset: Dataset) -> None:
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    with pytest.raises(DataError, match="no samples to learn the weights on"):
        learn_weights(parts, base, [], max_length=64)
    strange = [replace(part, spec=replace(part.spec, base_fingerprint="sha256:" + "0" * 64)) for part in parts]
    with pytest.raises(AdapterError, match="this adapter was made for nf-tiny"):
        learn_weights(strange, base, dataset.evaluation, max_length=64)
