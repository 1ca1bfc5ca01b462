"""Sessions under privacy: who is charged for what, what is learnt again and how far it reaches, what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralforge.continual.incremental import IncrementalLearner
from neuralforge.continual.keys import KeyFile
from neuralforge.data.dataset import Dataset, DatasetReport
from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge.models.load import load_base_model
from neuralforge.privacy.fisher import private_fisher
from neuralforge.privacy.ledger import Account
from neuralforge.privacy.planned import Continued, plan
from neuralforge.privacy.sampling import PoissonSampler, Population
from neuralforge.privacy.session import UNBOUNDED, PrivateSession, require_private
from neuralforge.privacy.step import Mechanism, PrivateGradient
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.config.load import load_train_config
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.errors import DataError, PrivacyError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.noise import standard_normal
from neuralforge_common.privacy import PrivacyTerms

CLIP = 0.5
TERMS = PrivacyTerms(noise_multiplier=1.0, max_grad_norm=CLIP, sample_rate=0.5, divisor=4.0)


def examples(first: int, count: int) -> list[Example]:
    return [
        Example(context=f"def f{n}(x):\n    y = x", completion=f" * {n * n}\n") for n in range(first, first + count)
    ]


OLD, NEW = examples(0, 8), examples(100, 8)


@pytest.fixture(scope="module")
def anew() -> Callable[[], LoRATrainer]:
    """The same trainer each time, its adapter as at first: a base is loaded once."""
    trainer = LoRATrainer(load_base_model("nf-tiny", dtype="float32", device="cpu"), rank=2, max_length=32)
    first = trainer.state()

    def reset() -> LoRATrainer:
        trainer.load_state(first)
        return trainer

    return reset


def step_sum(trainer: LoRATrainer, new: Sequence[Example], old: Sequence[Example]) -> torch.Tensor:
    """The sum of one step in which everybody is drawn, without noise."""

    def population(given: Sequence[Example], name: str) -> Population:
        units: dict[str, tuple[TokenizedExample, ...]] = {}
        for e in trainer.tokenize(given):
            units[f"{name} {given[e.index].id}"] = (e,)
        return Population(units=units, sample_rate=1.0)

    gradient = PrivateGradient(
        trainer.engine,
        trainer.flat,
        PoissonSampler([population(new, "new"), population(old, "old")], max_unit_examples=1),
        Mechanism(noise_multiplier=0.0, clip=CLIP, divisor=1.0),
        noise=standard_normal,
        chunk=3,
        examples=(),
        steps_per_epoch=1,
    )
    gradient(0)
    return trainer.flat.gradient.detach().clone().double()


def test_an_old_example_in_the_buffer_moves_a_step_by_no_more_than_its_clipped_gradient(
    anew: Callable[[], LoRATrainer],
) -> None:
    trainer = anew()
    long = replace(OLD[0], completion=" + 1" * 40)
    whole = step_sum(trainer, NEW, OLD)
    swapped = step_sum(trainer, NEW, [long, *OLD[1:]])
    without = step_sum(trainer, NEW, OLD[1:])
    assert 0 < float((whole - swapped).norm()) <= 2 * CLIP * (1 + 1e-5)
    assert 0 < float((whole - without).norm()) <= CLIP * (1 + 1e-5)


def config(place: Path, **keys: object) -> TrainConfig:
    given = {
        "privacy.enabled": True,
        "privacy.sample_rate": 0.5,
        "training.max_steps": 4,
        "output.directory": str(place),
        "model.adapter_name": "a",
        "federation.home": str(place / "home"),
    }
    return load_train_config(None, given | keys, {})


@contextmanager
def session(wanted: TrainConfig, continued: Continued | None = None) -> Iterator[PrivateSession]:
    planned = plan(wanted, continued=continued)
    with Account.open(planned.home, planned.scope, unit=planned.terms.unit, tell=print) as account:
        yield PrivateSession(planned, account, block=2)


def learn(learner: IncrementalLearner, private: PrivateSession | None, train: Sequence[Example]) -> None:
    data = Dataset(train=tuple(train), evaluation=(), report=DatasetReport())
    how = {"max_grad_norm": 0.0, "keeps": "last"} if private else {}
    learner.learn_from_session(data, private=private, max_steps=4, epochs=9, warmup_steps=0, **how)


def learner(path: Path, trainer: LoRATrainer, *, anew: bool = False) -> IncrementalLearner:
    return IncrementalLearner(
        path,
        trainer=trainer,
        key=KeyFile(path.parent / "key"),
        replay_buffer_size=UNBOUNDED,
        der_alpha=0.0,
        anew=anew,
    )


@pytest.fixture
def first(anew: Callable[[], LoRATrainer], tmp_path: Path) -> IncrementalLearner:
    """An adapter after a private first session on OLD."""
    found = learner(tmp_path / "a.lora", anew(), anew=True)
    with session(config(tmp_path)) as private:
        learn(found, private, OLD)
    return found


def charges(place: Path) -> list[dict[str, float]]:
    """Of each charge: cohort -> q."""
    (path,) = place.glob("home/privacy/*/ledger.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{cohort: rate for cohort, (rate, _) in line["cohorts"].items()} for line in lines]


def test_a_session_with_new_data_alone_costs_the_old_data_nothing(first: IncrementalLearner, tmp_path: Path) -> None:
    with session(config(tmp_path), Continued(session=2)) as private:
        learn(first, private, [*OLD[:3], *NEW])
        statement = private.statement()
    assert charges(tmp_path) == [{"1": 0.5}] * 2 + [{"2": 0.5}] * 2
    assert first.sessions[-1].examples == len(NEW), "what was learnt from before is not new"
    sigma = private.planned.terms.noise_multiplier
    assert statement.epsilon == pytest.approx(
        epsilon([Steps(sample_rate=0.5, noise_multiplier=sigma, count=4)], 1e-5), rel=1e-12
    )
    assert first.ewc.state is not None


def test_what_is_replayed_is_charged_with_its_own_rate(first: IncrementalLearner, tmp_path: Path) -> None:
    kept = len(first.replay_buffer)
    with session(config(tmp_path, **{"privacy.target_epsilon": 20}), Continued(session=2, replay_rate=0.25)) as private:
        learn(first, private, NEW)
        steps, spent = private.statement().steps, private.statement().epsilon
    assert charges(tmp_path)[2:] == [{"1": 0.25, "2": 0.5}] * 2
    assert first.sessions[-1].replayed == kept
    assert steps == 8
    assert 8 < spent <= 20
    metadata = read_adapter_folder(tmp_path / "a.lora").metadata
    assert metadata.privacy is not None
    assert metadata.privacy.epsilon == spent
    assert (metadata.training_samples, metadata.accuracy, metadata.dataset_digest, metadata.evaluation) == (
        None, None, "", None,
    )  # fmt: skip


def test_replay_beyond_the_budget_of_the_old_data_is_refused_with_a_way_out(
    first: IncrementalLearner, tmp_path: Path
) -> None:
    assert first.sessions
    with pytest.raises(PrivacyError, match=r"has spent ε = 8 of 8 .* nothing would be learnt") as caught:
        plan(config(tmp_path), continued=Continued(session=2, replay_rate=0.25))
    assert "--replay-ratio 0" in caught.value.hint


def test_nothing_gives_way_in_a_private_buffer(anew: Callable[[], LoRATrainer], tmp_path: Path) -> None:
    found = learner(tmp_path / "a.lora", anew(), anew=True)
    held: list[set[str]] = []
    for number in (1, 2):
        continued = Continued(session=2) if number == 2 else None
        with session(config(tmp_path), continued) as private:
            learn(found, private, examples(1000 * number, 24))
        held.append({item.example.id for item in found.replay_buffer.items})
    assert held[0] < held[1]
    assert 0 < len(held[1]) < 48, "each was kept by a coin"


def test_a_session_that_was_broken_off_may_take_up_its_own_data_again(
    first: IncrementalLearner, tmp_path: Path
) -> None:
    before = len(first.sessions)
    with session(config(tmp_path), Continued(session=2)) as private, pytest.raises(PrivacyError, match="not planned"):
        first.trainer.train(private.begin(NEW).examples, gradient=private.gradient, keeps="last", epochs=9, max_steps=5)
    with session(config(tmp_path, **{"privacy.target_epsilon": 12}), Continued(session=2)) as private:
        learn(first, private, NEW)
    assert len(first.sessions) == before + 1
    assert charges(tmp_path)[2:] == [{"2": 0.5}] * 4


def test_an_adapter_with_a_past_that_is_not_accounted_for_cannot_become_private(
    anew: Callable[[], LoRATrainer], tmp_path: Path
) -> None:
    path = tmp_path / "a.lora"
    learn(learner(path, anew(), anew=True), None, OLD)
    planned = plan(config(tmp_path), continued=Continued(session=2))
    with pytest.raises(PrivacyError, match="was learnt without privacy"):
        require_private(read_adapter_folder(path), planned)


def test_an_adapter_whose_ledger_is_elsewhere_is_not_gone_on_with(first: IncrementalLearner, tmp_path: Path) -> None:
    elsewhere = plan(config(tmp_path, **{"federation.home": str(tmp_path / "other")}), continued=Continued(session=2))
    with pytest.raises(PrivacyError, match="no ledger of adapter"):
        require_private(read_adapter_folder(first.path), elsewhere)


def test_an_adapter_is_not_gone_on_with_under_a_ledger_that_knows_of_less(
    first: IncrementalLearner, tmp_path: Path
) -> None:
    planned = plan(config(tmp_path), continued=Continued(session=2))
    require_private(read_adapter_folder(first.path), planned)
    (ledger,) = tmp_path.glob("home/privacy/*/ledger.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(PrivacyError, match=r"says ε = 8 .* in 4 steps, and its ledger knows of ε = .* in 2: "):
        require_private(read_adapter_folder(first.path), planned)


def test_a_session_without_privacy_takes_the_claim_away(first: IncrementalLearner, tmp_path: Path) -> None:
    assert read_adapter_folder(tmp_path / "a.lora").metadata.privacy is not None
    learn(first, None, NEW)
    assert read_adapter_folder(tmp_path / "a.lora").metadata.privacy is None


def test_data_of_earlier_sessions_alone_is_nothing_new(first: IncrementalLearner, tmp_path: Path) -> None:
    with session(config(tmp_path), Continued(session=2)) as private, pytest.raises(DataError, match="nothing new"):
        learn(first, private, OLD)


@pytest.mark.parametrize("drawn", [0, 8])
def test_noise_alone_matters_to_no_weight_and_gradients_do(anew: Callable[[], LoRATrainer], drawn: int) -> None:
    trainer = anew()
    units = {str(e.index): (e,) for e in trainer.tokenize(OLD)[:drawn]}
    terms = replace(TERMS, noise_multiplier=0.05, sample_rate=1.0)
    gradient = PrivateGradient(
        trainer.engine,
        trainer.flat,
        PoissonSampler([Population(units=units, sample_rate=1.0)], max_unit_examples=1),
        Mechanism(noise_multiplier=terms.noise_multiplier, clip=terms.max_grad_norm, divisor=terms.divisor),
        noise=standard_normal,
        chunk=8,
        examples=(),
        steps_per_epoch=1,
        keeps_squares=True,
    )
    for step in range(4):
        gradient(step)
    fisher = private_fisher(trainer, gradient, terms)
    variance = (terms.noise_multiplier * terms.max_grad_norm / terms.divisor) ** 2
    smallest = min(place.size for place in trainer.flat.places.values())
    chance = 6 * variance * np.sqrt(2 / (4 * smallest))
    b = fisher.layout.part_slice("B")
    assert (float(fisher.values[b].max()) > 4 * chance) == (drawn > 0)
    assert drawn > 0 or float(fisher.values.max()) < chance
    assert float(fisher.values.min()) >= 0
