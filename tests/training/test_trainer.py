"""`LoRATrainer` as a library: the guide's calls, determinism, stopping, resuming, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import MODELS, VOCABULARY, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neuralforge.data.dataset import Dataset
from neuralforge.data.jsonl import write_examples
from neuralforge.models import load_base_model
from neuralforge.models.base import BaseModel
from neuralforge.models.fingerprint import fingerprint
from neuralforge.training import CosineScheduler, LoRATrainer
from neuralforge.training.events import Evaluated, Event, RunFinished, RunStarted, StepDone
from neuralforge_common.errors import CheckpointError, TrainingError
from neuralforge_common.folder import read_adapter_folder

Fresh = Callable[..., BaseModel]


def train(base: BaseModel, dataset: Dataset, *, events: list[Event] | None = None, **options: Any) -> LoRATrainer:
    names = ("epochs", "max_steps", "checkpoint_dir", "checkpoint_steps", "resume", "stop", "early_stopping_patience",
             "eval_steps", "lr_scheduler", "schedule")  # fmt: skip
    run = {name: options.pop(name) for name in names if name in options}
    evaluation = options.pop("evaluation", dataset.evaluation)
    trainer = LoRATrainer(base, **{"rank": 4, "max_length": 64, **options})
    observers = [] if events is None else [events.append]
    trainer.train(dataset.train, evaluation or None, observers=observers, **{"epochs": 1, **run})
    return trainer


def test_the_guides_script_runs_as_written(tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(Path("train.jsonl"), dataset.train[:32])
    write_examples(Path("eval.jsonl"), dataset.evaluation)
    model = load_base_model("nf-tiny")
    trainer = LoRATrainer(model=model, rank=8, alpha=16, target_modules=["q_proj", "v_proj"])
    trainer.train(train_dataset="train.jsonl", eval_dataset="eval.jsonl", epochs=3, batch_size=8)
    trainer.save_adapter("my-adapter.lora")
    folder = read_adapter_folder(Path("my-adapter.lora"))
    assert folder.spec.target_modules == ("q_proj", "v_proj")
    assert folder.metadata.training_samples == 32
    assert any(array.any() for name, array in folder.state.items() if "lora_B" in name), "it learnt something"


def test_the_guides_other_snippets_are_valid_arguments(fresh_base: Fresh, dataset: Dataset) -> None:
    scheduler = CosineScheduler(base_lr=0.0001, warmup_steps=100, total_steps=1000)
    trainer = LoRATrainer(
        fresh_base(), gradient_accumulation_steps=4, batch_size=8, fp16=True, gradient_scaling=True,
        gradient_checkpointing=True, max_length=64,
    )  # fmt: skip
    events: list[Event] = []
    trainer.train(dataset.train, lr_scheduler=scheduler, epochs=1, observers=[events.append])
    rates = [event.learning_rate for event in events if isinstance(event, StepDone)]
    assert rates == [scheduler(step) for step in range(math.ceil(math.ceil(len(dataset.train) / 8) / 4))]
    assert any("fp16: not available on cpu, computing in float32" in notice for notice in trainer.notices)


def test_an_adapter_learns_the_teams_code(fresh_base: Fresh, dataset: Dataset) -> None:
    events: list[Event] = []
    train(fresh_base(), dataset, events=events, epochs=3)
    losses = [event.evaluation.loss for event in events if isinstance(event, Evaluated)]
    assert losses[-1] < losses[0] - 0.02
    assert len(losses) == 4, "before the first step and after each epoch"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(fresh_base: Fresh, dataset: Dataset) -> None:
    first, again, other = (
        train(fresh_base("bfloat16"), dataset, max_steps=2, batch_size=2, dropout=0.1, seed=seed, evaluation=())
        .state()
        .digest()
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_training_leaves_torchs_generator_and_the_base_as_they_were(fresh_base: Fresh, dataset: Dataset) -> None:
    base = fresh_base()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(base, dataset, max_steps=3, dropout=0.1, engine="general")
    assert torch.equal(torch.rand(3), expected)
    assert fingerprint(base.model) == base.fingerprint


@pytest.mark.parametrize("engine", ["fast", "general"])
def test_accumulated_micro_batches_equal_one_large_batch(fresh_base: Fresh, dataset: Dataset, engine: Any) -> None:
    def first_norm(batch_size: int, accumulation: int) -> float:
        events: list[Event] = []
        train(
            fresh_base(), dataset, events=events, max_steps=1, evaluation=(), batch_size=batch_size,
            gradient_accumulation_steps=accumulation, engine=engine,
        )  # fmt: skip
        return next(event.gradient_norm for event in events if isinstance(event, StepDone))

    # One step over the whole dataset, so that both see the same examples.
    size = len(dataset.train)
    assert first_norm(size, 1) == pytest.approx(first_norm(8, math.ceil(size / 8)), rel=1e-4)


def test_both_engines_walk_the_same_way(fresh_base: Fresh, dataset: Dataset) -> None:
    def losses(engine: str) -> list[float]:
        events: list[Event] = []
        train(fresh_base(), dataset, events=events, max_steps=8, evaluation=(), engine=engine)
        return [event.loss for event in events if isinstance(event, StepDone)]

    # Losses, not weights: Adam makes a whole step even of a gradient that is nothing but rounding.
    assert losses("fast") == pytest.approx(losses("general"), rel=1e-4)


def test_a_cached_prefix_changes_nothing_but_the_time(fresh_base: Fresh, dataset: Dataset) -> None:
    cached, plain = (
        train(fresh_base(), dataset, epochs=2, evaluation=(), top_layers_only=2, cache_bytes=cache).state()
        for cache in (2**30, 0)
    )
    for name, array in cached.items():
        assert np.linalg.norm(array - plain[name]) < 1e-3 * np.linalg.norm(plain[name])
    assert all(".layers.4." in name or ".layers.5." in name for name in cached)


@pytest.mark.parametrize("option", [{"int8": "backward"}, {"int8": "full"}, {"context_gradients": False}])
def test_a_named_approximation_still_learns(fresh_base: Fresh, dataset: Dataset, option: dict[str, Any]) -> None:
    events: list[Event] = []
    if "int8" in option and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("this CPU has no int8 products: a step takes half a minute")
    few = {"max_steps": 6, "eval_steps": 6, "evaluation": dataset.evaluation[:4], "batch_size": 2}
    train(fresh_base("bfloat16"), dataset, events=events, **few, **option)
    losses = [event.evaluation.loss for event in events if isinstance(event, Evaluated)]
    assert losses[-1] < losses[0]


def test_batches_waste_less_than_a_twentieth_on_padding(fresh_base: Fresh, dataset: Dataset) -> None:
    events: list[Event] = []
    train(fresh_base(), dataset, events=events, max_steps=1, engine="general", evaluation=())
    started = next(event for event in events if isinstance(event, RunStarted))
    assert 0 <= started.padding < 0.05


def test_learning_stops_when_nothing_gets_better_and_keeps_the_best(fresh_base: Fresh, dataset: Dataset) -> None:
    events: list[Event] = []
    # A rate at which a few examples are learnt by heart.
    trainer = train(
        fresh_base(), Dataset(train=dataset.train[:8], evaluation=dataset.evaluation, report=dataset.report),
        events=events, epochs=60, eval_steps=2, early_stopping_patience=3, learning_rate=0.02, schedule="constant",
    )  # fmt: skip
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    finished = next(event for event in events if isinstance(event, RunFinished))
    best = min(evaluations, key=lambda event: event.evaluation.loss)
    assert finished.step < 120
    assert "brought nothing" in finished.reason
    assert finished.best_step == best.step
    assert len(evaluations) - 1 - evaluations.index(best) == 3
    assert trainer.evaluate(dataset.evaluation).loss == pytest.approx(best.evaluation.loss, abs=1e-5)


# A CPU without instructions for bfloat16 takes fifty times as long with it: a few steps only.
@pytest.mark.parametrize(("dtype", "steps", "stops"), [("float32", 20, (1, 7, 13)), ("bfloat16", 3, (1,))])
def test_a_run_that_was_stopped_and_resumed_ends_as_if_it_had_not_been(
    tmp_path: Path, fresh_base: Fresh, dataset: Dataset, dtype: str, steps: int, stops: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {"epochs": 2, "dropout": 0.1, "eval_steps": 5, "top_layers_only": 3, "batch_size": 4}
    options["max_steps"] = steps
    # Ten steps an epoch: the last stop lies in the second.
    dataset = Dataset(train=dataset.train[:40], evaluation=dataset.evaluation[:2], report=dataset.report)
    whole = train(fresh_base(dtype), dataset, **options).state()
    for stop_at in stops:
        seen: list[Event] = []

        def stop(seen: list[Event] = seen, stop_at: int = stop_at) -> bool:
            return sum(isinstance(event, StepDone) for event in seen) >= stop_at

        folder = tmp_path / str(stop_at)
        train(fresh_base(dtype), dataset, events=seen, checkpoint_dir=folder, stop=stop, **options)
        resumed: list[Event] = []
        trainer = train(fresh_base(dtype), dataset, events=resumed, checkpoint_dir=folder, resume=True, **options)
        assert next(e for e in resumed if isinstance(e, RunStarted)).step == stop_at
        assert trainer.state().digest() == whole.digest()


def test_a_finished_run_is_resumed_to_its_result(tmp_path: Path, fresh_base: Fresh, dataset: Dataset) -> None:
    first = train(fresh_base(), dataset, max_steps=4, checkpoint_dir=tmp_path).state()
    events: list[Event] = []
    again = train(fresh_base(), dataset, events=events, max_steps=4, checkpoint_dir=tmp_path, resume=True)
    assert again.state() == first
    assert not any(isinstance(event, StepDone) for event in events)


@pytest.mark.parametrize("change", [{"rank": 8}, {"learning_rate": 1e-4}, {"seed": 3}, {"batch_size": 2}, {"data": 1}])
def test_another_runs_checkpoint_is_refused(
    tmp_path: Path, fresh_base: Fresh, dataset: Dataset, change: dict[str, Any]
) -> None:
    train(fresh_base(), dataset, max_steps=2, checkpoint_dir=tmp_path)
    if change.pop("data", None):
        dataset = Dataset(train=dataset.train[1:], evaluation=dataset.evaluation, report=dataset.report)
    with pytest.raises(CheckpointError, match="another run"):
        train(fresh_base(), dataset, max_steps=2, checkpoint_dir=tmp_path, resume=True, **change)


@pytest.mark.parametrize("engine", ["fast", "general"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoints(
    tmp_path: Path, fresh_base: Fresh, dataset: Dataset, engine: Any
) -> None:
    with pytest.raises(TrainingError, match="not a finite number") as raised:
        train(
            fresh_base(), dataset, checkpoint_dir=tmp_path, checkpoint_steps=1, engine=engine,
            learning_rate=1e38, evaluation=(),
        )  # fmt: skip
    assert "--learning-rate" in raised.value.hint
    assert list(tmp_path.glob("checkpoint-*.safetensors"))


def test_an_option_that_the_engine_cannot_have_is_refused(fresh_base: Fresh) -> None:
    base = fresh_base()
    base.model.config.hidden_act = "gelu"
    with pytest.raises(TrainingError, match="int8 needs the fast engine"):
        LoRATrainer(base, int8="full")


def test_metadata_tells_what_was_measured(tmp_path: Path, fresh_base: Fresh, dataset: Dataset) -> None:
    trainer = train(fresh_base(), dataset, epochs=1)
    trainer.save_adapter(tmp_path / "x.lora", dataset_digest=dataset.digest)
    metadata = json.loads((tmp_path / "x.lora" / "metadata.json").read_text())
    assert metadata["base_model"] == "nf-tiny"
    assert metadata["accuracy"] == pytest.approx(trainer.evaluate(dataset.evaluation).accuracy, abs=1e-6)
    assert metadata["training_samples"] == len(dataset.train)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Every printable character is a token; ids fit the tiny models' vocabulary."""
    characters = [chr(c) for c in range(32, 126)] + ["\n"]
    vocabulary = {"<pad>": 0, **{c: i + 1 for i, c in enumerate(characters)}, "<eos>": len(characters) + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    wrapped: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = wrapped(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    assert len(vocabulary) <= VOCABULARY
    return built


def base_of(family: str) -> BaseModel:
    model = tiny_model(family)
    return BaseModel(
        model=model,
        tokenizer=character_tokenizer(),
        name=family,
        source=family,
        revision=None,
        family=family,
        license="",
        fingerprint=fingerprint(model),
        is_encoder_decoder=family == "t5",
    )


@pytest.mark.parametrize(("family", "told"), [("t5", True), ("llama", False)])
def test_an_encoder_decoder_says_that_its_context_is_not_learnt(family: str, told: bool) -> None:
    trainer = LoRATrainer(base_of(family), rank=2, max_length=64, loss_on_context=True)
    assert any("loss_on_context has no effect" in notice for notice in trainer.notices) == told


@pytest.mark.parametrize("family", sorted(MODELS))
def test_every_family_learns(family: str, dataset: Dataset) -> None:
    base = base_of(family)
    events: list[Event] = []
    small = Dataset(train=dataset.train[:24], evaluation=(), report=dataset.report)
    train(base, small, events=events, epochs=3, learning_rate=0.02, alpha=16.0, target_modules="q_proj,v_proj")
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert sum(losses[-4:]) < sum(losses[:4])
