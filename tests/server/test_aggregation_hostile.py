"""A corpus of hostile replies against every way of aggregating: none ends the round, none moves it beyond its bound.

Most are refused, and the round is then, to the last bit, the round without them. What admission cannot tell from an
honest update is bounded by what it may weigh and how long it may be; a robust rule bounds it by the honest spread.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from tiny_rounds import (
    LAYOUT,
    METHODS,
    OF_DELTAS,
    RULES,
    average_product,
    method_of,
    run,
    same_bits,
    served_product,
    start,
)

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import Part
from neuralforge_common.plan import TrainReport
from neuralforge_common.records import STYPE, reply_to_records
from neuralforge_common.wire import encode
from neuralforge_server.admission import Expectation, Refused, admit
from neuralforge_server.aggregation.method import Aggregate, GlobalState, Update

BASE = "sha256:" + "f" * 64
MAX_NORM, MAX_WEIGHT, EVIL = 3.0, 50, "zed"
HONEST = tuple(f"client-{index}" for index in range(7))
ROUND = 3  # an odd one: alternating trains B

WAYS = [(m, r) for m in METHODS for r in RULES if m in OF_DELTAS or r in ("none", "clip")]
# What never reaches a method needs each method and each rule once.
FEWER_WAYS = [(m, r) for m, r in WAYS if m == "mean" or r == "none"]

Attack = Callable[[TrainReport, FloatArray], RecordDict]


def expectation(part: Part) -> Expectation:
    return Expectation(
        round=ROUND, nonce="now", base_fingerprint=BASE, layout=LAYOUT, scaling=2.0, part=part, wire="fp32",
        weighting="examples", max_weight=MAX_WEIGHT, max_norm=MAX_NORM, clients=frozenset((*HONEST, EVIL)),
    )  # fmt: skip


def report(part: Part, examples: int = 20) -> TrainReport:
    return TrainReport(
        round=ROUND, nonce="now", base_fingerprint=BASE, rank=4, alpha=8.0, part=part, examples=examples,
        steps=9, tokens=99, loss=1.0,
    )  # fmt: skip


def honest_deltas(part: Part) -> dict[str, FloatArray]:
    """A common direction of norm 1, and something of their own."""
    random = np.random.default_rng(4)
    size = LAYOUT.part_size(part)
    common = random.standard_normal(size)
    common /= np.linalg.norm(common)
    own = {name: 0.3 * random.standard_normal(size) / math.sqrt(size) for name in HONEST}
    return {name: (common + own[name]).astype(np.float32) for name in HONEST}


def lying(**changes: Any) -> Attack:
    """A report that a client's own code would not write, with an honest delta."""

    def attack(said: TrainReport, delta: FloatArray) -> RecordDict:
        text = json.dumps(json.loads(said.to_json()) | changes)
        return raw(text, encode(delta, "fp32"))

    return attack


def sending(change: Callable[[FloatArray], FloatArray]) -> Attack:
    return lambda said, delta: reply_to_records(said, change(delta).astype(np.float32), "fp32")


def sending_bytes(change: Callable[[bytes], bytes], **array: Any) -> Attack:
    return lambda said, delta: raw(said.to_json(), change(encode(delta, "fp32")), **array)


def raw(text: str, data: bytes, **array: Any) -> RecordDict:
    facts: dict[str, Any] = {"dtype": "uint8", "shape": (len(data),), "stype": STYPE, "data": data} | array
    return RecordDict({"report": ConfigRecord({"json": text}), "delta": ArrayRecord({"flat": Array(**facts)})})


def without(key: str) -> Attack:
    def attack(said: TrainReport, delta: FloatArray) -> RecordDict:
        reply = reply_to_records(said, delta, "fp32")
        del reply[key]
        return reply

    return attack


def with_more(key: str, record: Any) -> Attack:
    def attack(said: TrainReport, delta: FloatArray) -> RecordDict:
        reply = reply_to_records(said, delta, "fp32")
        reply[key] = record
        return reply

    return attack


def as_float32(said: TrainReport, delta: FloatArray) -> RecordDict:
    """As stock Flower would send it."""
    reply = reply_to_records(said, delta, "fp32")
    reply["delta"] = ArrayRecord({"flat": Array(delta)})
    return reply


def poked(value: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        return data[:400] + np.float32(value).tobytes() + data[404:]

    return change


def stretched(direction: FloatArray) -> FloatArray:
    """As long as is believed."""
    return direction * np.float32(0.999 * MAX_NORM / np.linalg.norm(direction))


def noise(delta: FloatArray) -> FloatArray:
    return np.random.default_rng(13).standard_normal(delta.size).astype(np.float32)


def backdoor(delta: FloatArray) -> FloatArray:
    """Everything into a few coordinates, boosted so that an average of eight comes out as wanted."""
    planted = delta.copy()
    planted[::97] += 20.0
    return 8 * planted


REFUSED: dict[str, tuple[Attack, str]] = {
    "NaN": (sending_bytes(poked(math.nan)), "not-finite"),
    "Inf": (sending_bytes(poked(math.inf)), "not-finite"),
    "-Inf": (sending_bytes(poked(-math.inf)), "not-finite"),
    "wrong shape": (sending(lambda delta: delta[:-3]), "shape"),
    "two-dimensional": (sending_bytes(lambda data: data, shape=(2, 8)), "records"),
    "missing report": (without("report"), "records"),
    "missing delta": (without("delta"), "records"),
    "extra record": (with_more("metrics", MetricRecord({"loss": 1.0})), "records"),
    "extra array": (with_more("delta", ArrayRecord({"flat": Array(np.ones(2)), "x": Array(np.ones(2))})), "records"),
    "wrong dtype": (as_float32, "records"),
    "pickle": (sending_bytes(lambda data: b"\x80\x04" + data[2:]), "wire"),
    "empty": (sending_bytes(lambda data: b""), "shape"),
    "empty message": (lambda said, delta: RecordDict({}), "records"),
    "oversized": (sending_bytes(lambda data: data + bytes(2**20)), "shape"),
    "weight negative": (lying(examples=-5), "weight"),
    "weight zero": (lying(examples=0), "weight"),
    "weight NaN": (lying(examples=math.nan), "report"),
    "weight 1e300": (lying(examples=1e300), "report"),
    "weight without end": (lying(examples=10**400), "report"),
    "replayed round": (lying(round=ROUND - 1), "round"),
    "replayed nonce": (lying(nonce="before"), "nonce"),
    "wrong base": (lying(base_fingerprint="sha256:" + "0" * 64), "base"),
    "wrong rank": (lying(rank=8), "rank"),
    "rank without delta": (lying(rank=2, alpha=4.0), "shape"),
    "wrong alpha": (lying(alpha=800.0), "alpha"),
    "wrong part": (lying(part="none"), "part"),
    "loss NaN": (lying(loss=math.nan), "report"),
    "sign flip ×10": (sending(lambda delta: -10 * delta), "norm"),
    "scale ×100": (sending(lambda delta: 100 * delta), "norm"),
    "scale ×1e30": (sending(lambda delta: np.float32(1e30) * delta), "norm"),
    "pure noise": (sending(lambda delta: 10 * noise(delta)), "norm"),
    "boosted backdoor": (sending(backdoor), "norm"),
    "megabytes of metrics": (lying(note="x" * 5_000_000), "size"),
    "megabytes beside": (with_more("metrics", ConfigRecord({"x": "y" * 5_000_000})), "records"),
    "deep report": (lambda said, delta: raw("[" * 16_000, encode(delta, "fp32")), "report"),
    "wire magic": (sending_bytes(lambda data: b"XXXX" + data[4:]), "wire"),
    "wire format": (sending_bytes(lambda data: data[:4] + b"\x07" + data[5:]), "wire"),
    "wire count": (sending_bytes(lambda data: data[:8] + b"\xff" * 8 + data[16:]), "wire"),
}
ADMITTED: dict[str, Attack] = {
    "weight 1e12": lying(examples=10**12),
    "idle": sending(lambda delta: 0 * delta),
    "sign flip at the bound": sending(lambda delta: stretched(-delta)),
    "scaled to the bound": sending(stretched),
    "noise at the bound": sending(lambda delta: stretched(noise(delta))),
    "backdoor at the bound": sending(lambda delta: stretched(backdoor(delta))),
    "one coordinate at the bound": sending(lambda delta: stretched(np.eye(1, delta.size, 5, dtype=np.float32)[0])),
    "tiny": sending(lambda delta: np.float32(1e-30) * delta),
}


def a_round(way: tuple[str, str], replies: list[tuple[str, RecordDict]]) -> tuple[Aggregate, list[Update], list[str]]:
    method = method_of(*way)
    part = method.part(ROUND)
    fold = method.begin(start(method), ROUND)
    seen: set[str] = set()
    admitted, reasons = [], []
    for client, reply in replies:
        try:
            update, _ = admit(reply, expectation(part), client=client, seen=seen)
        except Refused as refusal:
            reasons.append(refusal.reason)
            continue
        fold.add(update)
        admitted.append(update)
    return fold.finish(), admitted, reasons


def honest_replies(part: Part) -> list[tuple[str, RecordDict]]:
    return [(name, reply_to_records(report(part), delta, "fp32")) for name, delta in honest_deltas(part).items()]


@cache
def honest_round(way: tuple[str, str]) -> tuple[Aggregate, list[Update]]:
    done, updates, reasons = a_round(way, honest_replies(method_of(*way).part(ROUND)))
    assert not reasons
    assert len(updates) == len(HONEST)
    return done, updates


def evil_reply(part: Part, attack: Attack) -> RecordDict:
    delta = honest_deltas(part)[HONEST[0]]
    return attack(report(part), delta)


def norm(values: Any) -> float:
    return float(np.linalg.norm(np.asarray(values, np.float64)))


def product_distance(one: Any, other: Any) -> float:
    return math.sqrt(sum(norm(a - b) ** 2 for a, b in zip(one, other, strict=True)))


@pytest.mark.parametrize("way", FEWER_WAYS, ids="-".join)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_the_round_as_it_would_have_been(name: str, way: tuple[str, str]) -> None:
    attack, reason = REFUSED[name]
    part = method_of(*way).part(ROUND)
    replies = honest_replies(part)
    replies.insert(3, (EVIL, evil_reply(part, attack)))
    done, _, reasons = a_round(way, replies)
    assert reasons == [reason]
    assert same_bits(done.state, honest_round(way)[0].state)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_second_update_of_the_same_client_does_not_count(way: tuple[str, str]) -> None:
    part = method_of(*way).part(ROUND)
    replies = honest_replies(part)
    replies.insert(4, (HONEST[0], evil_reply(part, ADMITTED["noise at the bound"])))
    done, _, reasons = a_round(way, replies)
    assert reasons == ["duplicate"]
    assert same_bits(done.state, honest_round(way)[0].state)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", ADMITTED)
def test_what_is_admitted_moves_the_round_no_further_than_its_bound(name: str, way: tuple[str, str]) -> None:
    method, rule = way
    part = method_of(*way).part(ROUND)
    replies = honest_replies(part)
    replies.insert(3, (EVIL, evil_reply(part, ADMITTED[name])))
    done, updates, reasons = a_round(way, replies)
    assert not reasons
    (evil,) = [update for update in updates if update.client == EVIL]
    assert norm(evil.delta) <= MAX_NORM
    assert evil.weight <= MAX_WEIGHT
    before = start(method_of(*way))
    clean, honest = honest_round(way)
    if method in OF_DELTAS:
        where = LAYOUT.part_slice(part)
        moved = done.state.vector[where].astype(np.float64) - before.vector[where]
        undisturbed = clean.state.vector[where].astype(np.float64) - before.vector[where]
        assert norm(moved - undisturbed) <= _bound_of_deltas(rule, honest, evil, undisturbed) + 1e-6
    else:
        _check_products(before, done, clean, honest, updates, rule)


def _bound_of_deltas(rule: str, honest: list[Update], evil: Update, undisturbed: Any) -> float:
    share = evil.weight / (evil.weight + sum(update.weight for update in honest))
    if rule == "none":
        return share * (MAX_NORM + norm(undisturbed))
    norms = [norm(update.delta) for update in honest]
    if rule == "clip":
        # Nobody's part in the mean is longer than the median norm, which one client moves by one place.
        return share * 2 * max(norms) + 2 * (max(norms) - min(norms))
    spread = max(norm(one.delta - other.delta) for one, other in itertools.combinations(honest, 2))
    assert spread < MAX_NORM / 2, "the honest agree better than a liar can differ"
    return spread


def _check_products(
    before: GlobalState, done: Aggregate, clean: Aggregate, honest: list[Update], updates: list[Update], rule: str
) -> None:
    if rule == "clip":
        limit = float(np.median([norm(update.delta) for update in updates]))
        updates = [_cut(update, limit) for update in updates]
        honest = [_cut(update, float(np.median([norm(u.delta) for u in honest]))) for update in honest]
    average, undisturbed = average_product(before, updates), average_product(before, honest)
    (evil,) = [update for update in updates if update.client == EVIL]
    share = evil.weight / sum(update.weight for update in updates)
    a, b = before.vector[LAYOUT.part_slice("A")], before.vector[LAYOUT.part_slice("B")]
    length = norm(evil.delta)
    # ‖(B + ΔB)(A + ΔA)‖ ≤ (‖B‖ + ‖Δ‖)(‖A‖ + ‖Δ‖): what one client's product can be at most.
    most = share * ((norm(b) + length) * (norm(a) + length) + math.sqrt(sum(norm(p) ** 2 for p in undisturbed)))
    if rule == "none":
        assert product_distance(average, undisturbed) <= most + 1e-6
    # And what is served is as near to the average as the round says.
    for result, wanted in ((done, average), (clean, undisturbed)):
        assert result.exactness_error is not None
        whole = math.sqrt(sum(norm(product) ** 2 for product in wanted))
        assert product_distance(served_product(result.state), wanted) <= result.exactness_error * whole * 1.01 + 1e-5


def _cut(update: Update, limit: float) -> Update:
    length = norm(update.delta)
    return update if length <= limit else replace(update, delta=(limit / length * update.delta).astype(np.float32))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_all_of_them_at_once_do_not_end_the_round(way: tuple[str, str]) -> None:
    part = method_of(*way).part(ROUND)
    replies = honest_replies(part)
    for index, (attack, _) in enumerate(REFUSED.values()):
        replies.insert(index % 9, (EVIL, evil_reply(part, attack)))
    done, updates, reasons = a_round(way, replies)
    assert len(updates) == len(HONEST)
    assert len(reasons) == len(REFUSED)
    assert same_bits(done.state, honest_round(way)[0].state)


def test_the_corpus_is_as_large_as_it_claims() -> None:
    assert len(REFUSED) + len(ADMITTED) + 1 >= 40
    assert same_bits(honest_round(("mean", "none"))[0].state, run_again().state)


def run_again() -> Aggregate:
    method = method_of("mean")
    return run(method, start(method), honest_round(("mean", "none"))[1], ROUND)
