"""`loss_on_context`: the code in front of a completion is learnt, too, and nothing else is counted otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralforge.data.dataset import Dataset
from neuralforge.data.tokens import TokenizedExample, with_context_counted
from neuralforge.models.base import BaseModel
from neuralforge.training import LoRATrainer
from neuralforge.training.events import Event, StepDone
from neuralforge_common.config.load import load_train_config
from neuralforge_common.errors import ConfigError

Fresh = Callable[..., BaseModel]


def first_loss(base: BaseModel, examples: list[TokenizedExample], **options: Any) -> float:
    events: list[Event] = []
    trainer = LoRATrainer(base, rank=2, max_length=64, batch_size=len(examples), **options)
    trainer.train(examples, epochs=1, observers=[events.append])
    (step,) = [event for event in events if isinstance(event, StepDone)]
    assert step.loss is not None
    return step.loss


@pytest.mark.parametrize("engine", ["fast", "general"])
def test_a_step_counts_every_token_that_a_causal_base_predicts(
    fresh_base: Fresh, dataset: Dataset, engine: str
) -> None:
    base = fresh_base()
    examples = LoRATrainer(fresh_base(), rank=2, max_length=64).tokenize(dataset.train[:4])
    wanted, counted = 0.0, 0
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([example.tokens])
            losses = torch.nn.functional.cross_entropy(
                base.model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum"
            )
            wanted, counted = wanted + float(losses), counted + len(example.tokens) - 1
    told = first_loss(base, examples, engine=engine, loss_on_context=True)
    assert told == pytest.approx(wanted / counted, rel=1e-4)
    alone = first_loss(fresh_base(), examples, engine=engine)
    assert alone != pytest.approx(told, rel=1e-3)


def test_what_is_held_out_is_scored_on_completions_alone(fresh_base: Fresh, dataset: Dataset) -> None:
    before = []
    for counted in (False, True):
        trainer = LoRATrainer(fresh_base(), rank=2, max_length=64, loss_on_context=counted)
        result = trainer.train(dataset.train[:4], dataset.evaluation, max_steps=1)
        assert result.before is not None
        before.append((result.before.loss, result.before.tokens))
    assert before[0] == before[1]


def test_what_an_encoder_reads_is_never_predicted() -> None:
    read = TokenizedExample(index=0, tokens=(5, 6, 7), start=0, context=(1, 2))
    shown = TokenizedExample(index=1, tokens=(5, 6, 7), start=2)
    assert [example.start for example in with_context_counted([read, shown])] == [0, 1]


def test_other_losses_look_at_completions_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dataset: {train_file: d.jsonl}\ntraining:\n  loss_on_context: true\n  loss: label_smoothing\n")
    with pytest.raises(ConfigError, match=r"training\.loss_on_context: is for cross_entropy"):
        load_train_config(path, {}, {})
