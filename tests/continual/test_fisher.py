"""The Fisher information of an adapter: against autograd, example by example, and in whatever units it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_spec, with_adapter

from neuralforge.continual import Fisher, compute_fisher_information
from neuralforge.continual.fisher import fisher_diagonal
from neuralforge.continual.order import layout_of, to_flat, to_layout
from neuralforge.data.dataset import Dataset
from neuralforge.models.base import BaseModel
from neuralforge.training import LoRATrainer
from neuralforge.training.engine import EngineOptions
from neuralforge.training.fast.engine import FastEngine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.engine import GeneralEngine
from neuralforge_common.layout import AdapterLayout

Fresh = Callable[..., BaseModel]


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "fast"), ("qwen2", "general"), ("gemma2", "general"), ("t5", "general")]
)
def test_the_fisher_is_the_mean_of_squared_gradients_of_single_examples(family: str, kind: str) -> None:
    seq2seq = family == "t5"
    examples = tiny_batch(seq2seq=seq2seq).examples
    model: Any = with_adapter(tiny_model(family), tiny_spec(family))
    wanted: dict[str, torch.Tensor] = {}
    for example in examples:
        # Hugging Face's own loss: the mean over the labels that are not -100.
        ids = torch.tensor([example.tokens])
        for parameter in model.parameters():
            parameter.grad = None
        if seq2seq:
            loss = model(input_ids=torch.tensor([example.context]), labels=ids).loss
        else:
            labels = ids.clone()
            labels[:, : example.start] = -100
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                square = parameter.grad.double().square() / len(examples)
                wanted[name] = wanted.get(name, torch.zeros(())) + square
    flat = FlatParameters(model)
    engine = (
        FastEngine(model, flat, EngineOptions())
        if kind == "fast"
        else GeneralEngine(model, flat, EngineOptions(), is_encoder_decoder=seq2seq, pad_token_id=0)
    )
    found, counted = fisher_diagonal(engine, flat, examples)
    assert counted == len(examples)
    assert not flat.gradient.any()
    for name, place in flat.places.items():
        error = torch.linalg.vector_norm(place.of(found) - wanted[name]) / torch.linalg.vector_norm(wanted[name])
        assert error <= 1e-5, name


def test_the_square_of_a_batchs_gradient_is_another_thing() -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    flat = FlatParameters(model)
    engine = FastEngine(model, flat, EngineOptions())
    batch = tiny_batch(count=8)
    single, _ = fisher_diagonal(engine, flat, batch.examples)
    engine.accumulate(batch, scale=1 / batch.targets, seed=0)
    assert float(flat.gradient.square().sum()) < 0.7 * float(single.sum())


def test_a_vector_goes_to_the_layouts_order_and_back(fresh_base: Fresh) -> None:
    trainer = LoRATrainer(fresh_base(), rank=3)
    layout = layout_of(trainer.flat)
    assert layout == AdapterLayout.of(trainer.state())
    np.testing.assert_array_equal(to_layout(trainer.flat, trainer.flat.vector), layout.flatten(trainer.state()))
    vector = torch.randn(trainer.flat.vector.shape)
    assert torch.equal(to_flat(trainer.flat, layout, to_layout(trainer.flat, vector)), vector)


def test_the_same_seed_draws_the_same_examples_and_the_adapter_stays(fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = LoRATrainer(fresh_base(), rank=2, max_length=48)
    trainer.train(dataset.train[:8], epochs=1)
    before = trainer.state()
    first, again, other = (compute_fisher_information(trainer, dataset.train, limit=4, seed=seed) for seed in (0, 0, 1))
    assert first.examples == 4
    np.testing.assert_array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)
    assert trainer.state() == before
    np.testing.assert_array_equal(first.anchor, first.layout.flatten(before))


def test_activations_kept_for_other_examples_are_not_used(fresh_base: Fresh, dataset: Dataset) -> None:
    def fisher(*, trained: bool) -> Fisher:
        trainer = LoRATrainer(fresh_base(), rank=2, max_length=48, top_layers_only=2)
        start = trainer.flat.vector.detach().clone()
        if trained:
            trainer.train(dataset.train[:6], epochs=2)
            trainer.flat.load(start)
        return compute_fisher_information(trainer, dataset.train[10:16])

    np.testing.assert_array_equal(fisher(trained=True).values, fisher(trained=False).values)


def written_otherwise(fisher: Fisher, factor: float) -> Fisher:
    """The same adapter as (B / factor, A · factor), and its Fisher by the chain rule."""
    a, b = fisher.layout.part_slice("A"), fisher.layout.part_slice("B")
    anchor, values = fisher.anchor.copy(), fisher.values.copy()
    anchor[a], anchor[b] = anchor[a] * factor, anchor[b] / factor
    values[a], values[b] = values[a] / factor**2, values[b] * factor**2
    return replace(fisher, anchor=anchor, values=values)


@pytest.mark.parametrize("units", [1e-6, 1.0, 1e4])
def test_the_scale_knows_no_units_and_no_way_of_writing_the_adapter(units: float) -> None:
    layout = layout_of(FlatParameters(with_adapter(tiny_model("llama"), tiny_spec("llama"))))
    random = np.random.default_rng(0)
    values = random.chisquare(1, layout.size).astype(np.float32)
    anchor = random.standard_normal(layout.size).astype(np.float32)
    fisher = Fisher(spec=tiny_spec("llama"), layout=layout, values=values, anchor=anchor, examples=1)
    other = written_otherwise(replace(fisher, values=(values * units).astype(np.float32)), 3.0)
    ours, theirs = fisher.normalized(), other.normalized()
    b = layout.part_slice("B")
    assert float(ours[b].astype(float) @ anchor[b].astype(float) ** 2) == pytest.approx(1, rel=1e-5)
    # A move to the base, and one that is written in either way, cost the same.
    move = random.standard_normal(layout.size)
    moved = move.copy()
    moved[layout.part_slice("A")] *= 3
    moved[b] /= 3
    assert float(theirs @ moved**2) == pytest.approx(float(ours @ move**2), rel=1e-5)


def test_an_adapter_that_has_learnt_nothing_has_nothing_to_keep(fresh_base: Fresh, dataset: Dataset) -> None:
    fisher = compute_fisher_information(LoRATrainer(fresh_base(), rank=2, max_length=48), dataset.train[:2])
    assert fisher.values.any()
    assert fisher.reach == 0
    assert not fisher.normalized().any()
