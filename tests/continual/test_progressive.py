"""A block for each task: the frozen stays, gates weigh, right angles are asked for, a merge says what it loses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_spec, with_adapter

from neuralforge.continual.gates import gate_slopes, gated, learn_gates, scaled
from neuralforge.continual.order import pairs
from neuralforge.continual.orthogonal import Orthogonality
from neuralforge.continual.progressive import grow, merge
from neuralforge.data.dataset import Dataset
from neuralforge.models.base import BaseModel
from neuralforge.models.lora import read_state
from neuralforge.training import LoRATrainer
from neuralforge.training.engine import EngineOptions
from neuralforge.training.fast.engine import FastEngine
from neuralforge.training.flat import FlatParameters
from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.errors import AdapterError
from neuralforge_common.layout import AdapterLayout

Fresh = Callable[..., BaseModel]


def opened(base: BaseModel, spec: AdapterSpec, state: AdapterState, **options: Any) -> LoRATrainer:
    """A trainer that goes on with an adapter."""
    return LoRATrainer(
        base,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        max_length=48,
        learning_rate=1e-2,
        state=state,
        **options,
    )


@pytest.fixture
def first_task(fresh_base: Fresh, dataset: Dataset) -> LoRATrainer:
    """A trainer that has learnt a few steps at rank 3."""
    trainer = LoRATrainer(fresh_base(), rank=3, max_length=48, learning_rate=1e-2)
    trainer.train(dataset.train[:16], max_steps=4)
    return trainer


def a_state(rank: int, seed: int = 0) -> AdapterState:
    """A random adapter on a tiny model, with no zeros in it."""
    state = read_state(with_adapter(tiny_model("llama"), tiny_spec("llama", rank=rank)))
    random = np.random.default_rng(seed)
    return AdapterState({name: random.standard_normal(array.shape) for name, array in state.items()})


def wide(state: AdapterState) -> dict[str, np.ndarray[Any, Any]]:
    """B · A of every module, in float64."""
    layout = AdapterLayout.of(state)
    return {m.name: b @ a for m, a, b in layout.factors(layout.flatten(state).astype(np.float64))}


def test_a_grown_adapter_computes_the_same(fresh_base: Fresh, first_task: LoRATrainer, dataset: Dataset) -> None:
    spec, state = grow(first_task.spec, first_task.state(), 2, seed=5)
    assert (spec.rank, spec.scaling) == (5, first_task.spec.scaling)
    wider = opened(fresh_base(), spec, state)
    assert wider.evaluate(dataset.evaluation).loss == pytest.approx(
        first_task.evaluate(dataset.evaluation).loss, rel=1e-5
    )


def test_a_new_task_trains_its_own_block_and_no_bit_of_the_earlier_ones(
    fresh_base: Fresh, first_task: LoRATrainer, dataset: Dataset
) -> None:
    spec, state = grow(first_task.spec, first_task.state(), 2)
    trainer = opened(fresh_base(), spec, state, weight_decay=0.1)
    trainer.train(dataset.train[16:32], max_steps=4, trainable=trainer.flat.mask(skip=3))
    for name, after in trainer.state().items():
        moved = after.view(np.uint32) != state[name].view(np.uint32)
        moved = moved if ".lora_A." in name else moved.T
        assert not moved[:3].any(), name
        assert moved[3:].mean() > 0.9, name


def test_gates_weigh_the_blocks_and_are_never_worse_than_none(
    fresh_base: Fresh, first_task: LoRATrainer, dataset: Dataset
) -> None:
    # The second block is noise: it does harm, and its gate should say so.
    layout = AdapterLayout.of(first_task.state())
    spec, state = grow(first_task.spec, first_task.state(), 2)
    wider = layout.with_rank(5)
    vector = wider.flatten(state)
    random = np.random.default_rng(0)
    for _, _, b in wider.factors(vector):
        b[:, 3:] = 0.3 * random.standard_normal((len(b), 2))
    state = wider.unflatten(vector)
    trainer = opened(fresh_base(), spec, state)
    gates = learn_gates(trainer, (3, 2), dataset.evaluation, steps=5, rate=0.3)
    assert trainer.state() == state
    assert abs(gates.weights[1]) < 0.5 < gates.weights[0]
    assert gates.after < gates.before
    trainer.load_state(gated(state, (3, 2), gates.weights))
    assert learn_gates(trainer, (3, 2), dataset.evaluation, steps=0).before == pytest.approx(gates.after, rel=1e-4)


def test_the_slope_of_a_gate_is_how_the_loss_changes_with_it() -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    flat = FlatParameters(model)
    engine = FastEngine(model, flat, EngineOptions())
    batch, bounds, weights, step = tiny_batch(), [(0, 1), (1, 4)], (0.7, 1.2), 1e-2
    whole = flat.vector.detach().clone()

    def loss(first: float, second: float) -> float:
        flat.load(scaled(flat, whole, bounds, (first, second)))
        flat.gradient.zero_()
        return engine.accumulate(batch, scale=0.0, seed=0) / batch.targets

    flat.load(scaled(flat, whole, bounds, weights))
    told, found = gate_slopes(engine, flat, whole, bounds, batch.examples)
    first, second = weights
    wanted = [
        (loss(first + step, second) - loss(first - step, second)) / (2 * step),
        (loss(first, second + step) - loss(first, second - step)) / (2 * step),
    ]
    assert told == pytest.approx(loss(*weights), rel=1e-5)
    assert min(map(abs, wanted)) > 0.01
    assert found.tolist() == pytest.approx(wanted, rel=2e-2)


def test_weights_are_folded_into_the_product() -> None:
    state = a_state(4)
    found, before = wide(gated(state, (1, 3), (2.0, 0.0))), wide(gated(state, (1, 3), (1.0, 0.0)))
    for name, product in found.items():
        np.testing.assert_allclose(product, 2 * before[name], rtol=1e-6)
    assert gated(state, (1, 3), (1.0, 1.0)) == state


def test_a_merge_to_the_whole_rank_loses_nothing_and_to_less_what_it_says() -> None:
    state, spec = a_state(4), tiny_spec("llama")
    merged_spec, merged, error = merge(spec, state, 6)
    assert (merged_spec.rank, merged_spec.scaling) == (6, spec.scaling)
    assert error < 1e-6
    for name, product in wide(merged).items():
        np.testing.assert_allclose(product, wide(state)[name], atol=1e-4)
    _, merged, error = merge(spec, state, 2)
    missed = sum(np.sum((product - wide(state)[name]) ** 2) for name, product in wide(merged).items())
    best = whole = 0.0
    for product in wide(state).values():
        singular = np.linalg.svd(product, compute_uv=False)
        best, whole = best + np.sum(singular[2:] ** 2), whole + np.sum(singular**2)
    assert error == pytest.approx((missed / whole) ** 0.5, rel=1e-5)
    assert error == pytest.approx((best / whole) ** 0.5, rel=1e-5)


def test_the_pull_to_right_angles_is_the_gradient_of_its_value_and_moves_the_new_alone() -> None:
    flat = FlatParameters(with_adapter(tiny_model("llama"), tiny_spec("llama")))
    vector = flat.vector.detach().double().requires_grad_(True)
    wanted = torch.zeros((), dtype=torch.float64)
    for place, _ in pairs(flat):
        a = place.of(vector)
        wanted = wanted + 0.5 * (a[:3].detach() @ a[3:].T).square().sum()
    wanted.backward()
    gradient = torch.zeros_like(flat.vector)
    value = Orthogonality(weight=0.5, old=3, modules=pairs(flat)).add(flat.vector, gradient)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert vector.grad is not None
    torch.testing.assert_close(gradient.double(), vector.grad, rtol=1e-4, atol=1e-6)
    assert not gradient[~flat.mask("A", skip=3)].any()


def test_right_angles_are_learnt_and_a_weight_of_zero_asks_for_nothing(
    fresh_base: Fresh, first_task: LoRATrainer, dataset: Dataset
) -> None:
    spec, state = grow(first_task.spec, first_task.state(), 2)
    overlaps, digests = [], []
    for weight in (None, 0.0, 100.0):
        trainer = opened(fresh_base(), spec, state)
        term = Orthogonality(weight=weight or 0.0, old=3, modules=pairs(trainer.flat))
        trainer.train(
            dataset.train[16:32],
            max_steps=6,
            trainable=trainer.flat.mask(skip=3),
            penalties=() if weight is None else [term],
        )
        whole = Orthogonality(weight=1.0, old=3, modules=pairs(trainer.flat))
        overlaps.append(whole.add(trainer.flat.vector, torch.zeros_like(trainer.flat.vector)))
        digests.append(trainer.state().digest())
    assert digests[0] == digests[1]
    assert overlaps[2] < 0.8 * overlaps[0]


@pytest.mark.parametrize(
    ("ranks", "weights"), [((3,), (1.0,)), ((2, 3), (1.0, 1.0)), ((0, 4), (1.0, 1.0)), ((1, 3), (1.0,)), ((), ())]
)
def test_blocks_that_are_not_the_adapters_are_refused(ranks: tuple[int, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(AdapterError, match="blocks"):
        gated(a_state(4), ranks, weights)
