"""Elastic weight consolidation: its limits, its gradients, what is the same to it, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_spec, with_adapter

from neuralforge.continual import EWCRegularizer, compute_fisher_information
from neuralforge.continual.ewc import FactorPenalty
from neuralforge.continual.order import pairs
from neuralforge.continual.product import ProductPenalty
from neuralforge.continual.state import EWCState
from neuralforge.data.dataset import Dataset
from neuralforge.models.base import BaseModel
from neuralforge.training import LoRATrainer
from neuralforge.training.events import Event, StepDone
from neuralforge.training.flat import FlatParameters
from neuralforge.training.penalty import Proximal, Settling
from neuralforge_common.errors import CheckpointError, StorageError, TrainingError

Fresh = Callable[..., BaseModel]
Space = Literal["factors", "product"]
SPACES: tuple[Space, ...] = ("factors", "product")


def trainer_on(base: BaseModel, **options: Any) -> LoRATrainer:
    """A trainer whose B is not zero, as after a session."""
    trainer = LoRATrainer(base, **{"rank": 4, "max_length": 48, "learning_rate": 3e-3, **options})
    generator = torch.Generator().manual_seed(7)
    trainer.flat.load(trainer.flat.vector + torch.randn(trainer.flat.vector.shape, generator=generator) * 0.02)
    return trainer


def products(trainer: LoRATrainer) -> torch.Tensor:
    """B · A of every module, flat."""
    vector = trainer.flat.vector.detach()
    return torch.cat([(b.of(vector) @ a.of(vector)).flatten() for a, b in pairs(trainer.flat)])


@pytest.fixture
def tiny_flat() -> FlatParameters:
    """The flat parameters of a tiny model's adapter, B not zero."""
    return FlatParameters(with_adapter(tiny_model("llama"), tiny_spec("llama")))


def penalty_importance(flat: FlatParameters) -> torch.Tensor:
    """Importances that differ by orders of magnitude."""
    return 10 ** (2 * torch.randn(flat.vector.shape, generator=torch.Generator().manual_seed(3)))


def penalty_on(flat: FlatParameters, space: Space, weight: float) -> FactorPenalty | ProductPenalty:
    """A penalty around where `flat` stands."""
    importance = penalty_importance(flat)
    anchor = flat.vector.detach().clone()
    if space == "factors":
        return FactorPenalty(weight=weight, importance=importance, anchor=anchor)
    return ProductPenalty.of(pairs(flat), weight=weight, importance=importance, anchor=anchor)


def test_the_penalty_is_the_sum_that_the_guide_writes(fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer()
    ewc.consolidate(trainer, dataset.train[:6])
    fisher = compute_fisher_information(trainer, dataset.train[:6]).normalized().astype(np.float64)
    old = fisher_anchor = trainer.state()
    trainer.train(dataset.train[6:12], max_steps=2)
    layout = ewc.state.layout if ewc.state else None
    assert layout is not None
    weight, old_weight = layout.flatten(trainer.state()), layout.flatten(fisher_anchor)
    wanted = sum(fisher[i] * (float(weight[i]) - float(old_weight[i])) ** 2 for i in range(len(fisher)))
    assert wanted > 0
    assert ewc.penalty(trainer) == pytest.approx(wanted, rel=1e-5)
    trainer.load_state(old)
    assert ewc.penalty(trainer) == 0


@pytest.mark.parametrize("space", SPACES)
def test_going_all_the_way_back_to_the_base_costs_one(fresh_base: Fresh, dataset: Dataset, space: Space) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer(space=space)
    assert ewc.penalty(trainer) == 0
    ewc.consolidate(trainer, dataset.train[:6])
    trainer.flat.load(torch.where(trainer.flat.mask("B"), 0, trainer.flat.vector.detach()))
    assert ewc.penalty(trainer) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("space", SPACES)
def test_a_weight_of_zero_is_plain_training_to_the_last_bit(fresh_base: Fresh, dataset: Dataset, space: Space) -> None:
    digests = set()
    for held in (False, True):
        trainer = trainer_on(fresh_base())
        terms = [penalty_on(trainer.flat, space, 0.0)] if held else []
        trainer.train(dataset.train, max_steps=3, penalties=terms)
        digests.add(trainer.state().digest())
    assert len(digests) == 1
    ewc = EWCRegularizer(0, space=space)
    ewc.consolidate(trainer, dataset.train[:2])
    assert ewc.penalties(trainer) == ()


def test_the_weights_stay_where_they_were_as_the_pull_grows(fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer()
    ewc.consolidate(trainer, dataset.train[:6])
    anchor = trainer.flat.vector.detach().clone()
    moves = []
    for weight in (0.0, 0.5, 1e3, 1e9, 1e300):
        trainer.flat.load(anchor)
        ewc.ewc_lambda = weight
        trainer.train(dataset.train[6:20], max_steps=4, penalties=ewc.penalties(trainer))
        moves.append(float((trainer.flat.vector.detach() - anchor).abs().max()))
    assert moves == sorted(moves, reverse=True)
    assert moves[0] > 5e-3
    assert moves[3] < 1e-3 * moves[0]
    assert moves[-1] == 0


def test_the_product_stays_where_it_was_as_the_pull_grows(fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer(space="product")
    ewc.consolidate(trainer, dataset.train[:6])
    anchor, before = trainer.flat.vector.detach().clone(), products(trainer)
    moves = []
    for weight in (0.0, 1e3, 1e9, 1e15):
        trainer.flat.load(anchor)
        ewc.ewc_lambda = weight
        trainer.train(dataset.train[6:20], max_steps=4, penalties=ewc.penalties(trainer))
        moves.append(float((products(trainer) - before).abs().max()))
    assert moves == sorted(moves, reverse=True)
    assert moves[-1] < 1e-3 * moves[0]


def test_through_adams_gradient_a_strong_pull_would_not_hold(fresh_base: Fresh, dataset: Dataset) -> None:
    """Why there is a step of its own: FedProx's pull, which goes through the gradient, with as large a weight."""
    trainer = trainer_on(fresh_base())
    anchor = trainer.flat.vector.detach().clone()
    trainer.train(dataset.train[6:20], max_steps=4, penalties=[Proximal(mu=1e12, anchor=anchor)])
    assert float((trainer.flat.vector.detach() - anchor).abs().max()) > 1e-3


def test_the_step_of_the_factors_is_the_minimum_of_distance_and_penalty(tiny_flat: FlatParameters) -> None:
    penalty = penalty_on(tiny_flat, "factors", 0.5)
    assert isinstance(penalty, FactorPenalty)
    generator = torch.Generator().manual_seed(1)
    start = penalty.anchor + 0.1 * torch.randn(penalty.anchor.shape, generator=generator)
    rates = 10 ** torch.randn(start.shape, generator=generator)
    end = start.clone()
    penalty.settle(end, rates)
    free = end.double().requires_grad_(True)
    distance = 0.5 * ((free - start).square() / rates).sum()
    (distance + 0.5 * (penalty.importance * (free - penalty.anchor).square()).sum()).backward()
    assert free.grad is not None
    # In units of the vector: what one Newton step from here would still move.
    left = free.grad / (1 / rates + penalty.importance)
    assert float(left.abs().max()) < 1e-6


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e6])
def test_the_steps_of_the_product_are_minima_one_side_after_the_other(tiny_flat: FlatParameters, weight: float) -> None:
    penalty = penalty_on(tiny_flat, "product", weight)
    assert isinstance(penalty, ProductPenalty)
    generator = torch.Generator().manual_seed(1)
    start = tiny_flat.vector.detach() + 0.1 * torch.randn(tiny_flat.vector.shape, generator=generator)
    end = start.clone()
    penalty.settle(end, torch.full_like(start, 0.02))
    b = tiny_flat.mask("B")
    between = torch.where(b, start, end)
    for after, before, moved in ((between, start, ~b), (end, between, b)):
        pull, slope = ((after - before) / 0.02)[moved], weight * penalty.slope(after)[moved]
        # Beside the pull at the start, of which a large weight leaves only rounding.
        whole = torch.linalg.vector_norm(weight * penalty.slope(before)[moved])
        assert whole > 0
        assert torch.linalg.vector_norm(pull + slope) < 1e-4 * whole


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("weight", [1.0, 1e300])
def test_no_rate_no_importance_and_no_bound_make_no_number_that_is_none(
    tiny_flat: FlatParameters, space: Space, weight: float
) -> None:
    penalty = penalty_on(tiny_flat, space, weight)
    importance = torch.where(tiny_flat.mask("A", components=2), 0, penalty_importance(tiny_flat))
    if space == "factors":
        penalty = FactorPenalty(weight=weight, importance=importance, anchor=tiny_flat.vector.detach().clone())
    start = tiny_flat.vector.detach() + 0.1
    still = start.clone()
    penalty.settle(still, torch.zeros_like(start))
    torch.testing.assert_close(still, start, rtol=1e-5, atol=1e-5)
    for rate in (1e-9, 1e6):
        end = start.clone()
        penalty.settle(end, torch.full_like(start, rate))
        assert torch.isfinite(end).all()
        assert penalty.value(end) <= penalty.value(start)


def test_the_slope_of_the_product_penalty_is_autograds(tiny_flat: FlatParameters) -> None:
    penalty = penalty_on(tiny_flat, "product", 1.0)
    assert isinstance(penalty, ProductPenalty)
    generator = torch.Generator().manual_seed(5)
    start = tiny_flat.vector.detach() + 0.1 * torch.randn(tiny_flat.vector.shape, generator=generator)
    free = start.double().requires_grad_(True)
    dense = torch.zeros((), dtype=torch.float64)
    for held in penalty.modules:
        wide = held.place_b.of(free) @ held.place_a.of(free) - held.b.double() @ held.a.double()
        dense = dense + (held.outputs[:, None].double() * wide.square() * held.inputs.double()).sum()
    dense.backward()
    assert penalty.value(start) == pytest.approx(float(dense.detach()), rel=1e-5)
    assert free.grad is not None
    found, wanted = penalty.slope(start).double(), free.grad
    assert torch.linalg.vector_norm(found - wanted) <= 1e-5 * torch.linalg.vector_norm(wanted)


def test_a_change_of_basis_costs_nothing_in_the_product_and_something_in_the_factors(tiny_flat: FlatParameters) -> None:
    generator = torch.Generator().manual_seed(9)
    vector = tiny_flat.vector.detach().clone()
    for place_a, place_b in pairs(tiny_flat):
        rank = place_a.shape[0]
        turn = torch.eye(rank) + 0.3 * torch.randn(rank, rank, generator=generator)
        place_a.of(vector).copy_(turn @ place_a.of(vector))
        place_b.of(vector).copy_(place_b.of(vector) @ torch.linalg.inv(turn))
    in_factors, in_product = (penalty_on(tiny_flat, space, 1.0).value(vector) for space in SPACES)
    assert in_factors > 1
    assert in_product < 1e-6 * in_factors


@pytest.mark.parametrize("space", SPACES)
def test_what_it_costs_is_told_and_falls_with_a_larger_weight(
    fresh_base: Fresh, dataset: Dataset, space: Space
) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer(space=space)
    ewc.consolidate(trainer, dataset.train[:6])
    anchor = trainer.flat.vector.detach().clone()
    distances = []
    for weight in (1e-6, 5.0):
        events: list[Event] = []
        trainer.flat.load(anchor)
        ewc.ewc_lambda = weight
        (term,) = ewc.penalties(trainer)
        assert isinstance(term, Settling)
        trainer.train(dataset.train[6:20], max_steps=6, penalties=[term], observers=[events.append])
        costs = [event.penalty for event in events if isinstance(event, StepDone)]
        assert costs[0] == 0
        assert min(costs[1:]) > 0
        distances.append(ewc.penalty(trainer))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("space", SPACES)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    tmp_path: Path, fresh_base: Fresh, dataset: Dataset, space: Space
) -> None:
    def after(steps: int) -> Callable[[], bool]:
        left = iter(range(steps))
        return lambda: next(left, None) is None

    states = []
    for stops in ((9,), (2, 9)):
        trainer = trainer_on(fresh_base())
        ewc = EWCRegularizer(1.0, space=space)
        ewc.consolidate(trainer, dataset.train[:4])
        terms = ewc.penalties(trainer)
        done = [
            trainer.train(
                dataset.train[6:20],
                max_steps=4,
                penalties=terms,
                checkpoint_dir=tmp_path / str(len(stops)),
                resume=True,
                stop=after(steps),
            ).completed
            for steps in stops
        ]
        assert done == [steps == 9 for steps in stops]
        states.append(trainer.state())
    assert states[0] == states[1]


def test_a_session_more_takes_no_more_room_and_older_ones_fade(fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer(decay=0.25)
    sessions = [dataset.train[:4], dataset.train[4:8], dataset.train[8:12]]
    wanted = np.zeros(trainer.flat.vector.numel())
    for session in sessions:
        trainer.train(session, max_steps=1, penalties=ewc.penalties(trainer))
        ewc.consolidate(trainer, session)
        wanted = 0.25 * wanted + compute_fisher_information(trainer, session).normalized()
    assert ewc.state is not None
    assert ewc.state.sessions == 3
    np.testing.assert_allclose(ewc.state.importance, wanted, rtol=1e-5)
    np.testing.assert_array_equal(ewc.state.anchor, ewc.state.layout.flatten(trainer.state()))


def test_it_holds_after_a_round_trip_as_it_held_before(tmp_path: Path, fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base())
    ewc = EWCRegularizer(5.0)
    ewc.save(tmp_path / "nothing.ewc")
    assert not (tmp_path / "nothing.ewc").exists()
    ewc.consolidate(trainer, dataset.train[:6])
    ewc.save(tmp_path / "state.ewc")
    assert (tmp_path / "state.ewc").stat().st_mode & 0o777 == 0o600
    anchor = trainer.flat.vector.detach().clone()
    trained = []
    for kept in (ewc, EWCRegularizer(5.0)):
        kept.load(tmp_path / "state.ewc")
        trainer.flat.load(anchor)
        trainer.train(dataset.train[6:12], max_steps=3, penalties=kept.penalties(trainer))
        trained.append(trainer.state())
    assert trained[0] == trained[1]
    assert kept.state is not None
    assert kept.state.sessions == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 3}, "of rank 4; this one's: 3"),
        ({"alpha": 5.0}, r"of alpha 8\.0; this one's: 5\.0"),
        ({"target_modules": ["q_proj"]}, "of target modules .*q_proj, .*; this one's: q_proj"),
        ({"top_layers_only": 1}, r"of layers all; this one's: \d"),
    ],
)
def test_another_adapter_is_refused_with_both_values(
    fresh_base: Fresh, dataset: Dataset, options: dict[str, Any], words: str
) -> None:
    ewc = EWCRegularizer()
    ewc.consolidate(trainer_on(fresh_base()), dataset.train[:2])
    other = LoRATrainer(fresh_base(), **{"rank": 4, **options})
    with pytest.raises(CheckpointError, match=words):
        ewc.penalties(other)
    with pytest.raises(CheckpointError, match=words):
        ewc.consolidate(other, dataset.train[:2])


def test_another_base_is_refused(fresh_base: Fresh, dataset: Dataset) -> None:
    ewc = EWCRegularizer()
    ewc.consolidate(trainer_on(fresh_base()), dataset.train[:2])
    changed = fresh_base()
    other = trainer_on(changed)
    object.__setattr__(
        other, "spec", type(other.spec)(**{**_fields(other.spec), "base_fingerprint": "sha256:" + "0" * 64})
    )
    with pytest.raises(CheckpointError, match=r"of base fingerprint \w+; this one's: 0000"):
        ewc.penalties(other)


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def test_a_flipped_byte_anywhere_names_the_file(tmp_path: Path, fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = trainer_on(fresh_base(), rank=1, target_modules=["q_proj"])
    ewc = EWCRegularizer()
    ewc.consolidate(trainer, dataset.train[:2])
    path = tmp_path / "state.ewc"
    ewc.save(path)
    whole = path.read_bytes()
    places = [*range(0, 1200, 7), *np.random.default_rng(0).integers(1200, len(whole), 40).tolist(), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=rf"{path}.* is damaged"):
            EWCState.load(path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            EWCState.load(path)
    path.write_bytes(whole)
    EWCState.load(path)
    path.chmod(0o644)
    with pytest.raises(StorageError, match="0600"):
        EWCState.load(path)


@pytest.mark.parametrize(("weight", "decay"), [(-1, 0.9), (float("nan"), 0.9), (float("inf"), 0.9), (0.5, 1.1)])
def test_a_weight_that_is_none_is_refused(weight: float, decay: float) -> None:
    with pytest.raises(TrainingError, match="wanted an EWC weight"):
        EWCRegularizer(weight, decay=decay)


@pytest.mark.parametrize("space", SPACES)
def test_two_penalties_are_told_apart(tiny_flat: FlatParameters, space: Space) -> None:
    one, same, other = (penalty_on(tiny_flat, space, weight) for weight in (1.0, 1.0, 2.0))
    assert one.digest() == same.digest() != other.digest()
