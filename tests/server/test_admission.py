"""The gate: an honest reply passes whole, every other one is refused under a reason that stays the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rounds import LAYOUT

from neuralforge_common.adapter import FloatArray
from neuralforge_common.plan import TrainReport
from neuralforge_common.records import STYPE, reply_to_records
from neuralforge_common.wire import encode
from neuralforge_server.admission import ENOUGH_HISTORY, Expectation, Refused, admit, norm_bound
from neuralforge_server.aggregation.method import Update

EXPECTED = Expectation(
    round=3,
    nonce="n-3-1",
    base_fingerprint="sha256:" + "f" * 64,
    layout=LAYOUT,
    scaling=2.0,
    part="both",
    wire="fp32",
    weighting="examples",
    max_weight=100,
    max_norm=5.0,
    clients=frozenset({"ada", "bob"}),
    max_report_bytes=4096,
)
REPORT = TrainReport(
    round=3, nonce="n-3-1", base_fingerprint="sha256:" + "f" * 64, rank=4, alpha=8.0, part="both",
    examples=12, steps=5, tokens=900, loss=1.5, norm=1.0, seconds=2.0,
)  # fmt: skip


def a_delta(rank: int = 4, norm: float = 1.0) -> FloatArray:
    delta = np.random.default_rng(0).standard_normal(LAYOUT.with_rank(rank).size, dtype=np.float32)
    return delta * np.float32(norm / np.linalg.norm(delta))


def records(text: str, data: bytes, **array: Any) -> RecordDict:
    facts: dict[str, Any] = {"dtype": "uint8", "shape": (len(data),), "stype": STYPE, "data": data} | array
    return RecordDict({"report": ConfigRecord({"json": text}), "delta": ArrayRecord({"flat": Array(**facts)})})


def text_of(**changes: Any) -> str:
    return json.dumps(json.loads(REPORT.to_json()) | changes)


def refusal(reply: RecordDict, expected: Expectation = EXPECTED, client: str = "ada") -> str:
    seen: set[str] = set()
    with pytest.raises(Refused) as caught:
        admit(reply, expected, client=client, seen=seen)
    assert not seen, "what is refused leaves no trace"
    assert 0 < len(caught.value.message) < 500
    assert caught.value.message.isprintable()
    return caught.value.reason


def passed(reply: RecordDict, expected: Expectation = EXPECTED) -> Update:
    update, _ = admit(reply, expected, client="ada", seen=set())
    return update


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_an_honest_reply_passes(wire: str, rank: int) -> None:
    report, delta = replace(REPORT, rank=rank, alpha=2.0 * rank), a_delta(rank)
    seen: set[str] = set()
    reply = reply_to_records(report, delta, wire)  # type: ignore[arg-type]
    update, said = admit(reply, replace(EXPECTED, wire=wire), client="ada", seen=seen)  # type: ignore[arg-type]
    assert said == report
    assert (update.client, update.rank, update.part, update.weight) == ("ada", rank, "both", 12)
    assert (
        np.abs(update.delta - delta).max() <= {"fp32": 0, "fp16": 1e-4, "int8": 0.5 * np.abs(delta).max() / 127}[wire]
    )
    assert update.norm == pytest.approx(np.linalg.norm(update.delta.astype(np.float64)), rel=1e-5)
    assert seen == {"ada"}


@pytest.mark.parametrize("part", ["A", "B"])
def test_a_part_alone_passes_in_its_round(part: Any) -> None:
    delta = a_delta()[LAYOUT.part_slice(part)]
    assert np.array_equal(
        passed(reply_to_records(replace(REPORT, part=part), delta, "fp32"), replace(EXPECTED, part=part)).delta, delta
    )
    assert refusal(reply_to_records(replace(REPORT, part=part), delta, "fp32")) == "part"


def test_a_weight_is_what_the_client_says_up_to_a_bound_or_nothing_of_it() -> None:
    def weight(examples: int, **changes: Any) -> int:
        reply = reply_to_records(replace(REPORT, examples=examples), a_delta(), "fp32")
        return passed(reply, replace(EXPECTED, **changes)).weight

    assert weight(12) == 12
    assert weight(100) == 100
    assert weight(10**12) == 100
    assert weight(12, weighting="uniform") == 1


def test_a_client_counts_once() -> None:
    seen: set[str] = set()
    reply = reply_to_records(REPORT, a_delta(), "fp32")
    admit(reply, EXPECTED, client="ada", seen=seen)
    with pytest.raises(Refused) as caught:
        admit(reply, EXPECTED, client="ada", seen=seen)
    assert caught.value.reason == "duplicate"
    admit(reply, EXPECTED, client="bob", seen=seen)
    assert seen == {"ada", "bob"}


def test_a_refused_reply_does_not_use_up_the_clients_turn() -> None:
    seen: set[str] = set()
    with pytest.raises(Refused):
        admit(reply_to_records(REPORT, a_delta(norm=50), "fp32"), EXPECTED, client="ada", seen=seen)
    admit(reply_to_records(REPORT, a_delta(), "fp32"), EXPECTED, client="ada", seen=seen)


def test_whoever_was_not_asked_is_refused() -> None:
    assert refusal(reply_to_records(REPORT, a_delta(), "fp32"), client="eve") == "unasked"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2}, "round"),
        ({"round": 4}, "round"),
        ({"nonce": "n-3-0"}, "nonce"),
        ({"nonce": ""}, "nonce"),
        ({"base_fingerprint": "sha256:" + "e" * 64}, "base"),
        ({"base_fingerprint": ""}, "base"),
        ({"rank": 0}, "rank"),
        ({"rank": 5}, "rank"),
        ({"rank": -1}, "rank"),
        ({"rank": 10**9}, "rank"),
        ({"alpha": 16.0}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": -8.0}, "alpha"),
        ({"part": "A"}, "part"),
        ({"part": "C"}, "part"),
        ({"examples": 0}, "weight"),
        ({"examples": -5}, "weight"),
        ({"steps": 0}, "figures"),
        ({"steps": 10**9}, "figures"),
        ({"tokens": -1}, "figures"),
        ({"norm": -1.0}, "figures"),
        ({"seconds": -1.0}, "figures"),
        ({"loss": -0.1}, "figures"),
        ({"loss": 1e9}, "figures"),
        ({"protocol": 1}, "report"),
        ({"protocol": True}, "report"),
        ({"examples": 1.5}, "report"),
        ({"examples": "12"}, "report"),
        ({"examples": True}, "report"),
        ({"examples": 10**30}, "report"),
        ({"examples": None}, "report"),
        ({"examples": [1]}, "report"),
        ({"rank": 4.0}, "report"),
        ({"loss": "1.5"}, "report"),
        ({"part": 1}, "report"),
        ({"more": 1}, "report"),
        ({"nonce": "x" * 2000}, "report"),
    ],
)
def test_a_report_that_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert refusal(records(text_of(**changes), encode(a_delta(), "fp32"))) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "report"),
        ("[]", "report"),
        ("null", "report"),
        ("{", "report"),
        (text_of(loss=math.nan), "report"),
        (text_of(loss=math.inf), "report"),
        (REPORT.to_json().replace("1.5", "1e999"), "report"),
        (REPORT.to_json()[:-1] + ', "round": 3}', "report"),
        (json.dumps({"protocol": 2, "round": 3}), "report"),
        ("[" * 4000, "report"),
        (REPORT.to_json() + " " * 4096, "size"),
        (REPORT.to_json() + "é" * 2000, "report"),
        ('{"nonce": "\ud800"}', "report"),
    ],
)
def test_text_that_is_no_report_is_refused(text: str, reason: str) -> None:
    assert refusal(records(text, encode(a_delta(), "fp32"))) == reason


def test_records_that_are_not_one_report_and_one_array_are_refused() -> None:
    data = encode(a_delta(), "fp32")
    array = Array("uint8", (len(data),), STYPE, data)
    report = ConfigRecord({"json": REPORT.to_json()})
    for reply in (
        RecordDict({}),
        RecordDict({"report": report}),
        RecordDict({"delta": ArrayRecord({"flat": array})}),
        RecordDict({"report": report, "delta": ArrayRecord({})}),
        RecordDict({"report": report, "delta": ArrayRecord({"flat": array, "more": array})}),
        RecordDict({"report": report, "delta": ArrayRecord({"other": array})}),
        RecordDict({"report": report, "delta": ArrayRecord({"flat": array}), "more": MetricRecord({"x": 1.0})}),
        RecordDict({"report": MetricRecord({"json": 1}), "delta": ArrayRecord({"flat": array})}),
        RecordDict({"report": ConfigRecord({"json": 5}), "delta": ArrayRecord({"flat": array})}),
        RecordDict(
            {"report": ConfigRecord({"json": "{}", "more": "x" * 9_000_000}), "delta": ArrayRecord({"flat": array})}
        ),
        RecordDict({"report": report, "delta": ConfigRecord({"flat": data})}),
        records(REPORT.to_json(), data, dtype="float32"),
        records(REPORT.to_json(), data, stype="numpy.ndarray"),
        records(REPORT.to_json(), data, shape=(1, len(data))),
        records(REPORT.to_json(), data, shape=(len(data) - 1,)),
        records(REPORT.to_json(), data, shape=()),
    ):
        assert refusal(reply) == "records"


def test_a_payload_of_another_length_is_refused_before_it_is_decoded() -> None:
    data = encode(a_delta(), "fp32")
    for other in (b"", data[:-4], data + bytes(4), data * 2, encode(a_delta(3), "fp32"), encode(a_delta(), "int8")):
        assert refusal(records(REPORT.to_json(), other)) == "shape"


@pytest.mark.parametrize("position", range(16))
def test_a_payload_whose_header_lies_is_refused(position: int) -> None:
    data = bytearray(encode(a_delta(), "fp32"))
    data[position] ^= 0x41
    assert refusal(records(REPORT.to_json(), bytes(data))) == "wire"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wire", ["fp32", "fp16"])
@pytest.mark.parametrize("where", [0, 100, -1])
def test_one_value_that_is_not_finite_is_enough(bad: float, wire: Any, where: int) -> None:
    data = bytearray(encode(a_delta(), wire))
    width = {"fp32": 4, "fp16": 2}[wire]
    kind = np.float32 if wire == "fp32" else np.float16
    begin = 16 + width * (where % LAYOUT.size)
    data[begin : begin + width] = kind(bad).tobytes()
    assert refusal(records(REPORT.to_json(), bytes(data)), replace(EXPECTED, wire=wire)) == "not-finite"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_an_int8_scale_that_no_block_has_is_refused(bad: float) -> None:
    data = bytearray(encode(a_delta(), "int8"))
    data[16:20] = np.float32(bad).tobytes()
    assert refusal(records(REPORT.to_json(), bytes(data)), replace(EXPECTED, wire="int8")) == "wire"


def test_an_int8_scale_that_overflows_is_not_finite_and_a_large_one_too_long() -> None:
    data = bytearray(encode(a_delta(), "int8"))
    for scale, reason in ((3e38, "not-finite"), (1e20, "norm")):
        data[16:20] = np.float32(scale).tobytes()
        assert refusal(records(REPORT.to_json(), bytes(data)), replace(EXPECTED, wire="int8")) == reason


@pytest.mark.parametrize("norm", [5.01, 100.0, 1e15, 1e25, 1e38])
def test_a_delta_longer_than_is_believed_is_refused(norm: float) -> None:
    assert passed(reply_to_records(REPORT, a_delta(norm=4.99), "fp32"))
    assert refusal(reply_to_records(REPORT, a_delta(norm=norm), "fp32")) == "norm"


@settings(max_examples=300)
@given(text=st.text(max_size=60), data=st.binary(max_size=60))
def test_nothing_but_a_refusal_comes_out_of_arbitrary_replies(text: str, data: bytes) -> None:
    assert refusal(records(text, data)) in ("report", "size")


@settings(max_examples=200)
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(json.loads(REPORT.to_json()))),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=10)
        | st.lists(st.integers(), max_size=2),
        max_size=4,
    )
)
def test_a_report_with_any_values_either_passes_within_its_bounds_or_is_refused(changes: dict[str, Any]) -> None:
    reply = records(text_of(**changes), encode(a_delta(), "fp32"))
    try:
        update, report = admit(reply, EXPECTED, client="ada", seen=set())
    except Refused:
        return
    assert 1 <= update.weight <= 100
    assert report.rank == 4
    assert report.loss is None or 0 <= report.loss < 1e4


def test_the_bound_follows_from_steps_until_there_is_history() -> None:
    known = {"steps": 20, "learning_rate": 1e-3, "size": 10_000}
    assert norm_bound(**known, history=()) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert norm_bound(**known, history=[0.1] * (ENOUGH_HISTORY - 1)) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert norm_bound(**known, history=[0.1, 0.1, 0.1, 0.1, 0.1, 900.0]) == pytest.approx(0.3)  # type: ignore[arg-type]
    assert norm_bound(**known, history=[0.0] * 50) == pytest.approx(0.02)  # type: ignore[arg-type]
    assert norm_bound(**known, history=[1e9] * 50) == pytest.approx(2.0)  # type: ignore[arg-type]


def test_the_ceiling_is_never_below_what_adam_can_do() -> None:
    random = np.random.default_rng(0)
    weights, first, second = np.zeros(500), np.zeros(500), np.zeros(500)
    for step in range(1, 31):
        gradient = random.standard_normal(500)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights -= 1e-2 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    assert np.linalg.norm(weights) < norm_bound(steps=30, learning_rate=1e-2, size=500, history=())
