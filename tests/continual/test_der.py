"""DER++: the loss on stored logits against plain autograd, and what it is with weights of nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import tiny_batch, tiny_model, tiny_spec, with_adapter
from torch.nn import functional

from neuralforge.data.batch import Batch
from neuralforge.data.soft import SoftTargets, TopLogits
from neuralforge.training import loss as loss_module
from neuralforge.training.engine import Engine, EngineOptions
from neuralforge.training.fast.engine import FastEngine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.engine import GeneralEngine
from neuralforge_common.errors import TrainingError

ENGINES = [("fast", "llama"), ("general", "llama"), ("general", "gpt_neox"), ("general", "t5"), ("general", "gemma2")]
K = 6


def engine_on(kind: str, family: str) -> tuple[PeftModel, FlatParameters, Engine]:
    model = with_adapter(tiny_model(family), tiny_spec(family))
    flat = FlatParameters(model)
    if kind == "fast":
        return model, flat, FastEngine(model, flat, EngineOptions())
    return model, flat, GeneralEngine(model, flat, EngineOptions(), is_encoder_decoder=family == "t5", pad_token_id=0)


def logits_of(model: PeftModel, example: object, *, seq2seq: bool) -> torch.Tensor:
    """The plain model's logits at the example's targets."""
    ids = torch.tensor([example.tokens])  # type: ignore[attr-defined]
    if seq2seq:
        return model(input_ids=torch.tensor([example.context]), labels=ids).logits[0]  # type: ignore[attr-defined]
    return model(input_ids=ids).logits[0][example.start - 1 : -1]  # type: ignore[attr-defined]


def drifted(logits: TopLogits, seed: int) -> TopLogits:
    """As if the adapter had moved since they were stored."""
    noise = np.random.default_rng(seed).normal(size=logits.values.shape)
    return TopLogits(ids=logits.ids, values=(logits.values + noise).astype(np.float16))


def gradient(engine: Engine, flat: FlatParameters, batch: Batch) -> tuple[float, torch.Tensor]:
    flat.gradient.zero_()
    loss = engine.accumulate(batch, scale=1 / batch.targets, seed=0)
    return loss, flat.gradient.clone()


def soft_batch(engine: Engine, batch: Batch, *, alpha: float, beta: float) -> Batch:
    """The odd examples replayed: one with fewer logits than the rest, one with none."""
    stored = engine.top_logits(batch, k=K)
    soft = {
        i: SoftTargets(logits=drifted(stored[i], i), soft=alpha, hard=beta)
        for i in (e.index for e in batch.examples)
        if i % 2
    }
    narrow = stored[3]
    soft[3] = replace(soft[3], logits=TopLogits(ids=narrow.ids[:, :2], values=narrow.values[:, :2] + np.float16(0.5)))
    soft[5] = replace(soft[5], logits=None)
    return Batch(examples=batch.examples, soft=soft)


@pytest.mark.parametrize(("kind", "family"), ENGINES)
@pytest.mark.parametrize("chunk_bytes", [1, 32 * 2**20])
def test_loss_and_gradient_are_plain_autograds(
    monkeypatch: pytest.MonkeyPatch, kind: str, family: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    seq2seq = family == "t5"
    model, flat, engine = engine_on(kind, family)
    batch = soft_batch(engine, tiny_batch(count=8, seq2seq=seq2seq), alpha=0.7, beta=0.4)
    flat.gradient.zero_()
    expected = torch.zeros(())
    for example in batch.examples:
        logits = logits_of(model, example, seq2seq=seq2seq)
        targets = torch.tensor(example.tokens[example.start :])
        losses = functional.cross_entropy(logits, targets, reduction="none")
        soft = batch.soft.get(example.index)
        total = losses.sum() * (soft.hard if soft else 1.0)
        if soft is not None and soft.logits is not None:
            at = logits.gather(1, torch.from_numpy(soft.logits.ids).long())
            drift = at - torch.from_numpy(soft.logits.values).float()
            total = total + soft.soft * drift.square().mean(1).sum()
        (total / batch.targets).backward()
        expected = expected + total.detach()
    theirs = flat.gradient.clone()
    loss, ours = gradient(engine, flat, batch)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert float(theirs.abs().max()) > 1e-2
    assert float((ours - theirs).abs().max()) <= 1e-5
    plain = gradient(engine, flat, Batch(examples=batch.examples))[1]
    assert float((plain - theirs).abs().max()) > 1e-2, "without the stored logits it is another gradient"


@pytest.mark.parametrize(("kind", "family"), ENGINES)
def test_weights_of_nothing_change_no_bit(kind: str, family: str) -> None:
    _, flat, engine = engine_on(kind, family)
    batch = soft_batch(engine, tiny_batch(count=8, seq2seq=family == "t5"), alpha=0.0, beta=1.0)
    loss, soft = gradient(engine, flat, batch)
    plain_loss, plain = gradient(engine, flat, Batch(examples=batch.examples))
    assert loss == plain_loss
    assert torch.equal(soft, plain)


@pytest.mark.parametrize(("kind", "family"), ENGINES)
def test_stored_logits_are_the_largest_of_the_plain_model(kind: str, family: str) -> None:
    seq2seq = family == "t5"
    model, _, engine = engine_on(kind, family)
    batch = tiny_batch(count=6, seq2seq=seq2seq)
    stored = engine.top_logits(batch, k=K)
    for example in batch.examples:
        with torch.no_grad():
            top = logits_of(model, example, seq2seq=seq2seq).topk(K, dim=1)
        mine = stored[example.index]
        assert mine.ids.shape == (example.targets, K)
        assert np.allclose(mine.values, top.values.numpy(), rtol=1e-3, atol=1e-3)
        assert (mine.ids == top.indices.numpy()).mean() > 0.95  # a tie may fall either way


@pytest.mark.parametrize(("kind", "family"), ENGINES)
def test_an_adapter_that_has_not_moved_pulls_nowhere(kind: str, family: str) -> None:
    _, flat, engine = engine_on(kind, family)
    batch = tiny_batch(count=4, seq2seq=family == "t5")
    stored = engine.top_logits(batch, k=K)
    still = {index: SoftTargets(logits=logits, soft=1.0, hard=0.0) for index, logits in stored.items()}
    loss, pull = gradient(engine, flat, Batch(examples=batch.examples, soft=still))
    assert 0 <= loss < 1e-4  # the rounding to float16
    assert float(pull.abs().max()) < 1e-2 * float(gradient(engine, flat, batch)[1].abs().max())


def test_logits_of_another_text_are_refused() -> None:
    _, _, engine = engine_on("fast", "llama")
    batch = tiny_batch(count=3)
    logits = engine.top_logits(batch, k=K)[1]
    cut = SoftTargets(logits=TopLogits(ids=logits.ids[:-1], values=logits.values[:-1]), soft=1.0, hard=1.0)
    with pytest.raises(TrainingError, match="stored logits of"):
        engine.accumulate(Batch(examples=batch.examples, soft={1: cut}), scale=1.0, seed=0)
