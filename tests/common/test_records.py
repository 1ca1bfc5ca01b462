"""Messages: what is put in comes out, and what is something else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import AdapterError, FederationError
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import STYPE, plan_of, plan_to_records, raw_reply, reply_to_records, state_of
from neuralforge_common.wire import decode

LAYOUT = AdapterLayout(modules=(ModuleShape("q", 5, 3),), rank=4)
REPORT = TrainReport(
    round=1, nonce="n", base_fingerprint="f", rank=4, alpha=8.0, part="both", examples=1, steps=1, tokens=1
)


@pytest.fixture
def plan(make_spec: Callable[..., AdapterSpec]) -> RoundPlan:
    return RoundPlan(
        federation="team", round=1, rounds=1, nonce="n", spec=make_spec(), layout_digest=LAYOUT.digest, steps=1,
        batch_size=1, learning_rate=1e-3, max_length=8,
    )  # fmt: skip


def test_a_plan_and_its_state_arrive(plan: RoundPlan) -> None:
    state = LAYOUT.draw(1)
    found = plan_to_records(plan, state)
    assert plan_of(found) == plan
    assert state_of(found, LAYOUT).tobytes() == state.tobytes()


def test_a_state_of_another_size_is_refused(plan: RoundPlan) -> None:
    with pytest.raises(AdapterError):
        state_of(plan_to_records(plan, LAYOUT.draw(1)), LAYOUT.with_rank(5))


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_a_report_and_its_delta_arrive(wire: Any) -> None:
    delta = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
    raw = raw_reply(reply_to_records(REPORT, delta, wire))
    assert TrainReport.from_json(raw.report) == REPORT
    assert np.abs(decode(raw.delta, count=LAYOUT.size, wire=wire) - delta).max() < 5e-3


def test_a_reply_survives_flowers_own_serialisation() -> None:
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    reply = reply_to_records(REPORT, LAYOUT.draw(1), "fp32")
    assert raw_reply(recorddict_from_proto(recorddict_to_proto(reply))) == raw_reply(reply)


def test_nothing_but_one_text_and_one_flat_array_of_bytes_is_a_reply() -> None:
    data = b"abc"
    report = ConfigRecord({"json": "{}"})
    good = ArrayRecord({"flat": Array("uint8", (3,), STYPE, data)})
    assert raw_reply(RecordDict({"report": report, "delta": good})).delta == data
    for reply in (
        RecordDict({}),
        RecordDict({"report": report}),
        RecordDict({"report": report, "delta": good, "more": MetricRecord({})}),
        RecordDict({"report": ConfigRecord({"json": b"{}"}), "delta": good}),
        RecordDict({"report": ConfigRecord({}), "delta": good}),
        RecordDict({"report": good, "delta": report}),
        RecordDict({"report": report, "delta": ArrayRecord({"flat": Array("int8", (3,), STYPE, data)})}),
        RecordDict({"report": report, "delta": ArrayRecord({"flat": Array("uint8", (4,), STYPE, data)})}),
        RecordDict({"report": report, "delta": ArrayRecord({"flat": Array("uint8", (3, 1), STYPE, data)})}),
        RecordDict({"report": report, "delta": ArrayRecord({"flat": Array("uint8", (3,), "numpy.ndarray", data)})}),
        RecordDict({"report": report, "delta": ArrayRecord({"x" * 1000: Array("uint8", (3,), STYPE, data)})}),
    ):
        with pytest.raises(FederationError):
            raw_reply(reply)


def test_a_message_without_a_plan_is_refused() -> None:
    with pytest.raises(FederationError, match="no plan"):
        plan_of(RecordDict({}))
    with pytest.raises(FederationError, match="no state"):
        state_of(RecordDict({}), LAYOUT)
