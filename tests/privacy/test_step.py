"""The private step: what it sums, what a unit can move it by, and that something is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_batch
from tiny_engines import engine_of

from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample
from neuralforge.models.load import load_base_model
from neuralforge.privacy.clip import add_clipped, zero_sum
from neuralforge.privacy.step import Draw, Mechanism, PrivateGradient
from neuralforge.training.engine import Engine
from neuralforge.training.events import Event, StepDone
from neuralforge.training.flat import FlatParameters
from neuralforge.training.trainer import LoRATrainer

CLIP = 0.7
FAMILIES = [("fast", "llama"), ("fast", "qwen2"), ("general", "gpt_neox"), ("general", "t5"), ("opacus", "t5")]


class Listed:
    """Draws that were decided beforehand, the same in every step."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self._draws = draws

    def draw(self, step: int) -> Sequence[Draw]:
        return self._draws


def normals(seed: int) -> Callable[[int], Any]:
    generator = np.random.default_rng(seed)
    return lambda size: generator.standard_normal(size)


def no_noise(size: int) -> Any:
    raise AssertionError("σ is 0: nothing is to be drawn")


def step_of(
    engine: Engine, flat: FlatParameters, draws: Sequence[Draw], *, clip: float = CLIP, chunk: int = 4, **more: Any
) -> PrivateGradient:
    mechanism = Mechanism(noise_multiplier=more.pop("sigma", 0.0), clip=clip, divisor=more.pop("divisor", 1.0))
    more = {"noise": no_noise, "examples": (), "steps_per_epoch": 1} | more
    return PrivateGradient(engine, flat, Listed(draws), mechanism, chunk=chunk, **more)


def units(count: int, *, of: Sequence[int] = (1,), seq2seq: bool = False) -> list[Draw]:
    """`count` units of as many examples each as `of` says in turn."""
    sizes = [of[i % len(of)] for i in range(count)]
    examples = iter(tiny_batch(count=sum(sizes), seq2seq=seq2seq).examples)
    return [Draw(unit=i, examples=tuple(next(examples) for _ in range(n))) for i, n in enumerate(sizes)]


def gradient_of(engine: Engine, flat: FlatParameters, draw: Draw) -> torch.Tensor:
    """A unit's gradient by plain passes, one example after the other."""
    flat.gradient.zero_()
    for example in draw.examples:
        engine.accumulate(Batch(examples=(example,)), scale=1 / (len(draw.examples) * example.targets), seed=0)
    return flat.gradient.double()


def clipped_loop(engine: Engine, flat: FlatParameters, draws: Sequence[Draw]) -> tuple[torch.Tensor, float]:
    """The sum, and the bound that it was clipped to: one that bites for half of the units."""
    gradients = [gradient_of(engine, flat, draw) for draw in draws]
    norms = [float(g.norm()) for g in gradients]
    clip = float(np.median(norms))
    return torch.stack([g * min(1.0, clip / n) for g, n in zip(gradients, norms, strict=True)]).sum(0), clip


# --- What is summed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "family"), FAMILIES)
@pytest.mark.parametrize(("chunk", "of"), [(4, (1,)), (3, (1, 4, 2))])
def test_the_sum_is_that_of_a_loop_over_units(kind: str, family: str, chunk: int, of: tuple[int, ...]) -> None:
    engine, flat = engine_of(kind, family)
    draws = units(6, of=of, seq2seq=family == "t5")
    expected, clip = clipped_loop(engine, flat, draws)
    made = step_of(engine, flat, draws, clip=clip, chunk=chunk)(0)
    assert float((flat.gradient - expected).norm() / expected.norm()) < 1e-4
    assert made.tokens == sum(e.length for d in draws for e in d.examples)


def test_without_noise_and_bound_it_is_the_plain_gradient_of_the_mean() -> None:
    engine, flat = engine_of("fast", "llama")
    draws = units(5)
    expected = torch.stack([gradient_of(engine, flat, draw) for draw in draws]).mean(0)
    made = step_of(engine, flat, draws, clip=math.inf, divisor=5.0)(0)
    assert torch.allclose(flat.gradient.double(), expected, atol=1e-6)
    examples = tuple(d.examples[0] for d in draws)
    assert made.loss is not None
    assert made.loss * sum(e.targets for e in examples) == pytest.approx(
        sum(engine.accumulate(Batch(examples=(e,)), scale=1.0, seed=0) for e in examples), rel=1e-5
    )


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), clip=st.floats(1e-3, 1e3), spread=st.floats(0, 12))
def test_in_float64_a_clipped_sum_is_a_loops_and_adding_a_row_moves_it_by_no_more_than_the_bound(
    seed: int, clip: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 300, generator=generator, dtype=torch.float64)
    rows *= 10 ** (spread * (torch.rand(5, 1, generator=generator, dtype=torch.float64) - 0.5))
    total, without = zero_sum(rows), zero_sum(rows)
    assert add_clipped(rows, clip, total) == [True] * 5
    add_clipped(rows[1:], clip, without)
    expected = sum((r * min(1.0, clip / float(r.norm())) for r in rows), torch.zeros(300, dtype=torch.float64))
    assert float((total - expected).norm() / expected.norm()) < 1e-12
    assert float((total - without).norm()) <= clip * (1 + 1e-12)


def test_rows_longer_than_a_block_are_clipped_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    whole, parts = zero_sum(rows), zero_sum(rows)
    add_clipped(rows, 2.0, whole)
    monkeypatch.setattr("neuralforge.privacy.clip.BLOCK", 7)
    add_clipped(rows, 2.0, parts)
    assert torch.allclose(whole, parts, rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_counts_as_nothing(bad: float) -> None:
    rows = torch.ones(3, 8)
    rows[1, 3] = bad
    total = zero_sum(rows)
    assert add_clipped(rows, math.sqrt(2), total) == [True, False, True]
    assert torch.allclose(total, torch.ones(8, dtype=torch.float64))


# --- Noise, mask and empty draws --------------------------------------------------------------------------------------


def test_a_step_with_nobody_drawn_is_noise_alone() -> None:
    engine, flat = engine_of("fast", "llama")
    flat.gradient.fill_(9.0)
    source = step_of(engine, flat, [], sigma=2.0, divisor=16.0, noise=lambda n: np.ones(n))
    made = source(0)
    assert made.loss is None
    assert made.tokens == 0
    assert torch.allclose(flat.gradient, torch.tensor(2.0 * CLIP / 16.0))


@pytest.mark.parametrize("kind", ["fast", "general", "opacus"])
def test_frozen_values_have_no_part_in_norm_sum_or_noise(kind: str) -> None:
    engine, flat = engine_of(kind, "llama")
    draws, mask = units(4), flat.mask("B")
    expected = torch.zeros(len(mask), dtype=torch.float64)
    for draw in draws:
        of_b = gradient_of(engine, flat, draw) * mask
        expected += of_b * min(1.0, CLIP / float(of_b.norm()))
    asked: list[int] = []

    def noise(size: int) -> Any:
        asked.append(size)
        return np.full(size, 0.5)

    for sides in ("AB", "B"):
        step_of(engine, flat, draws, sigma=1.0, noise=noise, trainable=mask, sides=sides)(0)
        assert torch.allclose(flat.gradient.double(), (expected + 0.5 * CLIP) * mask, atol=1e-5)
    assert asked == [int(mask.sum())] * 2


def test_a_step_is_charged_before_anybody_is_drawn_and_is_not_taken_where_that_is_refused() -> None:
    engine, flat = engine_of("fast", "llama")
    order: list[str] = []

    class Told(Listed):
        def draw(self, step: int) -> Sequence[Draw]:
            order.append(f"draw {step}")
            return super().draw(step)

    mechanism = Mechanism(noise_multiplier=0.0, clip=CLIP, divisor=1.0)
    more: dict[str, Any] = {"noise": no_noise, "chunk": 2, "examples": (), "steps_per_epoch": 1}
    charge = order.append
    PrivateGradient(engine, flat, Told([]), mechanism, charge=lambda s: charge(f"charge {s}"), **more)(7)
    assert order == ["charge 7", "draw 7"]

    def refuse(step: int) -> None:
        raise RuntimeError("spent")

    with pytest.raises(RuntimeError, match="spent"):
        PrivateGradient(engine, flat, Told(units(2)), mechanism, charge=refuse, **more)(8)
    assert len(order) == 2


def test_squares_are_those_of_the_noised_gradients() -> None:
    engine, flat = engine_of("fast", "llama")
    source = step_of(engine, flat, units(2), sigma=1.0, noise=normals(0), keeps_squares=True)
    seen = torch.zeros_like(flat.gradient)
    for step in range(3):
        source(step)
        seen += flat.gradient**2
    assert source.steps == 3
    assert source.squares is not None
    assert torch.allclose(source.squares, seen)


def test_dropout_is_another_one_in_every_step() -> None:
    engine, flat = engine_of("fast", "llama", dropout=0.3)
    source = step_of(engine, flat, units(2))
    torch.manual_seed(0)
    source(0)
    first = flat.gradient.clone()
    torch.manual_seed(0)
    source(0)
    assert not torch.equal(first, flat.gradient)


# --- What one unit can move -------------------------------------------------------------------------------------------


class TokenMean:
    """What is wrong with many trainers: the loss is a mean over all tokens of the step, so each depends on all."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def accumulate_each(self, batch: Batch, rows: torch.Tensor, *, scales: Sequence[float], **more: Any) -> list[float]:
        same = [len(batch.examples) / batch.targets] * len(scales)
        return self._engine.accumulate_each(batch, rows, scales=same, **more)


def adversarial(*, seq2seq: bool) -> list[Draw]:
    """Units of one target each, and last one whose hundred targets outweigh all others' together."""
    generator = np.random.default_rng(0)

    def example(index: int, context: int, targets: int) -> TokenizedExample:
        ids = generator.integers(1, VOCABULARY, size=context + targets).tolist()
        head, body = tuple(ids[:context]), tuple(ids[context:])
        if seq2seq:
            return TokenizedExample(index=index, tokens=body, start=0, context=head)
        return TokenizedExample(index=index, tokens=head + body, start=context)

    lengths = [(1, 1), (2, 1), (30, 1), (3, 1), (60, 1), (5, 1), (5, 100)]
    return [Draw(unit=i, examples=(example(i, *length),)) for i, length in enumerate(lengths)]


def sensitivity(engine: Any, flat: FlatParameters, draws: list[Draw], clip: float) -> float:
    """How far the sum moves when one unit is taken away, over C: the furthest of all units."""

    def total(drawn: list[Draw]) -> torch.Tensor:
        step_of(engine, flat, drawn, clip=clip, chunk=len(draws))(0)
        return flat.gradient.double()

    whole = total(draws)
    return max(float((whole - total(draws[:i] + draws[i + 1 :])).norm()) / clip for i in range(len(draws)))


@pytest.mark.parametrize(
    ("kind", "family", "dtype"),
    [
        *(("fast", "llama", torch.float32), ("fast", "llama", torch.bfloat16)),
        *(("general", "gpt_neox", torch.float32), ("general", "t5", torch.float32)),
    ],
)
def test_a_unit_moves_the_sum_by_no_more_than_the_bound_and_a_token_mean_loss_would_break_it(
    kind: str, family: str, dtype: torch.dtype
) -> None:
    engine, flat = engine_of(kind, family, dtype=dtype)
    draws = adversarial(seq2seq=family == "t5")
    norms = [float(gradient_of(engine, flat, draw).norm()) for draw in draws]
    for clip in (float(np.median(norms)), max(norms) * 1.01):
        assert sensitivity(engine, flat, draws, clip) <= 1 + 1e-5
    # The same figures of the same check, with the other loss.
    assert sensitivity(TokenMean(engine), flat, draws, max(norms)) > 1.2


# --- Something is learnt ----------------------------------------------------------------------------------------------


class Coins:
    """Each unit with probability q, by a generator that tests can repeat."""

    def __init__(self, population: Sequence[Draw], q: float) -> None:
        self._population = population
        self._generator = np.random.default_rng(0)
        self._q = q

    def draw(self, step: int) -> Sequence[Draw]:
        return [draw for draw in self._population if self._generator.random() < self._q]


def coins(engine: Engine, flat: FlatParameters, draws: Sequence[Draw], **more: Any) -> PrivateGradient:
    mechanism = Mechanism(noise_multiplier=0.002, clip=1.0, divisor=0.5 * len(draws))
    more = {"noise": normals(1), "chunk": 4, "examples": (), "steps_per_epoch": 2} | more
    return PrivateGradient(engine, flat, Coins(draws, 0.5), mechanism, **more)


def loss_of(engine: Engine, draws: Sequence[Draw]) -> float:
    """Nats a token over everybody."""
    scores = engine.score(Batch(examples=tuple(example for draw in draws for example in draw.examples)))
    return sum(score.loss for score in scores) / sum(score.tokens for score in scores)


@pytest.mark.parametrize(
    ("kind", "family", "sides"),
    [
        *(("fast", "mistral", "AB"), ("general", "starcoder2", "B"), ("general", "gpt_neox", "AB")),
        *(("general", "t5", "AB"), ("general", "t5", "B"), ("opacus", "t5", "AB")),
    ],
)
def test_weights_move_and_loss_falls_on_every_family(kind: str, family: str, sides: str) -> None:
    engine, flat = engine_of(kind, family)
    before = flat.vector.detach().clone()
    draws = units(8, of=(1, 2), seq2seq=family == "t5")
    mask = None if sides == "AB" else flat.mask(sides)
    source = coins(engine, flat, draws, sides=sides, trainable=mask)
    optimizer = torch.optim.AdamW([flat.vector], lr=5e-2, weight_decay=0.0)
    at_first = loss_of(engine, draws)
    for step in range(12):
        source(step)
        optimizer.step()
    moved = flat.vector.detach() - before
    assert float(moved[flat.mask("B")].abs().max()) > 0
    assert (float(moved[flat.mask("A")].abs().max()) > 0) == (sides == "AB")
    assert loss_of(engine, draws) < at_first - 0.05


@pytest.mark.parametrize(
    ("kind", "sides"), [("fast", "AB"), ("fast", "B"), ("general", "AB"), ("general", "B"), ("opacus", "AB")]
)
def test_the_trainer_learns_with_every_engine_from_the_start(kind: Any, sides: str) -> None:
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    trainer = LoRATrainer(base, rank=4, engine=kind, learning_rate=1e-2, max_length=64)
    assert trainer.engine.name == kind
    text = [tuple(base.tokenizer(f"def total_{i}(values): return sum(values)")["input_ids"]) for i in range(8)]
    examples = [TokenizedExample(index=i, tokens=ids, start=2) for i, ids in enumerate(text)]
    mask = trainer.flat.mask(sides) if sides == "B" else None
    before = trainer.flat.vector.detach().clone()
    events: list[Event] = []

    def maker(engine: Engine, flat: FlatParameters, **made: Any) -> PrivateGradient:
        draws = [Draw(unit=e.index, examples=(e,)) for e in made["examples"]]
        return coins(engine, flat, draws, trainable=made["trainable"], sides=sides)

    trainer.train(
        examples, max_steps=10, epochs=5, trainable=mask, gradient=maker, keeps="last", observers=[events.append]
    )
    moved = trainer.flat.vector.detach() - before
    assert float(moved[trainer.flat.mask("B")].abs().max()) > 0
    assert bool(moved[trainer.flat.mask("A")].any()) == (sides == "AB")
    seen = [event.loss for event in events if isinstance(event, StepDone) and event.loss is not None]
    assert np.mean(seen[-3:]) < 0.9 * np.mean(seen[:3])
