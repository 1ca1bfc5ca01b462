"""The engines' gradients against the plain Hugging Face loss, one unpadded example at a time, by autograd."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny import tiny_batch, tiny_model, tiny_spec, with_adapter
from torch.nn import functional

from neuralforge.data.batch import Batch
from neuralforge.training.engine import Engine, EngineOptions
from neuralforge.training.fast.build import FAMILIES, refusal
from neuralforge.training.fast.engine import FastEngine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.engine import GeneralEngine

FAST = ("llama", "mistral", "qwen2")
GENERAL = ("llama", "mistral", "qwen2", "starcoder2", "gemma2", "gpt_neox", "t5")


def reference_gradients(model: PeftModel, batch: Batch, *, seq2seq: bool) -> dict[str, torch.Tensor]:
    """Mean loss over completion tokens, each example alone, nothing packed, skipped or chunked."""
    for parameter in model.parameters():
        parameter.grad = None
    for example in batch.examples:
        ids = torch.tensor([example.tokens])
        if seq2seq:
            logits = model(input_ids=torch.tensor([example.context]), labels=ids).logits[0]
            loss = functional.cross_entropy(logits, ids[0], reduction="sum")
        else:
            logits = model(input_ids=ids).logits[0]
            loss = functional.cross_entropy(logits[example.start - 1 : -1], ids[0, example.start :], reduction="sum")
        (loss / batch.targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def engine_gradients(engine: Engine, flat: FlatParameters, batch: Batch, *, seed: int = 0) -> dict[str, torch.Tensor]:
    flat.gradient.zero_()
    engine.accumulate(batch, scale=1 / batch.targets, seed=seed)
    return {name: place.of(flat.gradient).clone() for name, place in flat.places.items()}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    assert max(float(g.abs().max()) for g in theirs.values()) > 1e-2, "a gradient of zero proves nothing"
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


@pytest.mark.parametrize("family", GENERAL)
@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_general_engine_has_the_gradients_of_the_plain_loss(family: str, attention: str, checkpointing: bool) -> None:
    seq2seq = family == "t5"
    batch = tiny_batch(seq2seq=seq2seq)
    model = with_adapter(tiny_model(family), tiny_spec(family))
    expected = reference_gradients(model, batch, seq2seq=seq2seq)
    flat = FlatParameters(model)
    options = EngineOptions(attention=attention, gradient_checkpointing=checkpointing)  # type: ignore[arg-type]
    engine = GeneralEngine(model, flat, options, is_encoder_decoder=seq2seq, pad_token_id=0)
    assert largest_difference(engine_gradients(engine, flat, batch), expected) <= 1e-5


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj",), ("o_proj", "up_proj"), ("down_proj",), None])
@pytest.mark.parametrize("layers", [None, (1, 2), (2,)])
def test_fast_engine_has_the_gradients_of_the_plain_loss(
    family: str, targets: tuple[str, ...] | None, layers: tuple[int, ...] | None
) -> None:
    batch = tiny_batch(count=7)
    changes = {"layers": layers} | ({"target_modules": targets} if targets else {})
    model = with_adapter(tiny_model(family), tiny_spec(family, **changes))
    expected = reference_gradients(model, batch, seq2seq=False)
    flat = FlatParameters(model)
    assert refusal(model, 128) is None
    engine = FastEngine(model, flat, EngineOptions())
    assert largest_difference(engine_gradients(engine, flat, batch), expected) <= 1e-5


def test_recomputed_and_cached_passes_have_the_same_gradients() -> None:
    batch = tiny_batch(count=6)
    model = with_adapter(tiny_model("llama"), tiny_spec("llama", layers=(1, 2), dropout=0.2))
    flat = FlatParameters(model)
    plain = engine_gradients(FastEngine(model, flat, EngineOptions()), flat, batch, seed=5)
    again = engine_gradients(FastEngine(model, flat, EngineOptions(gradient_checkpointing=True)), flat, batch, seed=5)
    cached = FastEngine(model, flat, EngineOptions())
    cached.cache_prefix(batch.examples)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    for _ in range(2):
        assert largest_difference(engine_gradients(cached, flat, batch, seed=5), plain) <= 1e-5


def test_a_cache_too_small_for_the_data_changes_nothing() -> None:
    batch = tiny_batch(count=12)
    model = with_adapter(tiny_model("llama"), tiny_spec("llama", layers=(2,)))
    flat = FlatParameters(model)
    plain = engine_gradients(FastEngine(model, flat, EngineOptions()), flat, batch)
    engine = FastEngine(model, flat, EngineOptions(cache_bytes=20_000))
    engine.cache_prefix(batch.examples)
    assert largest_difference(engine_gradients(engine, flat, batch), plain) <= 1e-5


def test_dropout_changes_with_its_seed_and_only_with_it() -> None:
    batch = tiny_batch()
    model = with_adapter(tiny_model("llama"), tiny_spec("llama", dropout=0.3))
    flat = FlatParameters(model)
    engine = FastEngine(model, flat, EngineOptions())
    first, same, other = (engine_gradients(engine, flat, batch, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_dropout_leaves_the_expected_gradient_as_it_is() -> None:
    batch = tiny_batch(count=3)
    model = with_adapter(
        tiny_model("llama"), tiny_spec("llama", dropout=0.1, layers=(2,), target_modules=("down_proj",))
    )
    flat = FlatParameters(model)
    engine = FastEngine(model, flat, EngineOptions())
    draws = [engine_gradients(engine, flat, batch, seed=s) for s in range(200)]
    mean = {name: torch.stack([d[name] for d in draws]).mean(0) for name in draws[0]}
    expected = reference_gradients(model.eval(), batch, seq2seq=False)
    assert largest_difference(mean, expected) < 0.1 * max(float(g.abs().max()) for g in expected.values())


def test_truncated_context_gradients_point_the_same_way() -> None:
    batch = tiny_batch(count=6)
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    flat = FlatParameters(model)
    exact = engine_gradients(FastEngine(model, flat, EngineOptions()), flat, batch)
    rough = engine_gradients(FastEngine(model, flat, EngineOptions(context_gradients=False)), flat, batch)
    a, b = (torch.cat([g[name].flatten() for name in exact]) for g in (exact, rough))
    assert 0.3 < float(functional.cosine_similarity(a, b, dim=0)) < 0.9999


def test_engines_agree_on_losses_and_hits() -> None:
    batch = tiny_batch(count=9)
    model = with_adapter(tiny_model("qwen2"), tiny_spec("qwen2"))
    flat = FlatParameters(model)
    general = GeneralEngine(model, flat, EngineOptions(), is_encoder_decoder=False, pad_token_id=0).score(batch)
    fast = FastEngine(model, flat, EngineOptions()).score(batch)
    by_index = {score.index: score for score in fast}
    for score in general:
        assert by_index[score.index].loss == pytest.approx(score.loss, abs=1e-3)
        assert (by_index[score.index].hits, by_index[score.index].tokens) == (score.hits, score.tokens)


@pytest.mark.parametrize("family", ["starcoder2", "gemma2", "gpt_neox"])
def test_fast_engine_says_why_it_refuses_a_family(family: str) -> None:
    model = with_adapter(tiny_model(family), tiny_spec(family))
    assert all(name in (refusal(model, 128) or "") for name in FAMILIES)


def test_fast_engine_refuses_a_window_shorter_than_the_text() -> None:
    base = tiny_model("mistral")
    base.config.sliding_window = 64
    assert refusal(with_adapter(base, tiny_spec("mistral")), 128) is not None
