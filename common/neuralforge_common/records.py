"""Plans, states and reports ↔ Flower's `RecordDict`. The only place that knows under which names they travel.

To a client:    plan (ConfigRecord: json), state (ArrayRecord: one flat array)
From a client:  report (ConfigRecord: json), delta (ArrayRecord: one flat array)

Under masks a message has masks (ConfigRecord: json) as well, or instead of the state; what is no update comes back as
answer (ConfigRecord: json).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.wire import WireFormat, decode, encode

STYPE = "neuralforge.wire.1"
"""Flower's name of how an array is serialised: ours is never taken for numpy's."""

_PLAN, _STATE, _REPORT, _DELTA, _JSON, _FLAT = "plan", "state", "report", "delta", "json", "flat"
_MASKS, _ANSWER = "masks", "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReply:
    """A reply as it came: text that claims to be a report, bytes that claim to be a delta."""

    report: str
    delta: bytes


def plan_to_records(plan: RoundPlan, state: FloatArray) -> RecordDict:
    """A plan and the flat state (total rank's size,) that it starts from."""
    return RecordDict({_PLAN: ConfigRecord({_JSON: plan.to_json()}), _STATE: _one_array(encode(state, "fp32"))})


def plan_of(records: RecordDict) -> RoundPlan:
    """The plan in a message; raises FederationError and AdapterError."""
    return RoundPlan.from_json(_text(records, _PLAN))


def state_of(records: RecordDict, layout: AdapterLayout) -> FloatArray:
    """The flat state in a message, `layout` being at the plan's total rank; raises FederationError and AdapterError."""
    return decode(_bytes(records, _STATE), count=layout.size, wire="fp32")


def reply_to_records(report: TrainReport, delta: FloatArray, wire: WireFormat) -> RecordDict:
    """A report and its delta."""
    return RecordDict({_REPORT: ConfigRecord({_JSON: report.to_json()}), _DELTA: _one_array(encode(delta, wire))})


def raw_reply(records: RecordDict) -> RawReply:
    """A reply with nothing decoded; raises FederationError where it holds anything but one report and one array."""
    if set(records) != {_REPORT, _DELTA}:
        raise FederationError(f"wanted the records {_REPORT} and {_DELTA}, got {len(records)} records")
    return RawReply(report=_text(records, _REPORT), delta=_bytes(records, _DELTA))


def masks_to_records(plan: RoundPlan, text: str, state: ArrayRecord | None = None) -> RecordDict:
    """A question of a round under masks; `state` is that of `plan_to_records`."""
    content = RecordDict({_PLAN: ConfigRecord({_JSON: plan.to_json()}), _MASKS: ConfigRecord({_JSON: text})})
    if state is not None:
        content[_STATE] = state
    return content


def state_record(state: FloatArray) -> ArrayRecord:
    """A flat state as it travels, for messages that have it in common."""
    return _one_array(encode(state, "fp32"))


def masks_of(records: RecordDict) -> str:
    """What a question of a round under masks says; raises FederationError where it says nothing."""
    return _text(records, _MASKS)


def answer_to_records(text: str) -> RecordDict:
    """An answer in JSON."""
    return RecordDict({_ANSWER: ConfigRecord({_JSON: text})})


def answer_text(records: RecordDict) -> str:
    """The JSON of an answer; raises FederationError where there is none."""
    return _text(records, _ANSWER)


def masked_to_records(report: TrainReport, masked: bytes) -> RecordDict:
    """A report and an update under masks."""
    return RecordDict({_REPORT: ConfigRecord({_JSON: report.to_json()}), _DELTA: _one_array(masked)})


def _one_array(data: bytes) -> ArrayRecord:
    return ArrayRecord({_FLAT: Array("uint8", (len(data),), STYPE, data)})


def _text(records: RecordDict, name: str) -> str:
    record = records.get(name)
    if not isinstance(record, ConfigRecord) or set(record) != {_JSON} or not isinstance(record[_JSON], str):
        raise FederationError(f"the message holds no {name}")
    return str(record[_JSON])


def _bytes(records: RecordDict, name: str) -> bytes:
    record = records.get(name)
    if not isinstance(record, ArrayRecord) or set(record) != {_FLAT}:
        raise FederationError(f"the message holds no {name}, or more than one array")
    array = record[_FLAT]
    if array.stype != STYPE or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise FederationError(f"the {name} is not in our wire format: {array.stype[:40]!r}, {array.dtype[:20]!r}")
    return array.data
