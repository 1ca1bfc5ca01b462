"""Gradients of single examples out of one pass, against one pass for each example alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import VOCABULARY, tiny_batch, tiny_model, tiny_spec, with_adapter
from tiny_engines import FAST, GENERAL, engine_of, engine_on
from torch import nn
from torch.nn import functional

from neuralforge.data.batch import Batch
from neuralforge.data.soft import SoftTargets, TopLogits
from neuralforge.training.engine import Engine, EngineOptions
from neuralforge.training.fast.lora import LoraGroup, Share, Target
from neuralforge.training.flat import FlatParameters, Place
from neuralforge.training.general.each import EachGradient
from neuralforge.training.general.engine import GeneralEngine
from neuralforge_common.errors import TrainingError

COUNT = 6
SCALES = tuple(0.1 * (i + 1) for i in range(COUNT))
EVERY = [
    *(("fast", family, False) for family in FAST),
    *(("general", family, False) for family in GENERAL),
    *(("fast", "llama", True), ("general", "llama", True), ("general", "gpt_neox", True), ("general", "t5", True)),
    ("opacus", "t5", False),
]


def each(
    engine: Engine, flat: FlatParameters, batch: Batch, *, sides: str = "AB", seed: int = 0
) -> tuple[torch.Tensor, list[float]]:
    rows = torch.zeros(COUNT, len(flat.gradient))
    losses = engine.accumulate_each(batch, rows, owners=range(COUNT), scales=SCALES, sides=sides, seed=seed)
    return rows, losses


def alone(engine: Engine, flat: FlatParameters, batch: Batch) -> tuple[torch.Tensor, list[float]]:
    """One example after the other, by the engine's plain gradient (which test_gradients holds to the plain loss)."""
    rows, losses = torch.zeros(COUNT, len(flat.gradient)), []
    for i, example in enumerate(batch.examples):
        flat.gradient.zero_()
        losses.append(engine.accumulate(Batch(examples=(example,), soft=batch.soft), scale=SCALES[i], seed=0))
        rows[i] = flat.gradient
    flat.gradient.zero_()
    return rows, losses


def furthest(rows: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative error of a row."""
    norms = expected.norm(dim=1)
    assert norms.min() > 1e-2, "a gradient of zero proves nothing"
    return float(((rows - expected).norm(dim=1) / norms).max())


@pytest.mark.parametrize(("kind", "family", "checkpointing"), EVERY)
def test_each_row_is_the_gradient_of_its_example_alone(kind: str, family: str, checkpointing: bool) -> None:
    engine, flat = engine_of(kind, family, options={"gradient_checkpointing": checkpointing})
    batch = tiny_batch(count=COUNT, seq2seq=family == "t5")
    expected, expected_losses = alone(engine, flat, batch)
    rows, losses = each(engine, flat, batch)
    assert furthest(rows, expected) < 1e-5
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert not flat.gradient.any(), "nothing may reach the flat gradient unclipped"


@pytest.mark.parametrize("family", GENERAL)
def test_ours_and_opacus_rows_are_the_same(family: str) -> None:
    model = with_adapter(tiny_model(family), tiny_spec(family))
    flat = FlatParameters(model)
    batch = tiny_batch(count=COUNT, seq2seq=family == "t5")
    ours, theirs = (
        each(engine_on(kind, model, flat, seq2seq=family == "t5"), flat, batch)[0] for kind in ("general", "opacus")
    )
    assert furthest(ours, theirs) < 1e-6


@pytest.mark.parametrize(("kind", "family"), [("fast", "llama"), ("general", "t5"), ("opacus", "t5")])
def test_of_a_side_that_is_not_asked_for_nothing_is_written(kind: str, family: str) -> None:
    engine, flat = engine_of(kind, family)
    batch = tiny_batch(count=COUNT, seq2seq=family == "t5")
    both, _ = each(engine, flat, batch)
    for side in "AB":
        assert torch.equal(each(engine, flat, batch, sides=side)[0], both * flat.mask(side))


@pytest.mark.parametrize("kind", ["fast", "general", "opacus"])
def test_examples_of_one_owner_share_a_row_and_what_is_there_stays(kind: str) -> None:
    engine, flat = engine_of(kind, "llama")
    batch = tiny_batch(count=COUNT)
    apart, _ = each(engine, flat, batch)
    rows = torch.ones(3, len(flat.gradient))
    engine.accumulate_each(batch, rows, owners=[2, 0, 2, 2, 0, 2], scales=SCALES, seed=0)
    expected = torch.stack([apart[[1, 4]].sum(0), torch.zeros_like(apart[0]), apart[[0, 2, 3, 5]].sum(0)])
    assert float((rows - 1 - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["fast", "general"])
def test_with_dropout_the_rows_sum_to_the_batchs_gradient(kind: str) -> None:
    engine, flat = engine_of(kind, "llama", dropout=0.3)
    batch = tiny_batch(count=COUNT)
    rows = torch.zeros(COUNT, len(flat.gradient))
    engine.accumulate_each(batch, rows, owners=range(COUNT), scales=[0.5] * COUNT, seed=7)
    engine.accumulate(batch, scale=0.5, seed=7)
    assert torch.allclose(rows.sum(0), flat.gradient, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"context_gradients": False}, {"context_gradients": False, "gradient_checkpointing": True}, {"int8": "backward"}],
)
def test_the_fast_engines_options_hold_for_single_examples(options: dict[str, Any]) -> None:
    engine, flat = engine_of("fast", "llama", options=options, target_modules=("q_proj", "o_proj", "up_proj"))
    batch = tiny_batch(count=COUNT)
    expected, _ = alone(engine, flat, batch)
    # A last bit may fall to the other side of int8's rounding.
    assert furthest(each(engine, flat, batch)[0], expected) < (1e-2 if "int8" in options else 1e-5)


def test_a_cached_prefix_changes_no_row() -> None:
    engine, flat = engine_of("fast", "llama", layers=(1, 2))
    batch = tiny_batch(count=COUNT)
    expected, _ = each(engine, flat, batch)
    engine.cache_prefix(batch.examples)  # type: ignore[attr-defined]
    for _ in range(2):
        assert furthest(each(engine, flat, batch)[0], expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_both_kinds_of_checkpointing_recompute_the_same_rows(family: str, reentrant: bool) -> None:
    model = with_adapter(tiny_model(family), tiny_spec(family, dropout=0.2))
    flat = FlatParameters(model)
    engine = engine_on("general", model, flat, seq2seq=family == "t5")
    batch = tiny_batch(count=COUNT, seq2seq=family == "t5")
    expected, _ = each(engine, flat, batch)
    base: Any = model.get_base_model()
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    base.enable_input_require_grads()
    assert furthest(each(engine, flat, batch)[0], expected) < 1e-5


@pytest.mark.parametrize(("kind", "family"), [("fast", "llama"), ("general", "gpt_neox"), ("general", "gemma2")])
def test_replayed_examples_have_their_stored_logits_for_themselves_alone(kind: str, family: str) -> None:
    engine, flat = engine_of(kind, family)
    plain = tiny_batch(count=COUNT)
    generator = np.random.default_rng(0)
    soft = {
        e.index: SoftTargets(
            logits=TopLogits(
                ids=generator.integers(VOCABULARY, size=(e.targets, 4)).astype(np.int32),
                values=generator.normal(size=(e.targets, 4)).astype(np.float16),
            ),
            soft=0.5,
            hard=0.25,
        )
        for e in plain.examples[::2]
    }
    batch = Batch(examples=plain.examples, soft=soft)
    expected, expected_losses = alone(engine, flat, batch)
    rows, losses = each(engine, flat, batch)
    assert furthest(rows, expected) < 1e-5
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    untouched = each(engine, flat, plain)[0]
    assert furthest(rows[1::2], untouched[1::2]) < 1e-6
    assert furthest(rows[::2], untouched[::2]) > 0.1


def test_in_fp16_the_loss_scale_is_fixed_and_an_overflow_stays_in_its_row() -> None:
    model = with_adapter(tiny_model("gpt_neox"), tiny_spec("gpt_neox"))
    flat = FlatParameters(model)
    options = EngineOptions()
    half = GeneralEngine(
        model, flat, options, is_encoder_decoder=False, pad_token_id=0, autocast_fp16=True, loss_scale=2.0**16
    )
    batch = tiny_batch(count=COUNT)
    expected, _ = each(engine_on("general", model, flat), flat, batch)
    assert furthest(each(half, flat, batch)[0], expected) < 1e-2
    rows = torch.zeros(COUNT, len(flat.gradient))
    half.accumulate_each(batch, rows, owners=range(COUNT), scales=[0.1, 1e9, *SCALES[2:]], seed=0)
    assert not torch.isfinite(rows[1]).all()
    assert torch.equal(rows[2:], each(half, flat, batch)[0][2:])
    assert half.loss_scale == 2.0**16


# --- What cannot be told apart is refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["general", "opacus"])
def test_a_map_that_is_given_tokens_and_not_examples_is_refused_by_name(kind: str) -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    flat = FlatParameters(model)
    engine = engine_on(kind, model, flat)
    mlp = model.get_base_model().model.layers[1].mlp
    mlp.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1),))
    mlp.register_forward_hook(lambda module, args, out: out.view(COUNT, -1, out.shape[-1]))
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp\.gate_proj\.lora_A"):
        each(engine, flat, tiny_batch(count=COUNT))


@pytest.mark.parametrize("kind", ["general", "opacus"])
def test_a_weight_without_a_part_in_the_pass_is_refused_by_name(kind: str) -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    flat = FlatParameters(model)
    model.get_base_model().config.num_hidden_layers = 2
    with pytest.raises(TrainingError, match=r"layers\.2\..*had no part"):
        each(engine_on(kind, model, flat), flat, tiny_batch(count=COUNT))


def test_a_weight_that_is_used_past_its_module_is_refused_by_name() -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    flat = FlatParameters(model)
    mlp = model.get_base_model().model.layers[1].mlp
    mlp.register_forward_hook(lambda module, args, out: out + 0.1 * mlp.up_proj.lora_A["default"].weight.sum())
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp\.up_proj\.lora_A.*past its module"):
        each(engine_on("general", model, flat), flat, tiny_batch(count=COUNT))


def test_opacus_serves_what_ours_refuses() -> None:
    base = tiny_model("gpt_neox")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["dense"], lora_bias=True, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    flat = FlatParameters(model)
    batch = tiny_batch(count=COUNT)
    with pytest.raises(TrainingError, match=r"(?s)lora_B\.default.*privacy\.engine: opacus"):
        each(engine_on("general", model, flat), flat, batch)
    engine = engine_on("opacus", model, flat)
    expected, _ = alone(engine, flat, batch)
    assert furthest(each(engine, flat, batch)[0], expected) < 1e-5


def test_opacus_is_not_given_a_forward_pass_twice() -> None:
    with pytest.raises(TrainingError, match="checkpointing"):
        engine_of("opacus", "llama", options={"gradient_checkpointing": True})


# --- The arithmetic itself, in float64 --------------------------------------------------------------------------------


@contextmanager
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_in_float64_rows_of_a_whole_model_are_autograds() -> None:
    with double():
        model = with_adapter(tiny_model("gpt_neox", dtype=torch.float64), tiny_spec("gpt_neox")).double()
        examples = tiny_batch(count=COUNT).examples
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        places, size = {}, 0
        for name, parameter in named.items():
            places[name] = Place(size, tuple(parameter.shape))
            size += parameter.numel()

        def losses(chosen: range) -> torch.Tensor:
            width = max(len(examples[i].tokens) for i in chosen)
            ids = torch.tensor([[*examples[i].tokens, *[0] * (width - len(examples[i].tokens))] for i in chosen])
            logits = model(input_ids=ids).logits
            return torch.stack(
                [
                    functional.cross_entropy(
                        logits[row, examples[i].start - 1 : len(examples[i].tokens) - 1],
                        torch.tensor(examples[i].tokens[examples[i].start :]),
                    )
                    for row, i in enumerate(chosen)
                ]
            )

        rows = torch.zeros(COUNT, size)
        with EachGradient(model, places).into(rows, range(COUNT)):
            losses(range(COUNT)).sum().backward()
        for i in range(COUNT):
            model.zero_grad()
            losses(range(i, i + 1)).sum().backward()
            expected = torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None])
            assert float((rows[i] - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_in_float64_a_groups_hand_written_gradients_are_autograds(dropout: float) -> None:
    with double():
        generator = torch.Generator().manual_seed(1)
        vector = torch.randn(2 * 3 * 8 + 5 * 3 + 4 * 3, generator=generator)
        a, b = [Place(0, (3, 8)), Place(24, (3, 8))], [Place(48, (5, 3)), Place(63, (4, 3))]
        targets = [Target(columns=slice(0, 5), a=a[0], b=b[0]), Target(columns=slice(7, 11), a=a[1], b=b[1])]
        group = LoraGroup(targets, columns=11, scaling=1.5, dropout=dropout)
        group.refresh(vector)
        x, d_y = torch.randn(9, 8, generator=generator), torch.randn(9, 11, generator=generator)
        saved = group.forward(x, torch.zeros(9, 11), torch.Generator().manual_seed(2))
        rows, parts = torch.zeros(3, len(vector)), [slice(0, 2), slice(2, 3), slice(3, 9)]
        group.backward(d_y, x, saved, [Share(rows[i], part) for i, part in enumerate(parts)], torch.zeros(9, 8))
        for i, part in enumerate(parts):
            watched = nn.Parameter(vector.clone())
            y = torch.zeros(9, 11)
            for k, target in enumerate(targets):
                masked = x * saved.masks[k] if saved.masks else x
                y[:, target.columns] = 1.5 * masked @ target.a.of(watched).t() @ target.b.of(watched).t()
            (y[part] * d_y[part]).sum().backward()
            assert watched.grad is not None
            assert float((rows[i] - watched.grad).norm() / watched.grad.norm()) < 1e-12
