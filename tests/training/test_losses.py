"""Losses of other kinds: their gradients, in every engine, and what they are for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_batch
from tiny_engines import FAST, engine_of
from torch.nn import functional

from neuralforge.data.batch import Batch
from neuralforge.data.example import Example
from neuralforge.data.soft import SoftTargets
from neuralforge.models import load_base_model
from neuralforge.training import LoRATrainer
from neuralforge.training.engine import Engine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.losses import (
    LabelSmoothing,
    LossContext,
    StyleConsistent,
    SyntaxPenalised,
    check_syntax_errors,
    cross_entropy,
    measure_style_consistency,
)
from neuralforge.training.losses.context import ExampleLoss
from neuralforge.training.losses.expected import expected_judgement
from neuralforge.training.losses.style import style_agreement
from neuralforge_common.errors import TrainingError

KINDS = [
    *(("fast", family) for family in FAST),
    *(("general", family) for family in ("llama", "gemma2", "gpt_neox", "t5")),
]


class Letters:
    """A tokenizer of single letters."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(32 + int(i)) for i in ids)


def focal(predictions: torch.Tensor, targets: torch.Tensor, context: LossContext) -> torch.Tensor:
    """Unlike cross-entropy in every token, and it knows where it is."""
    likelihood = torch.softmax(predictions, -1).gather(1, targets[:, None])[:, 0]
    assert targets.tolist() == list(context.targets)
    return ((1 - likelihood) ** 2 * -likelihood.log()).mean() * (1 + context.example.index % 3)


def gradient(engine: Engine, flat: FlatParameters, batch: Batch) -> torch.Tensor:
    flat.gradient.zero_()
    engine.accumulate(batch, scale=1 / batch.targets, seed=3)
    return flat.gradient.clone()


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_cross_entropy_as_a_loss_is_the_one_that_is_built_in(kind: str, family: str) -> None:
    batch = tiny_batch(seq2seq=family == "t5")
    engine, flat = engine_of(kind, family)
    built_in = gradient(engine, flat, batch)
    engine.loss = ExampleLoss(cross_entropy, Letters())
    assert torch.allclose(gradient(engine, flat, batch), built_in, atol=1e-5)
    assert float(built_in.abs().max()) > 1e-2


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_a_custom_losss_gradient_is_that_of_differences(kind: str, family: str) -> None:
    batch = tiny_batch(count=3, seq2seq=family == "t5")
    engine, flat = engine_of(kind, family)
    engine.loss = ExampleLoss(focal, Letters())
    found = gradient(engine, flat, batch)
    direction = torch.randn(flat.vector.shape, generator=torch.Generator().manual_seed(0))
    # Along the gradient itself as well: a slope of nothing but chance drowns in rounding.
    direction = direction / direction.norm() + found / found.norm()
    at, step = flat.vector.detach().clone(), 3e-3
    values = []
    for sign in (1, -1):
        flat.load(at + sign * step * direction)
        values.append(engine.accumulate(batch, scale=0.0, seed=3) / batch.targets)
    slope = (values[0] - values[1]) / (2 * step)
    assert float(found @ direction) == pytest.approx(slope, rel=0.03, abs=3e-4)


@pytest.mark.parametrize(("kind", "family"), [("fast", "llama"), ("general", "llama"), ("opacus", "llama")])
def test_each_example_has_a_gradient_of_its_own(kind: str, family: str) -> None:
    batch = tiny_batch(count=4)
    engine, flat = engine_of(kind, family)
    engine.loss = ExampleLoss(focal, Letters())
    rows = torch.zeros(4, flat.vector.numel())
    engine.accumulate_each(batch, rows, owners=range(4), scales=[1.0] * 4, seed=3)
    for row, example in zip(rows, batch.examples, strict=True):
        flat.gradient.zero_()
        engine.accumulate(Batch(examples=(example,)), scale=1.0, seed=3)
        assert torch.allclose(row, flat.gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "family"), [("fast", "llama"), ("general", "llama"), ("general", "gemma2")])
def test_replayed_examples_keep_the_loss_of_their_own(kind: str, family: str) -> None:
    batch = tiny_batch(count=4)
    soft = {batch.examples[1].index: SoftTargets(logits=None, soft=0.0, hard=0.5)}
    engine, flat = engine_of(kind, family)
    alone = [gradient(engine, flat, Batch(examples=(batch.examples[1],), soft=soft)) * batch.examples[1].targets]
    engine.loss = ExampleLoss(focal, Letters())
    alone += [gradient(engine, flat, Batch(examples=(e,))) * e.targets for i, e in enumerate(batch.examples) if i != 1]
    together = gradient(engine, flat, replace(batch, soft=soft)) * batch.targets
    assert torch.allclose(together, sum(alone), atol=1e-4)  # type: ignore[arg-type]


def test_label_smoothing_is_torchs() -> None:
    logits, targets = torch.randn(7, 11, generator=torch.Generator().manual_seed(1)), torch.arange(7)
    for epsilon in (0.0, 0.1, 0.6):
        theirs = functional.cross_entropy(logits, targets, label_smoothing=epsilon)
        assert float(LabelSmoothing(epsilon)(logits, targets)) == pytest.approx(float(theirs), rel=1e-5)
    with pytest.raises(TrainingError, match="from 0 to below 1"):
        LabelSmoothing(1.0)


def context_for(text: str, completion: str, *, seed: int = 0) -> LossContext:
    from neuralforge.data.tokens import TokenizedExample

    ids = [ord(letter) - 32 if letter != "\n" else 95 for letter in text + completion]
    example = TokenizedExample(index=0, tokens=tuple(ids), start=len(text), language="python", ended=False)
    decode = Letters().decode
    return LossContext(example=example, decode=lambda ids: decode(ids).replace("\x7f", "\n"), seed=seed)


def test_an_expectation_is_the_sum_over_what_is_probable_and_its_gradient_moves_it() -> None:
    context = context_for("x = ", "ab")
    logits = torch.zeros(2, 97, requires_grad=True)
    with torch.no_grad():
        for row, tokens in ((0, "aZ"), (1, "bZ")):
            for token, height in zip(tokens, (9.0, 8.0), strict=True):
                logits[row, ord(token) - 32] = height
    value = expected_judgement(logits, context, lambda text: float("Z" in text), alternatives=2)
    assert float(value) == pytest.approx(1 / (1 + torch.e), rel=1e-4)
    value.backward()
    assert logits.grad is not None
    assert float(logits.grad[0, ord("Z") - 32]) > 0 > float(logits.grad[0, ord("a") - 32])
    empty = context_for("x", "")
    assert float(expected_judgement(torch.zeros(0, 97, requires_grad=True), empty, lambda _: 1.0)) == 0


def test_a_token_that_breaks_the_syntax_costs_and_one_that_does_not_is_free() -> None:
    context = context_for("def f(a):\n", "  return a")
    places = {letter: i for i, letter in enumerate("  return a")}

    def cost(other: str) -> float:
        logits = torch.full((10, 97), -9.0)
        for at, letter in enumerate("  return a"):
            logits[at, ord(letter) - 32] = 9.0
        logits[places["a"], ord(other) - 32] = 9.0
        loss = ExampleLoss(lambda p, t, c: p.sum() * 0 + check_syntax_errors(p), Letters())
        values = [
            float(loss.function(logits.requires_grad_(), torch.tensor(context.targets), context_of(seed)))
            for seed in range(12)
        ]
        return sum(values) / len(values)

    def context_of(seed: int) -> LossContext:
        return replace_seed(context, seed)

    from neuralforge.training.losses import context as module

    def replace_seed(base: LossContext, seed: int) -> LossContext:
        made = LossContext(example=base.example, decode=base.decode, seed=seed)
        module._CURRENT.set(made)
        return made

    assert cost("b") < 1e-6
    assert cost(")") > 0.01
    module._CURRENT.set(None)


def test_style_is_how_the_surroundings_are_written() -> None:
    snake = "def read_all(file_name):\n    first_line = 'a'\n    return first_line\n"
    assert style_agreement(snake, "    last_line = 'b'\n") > style_agreement(snake, '    lastLine = "b";\n')
    assert style_agreement("", "x") == 1.0
    assert style_agreement(snake, "") == 1.0


GUIDE = Path(__file__).with_name("guide_custom_loss.txt")


def test_the_guides_custom_loss_runs_as_it_is_written() -> None:
    names: dict[str, Any] = {
        "cross_entropy": cross_entropy,
        "check_syntax_errors": check_syntax_errors,
        "measure_style_consistency": measure_style_consistency,
    }
    exec(compile(GUIDE.read_text(), "guide", "exec"), names)  # noqa: S102 (our own file)
    code = [
        Example(context=f"def add_{n}(a, b):\n", completion=f"    return a + b + {n}\n", language="python")
        for n in range(8)
    ]
    trainer = LoRATrainer(model=load_base_model("nf-tiny"), rank=2, max_length=48, loss=names["custom_loss"])
    before = trainer.evaluate(code).loss
    trainer.train(code, epochs=4, batch_size=4, warmup_steps=0)
    assert trainer.evaluate(code).loss < 0.8 * before


@pytest.mark.parametrize("loss", [SyntaxPenalised(1.0), StyleConsistent(1.0), LabelSmoothing(0.1)])
def test_shipped_losses_train_and_say_what_they_are(loss: Any) -> None:
    code = [Example(context=f"x_{n} = [", completion=f"{n}, {n + 1}]\n", language="python") for n in range(6)]
    trainer = LoRATrainer(model=load_base_model("nf-tiny"), rank=2, max_length=32, loss=loss)
    before = trainer.evaluate(code).loss
    trainer.train(code, epochs=3, batch_size=3, warmup_steps=0)
    assert trainer.evaluate(code).loss < before
    assert re.match(type(loss).__name__ + r"\(", repr(loss))


def test_what_is_no_loss_is_refused_with_a_way_out() -> None:
    code = [Example(context="x = ", completion="1\n", language="python")]
    for wrong, what in (
        (lambda p, t, c: functional.cross_entropy(p, t, reduction="none"), "a tensor of shape"),
        (lambda p, t, c: 1.0, "gave float"),
        (lambda p, t, c: torch.tensor(1.0), "does not depend on the predictions"),
    ):
        trainer = LoRATrainer(model=load_base_model("nf-tiny"), rank=2, max_length=32, loss=wrong)
        with pytest.raises(TrainingError, match=what):
            trainer.train(code, epochs=1)
    with pytest.raises(TrainingError, match="outside of a loss"):
        check_syntax_errors(torch.zeros(1, 5))
