"""What an adversary sends is what its kind says, in every wire format; everybody else's replies stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge.data.example import Example
from neuralforge_common.adapter import AdapterSpec, FloatArray
from neuralforge_common.errors import AdapterError
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_to_records, raw_reply, reply_to_records
from neuralforge_common.wire import WireFormat, decode, encode
from neuralforge_simulations.adversary import (
    PAYLOAD,
    TRIGGER,
    Adversaries,
    HostileApp,
    Kind,
    poisoned,
    with_backdoor,
)
from neuralforge_simulations.clock import VirtualClock
from neuralforge_simulations.grid import LocalGrid, node_of

WIRES: tuple[WireFormat, ...] = ("fp32", "fp16", "int8")
HONEST: FloatArray = np.random.default_rng(0).standard_normal(1000).astype(np.float32)


def generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=1))


def sent(kind: Kind, wire: WireFormat, scale: float = 10.0) -> bytes:
    return poisoned(encode(HONEST, wire), kind, scale, wire, generator())


def arrives(kind: Kind, wire: WireFormat, scale: float = 10.0) -> FloatArray:
    return decode(sent(kind, wire, scale), count=HONEST.size, wire=wire)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("kind", "factor"), [("sign-flip", -10.0), ("scale", 10.0), ("backdoor", 10.0)])
def test_flipped_and_scaled_deltas_are_multiples_of_the_honest_one(kind: Kind, factor: float, wire: WireFormat) -> None:
    np.testing.assert_allclose(arrives(kind, wire), factor * HONEST, atol=0.5 if wire == "int8" else 0.03)


@pytest.mark.parametrize("wire", WIRES)
def test_noise_has_nothing_of_the_honest_delta_but_its_length_times_the_scale(wire: WireFormat) -> None:
    noise = arrives("noise", wire)
    assert np.linalg.norm(noise) == pytest.approx(10 * np.linalg.norm(HONEST), rel=0.01)
    assert abs(np.corrcoef(noise, HONEST)[0, 1]) < 0.15


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_a_nan_reaches_whoever_decodes_it(wire: WireFormat) -> None:
    assert len(sent("nan", wire)) == len(encode(HONEST, wire))
    found = arrives("nan", wire)
    assert np.isnan(found).any()
    assert not np.isnan(found).all()


def test_int8_carries_a_nan_as_a_scale_which_the_wire_itself_refuses() -> None:
    assert len(sent("nan", "int8")) == len(encode(HONEST, "int8"))
    with pytest.raises(AdapterError, match="scale"):
        arrives("nan", "int8")


@pytest.mark.parametrize("wire", WIRES)
def test_a_wrong_shape_is_whole_in_itself_and_one_value_short(wire: WireFormat) -> None:
    data = sent("wrong-shape", wire)
    assert decode(data, count=HONEST.size - 1, wire=wire).shape == (HONEST.size - 1,)
    with pytest.raises(AdapterError):
        decode(data, count=HONEST.size, wire=wire)


def test_what_the_wire_cannot_hold_is_sent_as_the_most_it_can() -> None:
    assert np.abs(arrives("scale", "fp16", 1e9)).max() == 65_504


LAYOUT = AdapterLayout(modules=(ModuleShape("m", 4, 6),), rank=2)
SPEC = AdapterSpec(
    base="b", base_revision=None, base_fingerprint="sha256:" + 64 * "0", rank=2, alpha=4.0, target_modules=("m",)
)
PLAN = RoundPlan(
    federation="f",
    round=3,
    rounds=5,
    nonce="n",
    spec=SPEC,
    layout_digest=LAYOUT.digest,
    steps=1,
    batch_size=1,
    learning_rate=0.1,
    max_length=16,
)
DELTA: FloatArray = np.arange(LAYOUT.size, dtype=np.float32)


def honest_app() -> ClientApp:
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        report = TrainReport(
            round=3,
            nonce="n",
            base_fingerprint=SPEC.base_fingerprint,
            rank=2,
            alpha=4.0,
            part="both",
            examples=1,
            steps=1,
            tokens=1,
        )
        return Message(reply_to_records(report, DELTA, "fp32"), reply_to=message)

    app.train()(train)
    app.evaluate()(train)
    return app


def deltas(kind: str, message_type: str = "train") -> list[bytes]:
    hostile = HostileApp(honest_app(), Adversaries(kind=kind, clients=frozenset({1}), seed=5))  # type: ignore[arg-type]
    grid = LocalGrid(hostile, 3, clock=VirtualClock())
    content: RecordDict = plan_to_records(PLAN, np.zeros(LAYOUT.size, np.float32))
    replies = grid.send_and_receive([Message(content, node_of(n), message_type) for n in range(3)])
    return [raw_reply(reply.content).delta for reply in replies]


def test_only_the_adversary_poisons_and_only_what_it_trained() -> None:
    honest = encode(DELTA, "fp32")
    before, poison, after = deltas("sign-flip")
    assert (before, after) == (honest, honest)
    np.testing.assert_allclose(decode(poison, count=DELTA.size, wire="fp32"), -10 * DELTA)
    assert deltas("sign-flip", "evaluate") == [honest] * 3


def test_the_same_seed_sends_the_same_noise() -> None:
    assert deltas("noise") == deltas("noise")


def test_a_back_door_is_planted_in_half_of_the_examples_and_the_others_stay() -> None:
    examples = [Example(context=f"c{n}", completion=f"w{n}") for n in range(10)]
    planted = with_backdoor(examples, seed=0)
    changed = [(old, new) for old, new in zip(examples, planted, strict=True) if old != new]
    assert len(changed) == 5
    assert all(new.context == old.context + TRIGGER and new.completion == PAYLOAD for old, new in changed)
