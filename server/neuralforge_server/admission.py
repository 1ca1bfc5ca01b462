"""What a reply must satisfy before it may change anything: checked from the outside in, and nothing is decoded early.

    1  somebody who was asked, and who has no update in this round yet
    2  one report and one array, the report no longer than allowed, strict JSON
    3  this round and this very attempt (nonce), this base, a rank and alpha that fit, this part, a weight, sane figures
    4  a payload of exactly the length that all this implies, in the agreed wire format
    5  decoded: finite, and no longer than the norm bound

What passes can still be wrong or hostile; that is what the bounds on weight and norm, and robust rules, are for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import RecordDict

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import AdapterError, FederationError, NeuralForgeError
from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_common.plan import MAX_REPORT_BYTES, MAX_STEPS, TrainReport
from neuralforge_common.records import RawReply, raw_reply
from neuralforge_common.strict_json import shortened
from neuralforge_common.wire import WireFormat, decode, encoded_size
from neuralforge_server.aggregation.method import Update

ENOUGH_HISTORY = 6
"""Accepted norms before the bound follows them."""

_ALLOWANCE = 3.0
_FLOOR = 0.01


class Refused(Exception):
    """A reply that does not count. `reason` is one of a few words that stay the same, `message` is for a person.

    Reasons here: unasked, duplicate, records, size, report, round, nonce, base, rank, alpha, part, weight, figures,
    shape, wire, not-finite, norm.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a round expects of every reply; `layout` is that of the trained part's full rank, `clients` were asked."""

    round: int
    nonce: str
    base_fingerprint: str
    layout: AdapterLayout
    scaling: float
    part: Part
    wire: WireFormat
    weighting: Literal["examples", "uniform"]
    max_weight: int
    max_norm: float
    clients: frozenset[str]
    max_report_bytes: int = MAX_REPORT_BYTES


def admit(records: RecordDict, expectation: Expectation, *, client: str, seen: set[str]) -> tuple[Update, TrainReport]:
    """The update in a client's reply, with its report; `seen` holds the clients admitted so far and takes this one.

    Raises:
        Refused: the reply does not count, and nothing has changed.
    """
    # 1 to 3. Somebody who was asked, once; one report and one array; the report fits the round.
    raw, report = admit_report(records, expectation, client=client, seen=seen)
    # 4. The payload has the length that follows.
    count = expectation.layout.with_rank(report.rank).part_size(expectation.part)
    wanted = encoded_size(count, expectation.wire)
    if len(raw.delta) != wanted:
        raise Refused(
            "shape", f"wanted {wanted:,} bytes ({count:,} values, {expectation.wire}), got {len(raw.delta):,}"
        )
    try:
        delta = decode(raw.delta, count=count, wire=expectation.wire)
    except AdapterError as fault:
        raise Refused("wire", fault.message) from fault
    # 5. Numbers, and not too large.
    norm = _checked_norm(delta, expectation.max_norm)
    seen.add(client)
    weight = min(report.examples, expectation.max_weight) if expectation.weighting == "examples" else 1
    update = Update(client=client, rank=report.rank, part=expectation.part, delta=delta, weight=weight, norm=norm)
    return update, report


def admit_report(
    records: RecordDict, expectation: Expectation, *, client: str, seen: Container[str]
) -> tuple[RawReply, TrainReport]:
    """A reply with its report checked and its payload not yet looked at: all there is to check of a masked one.

    Raises:
        Refused: the reply does not count.
    """
    # 1. Somebody who was asked, once.
    if client not in expectation.clients:
        raise Refused("unasked", "this client was not asked in this round")
    if client in seen:
        raise Refused("duplicate", "this client has an update in this round already")
    # 2. One report and one array.
    try:
        raw = raw_reply(records)
    except FederationError as fault:
        raise Refused("records", fault.message) from fault
    if len(raw.report) > expectation.max_report_bytes:
        raise Refused("size", f"the report is longer than {expectation.max_report_bytes:,} bytes")
    try:
        report = TrainReport.from_json(raw.report, limit=expectation.max_report_bytes)
    except NeuralForgeError as fault:
        raise Refused("report", fault.message) from fault
    # 3. The report fits the round.
    _check_report(report, expectation)
    return raw, report


def norm_bound(*, steps: int, learning_rate: float, size: int, history: Sequence[float]) -> float:
    """The longest delta that is believed where nobody configured one.

    Adam moves a coordinate by about the learning rate in a step, so `steps` of them move `size` coordinates at most
    steps · learning_rate · √size far: the ceiling. Real deltas are much shorter, because steps disagree; with enough
    norms of earlier accepted updates in `history`, the bound is three times their median, but at least a hundredth of
    the ceiling, so that a few idle rounds do not lock everybody out.
    """
    ceiling = steps * learning_rate * math.sqrt(size)
    if len(history) < ENOUGH_HISTORY:
        return ceiling
    return min(ceiling, max(_ALLOWANCE * statistics.median(history), _FLOOR * ceiling))


def _check_report(report: TrainReport, expectation: Expectation) -> None:
    def wanted(holds: bool, reason: str, what: str, got: object) -> None:
        if not holds:
            raise Refused(reason, f"wanted {what}, got {shortened(got)}")

    wanted(report.round == expectation.round, "round", f"round {expectation.round}", report.round)
    wanted(report.nonce == expectation.nonce, "nonce", "the nonce of this attempt", report.nonce)
    base = expectation.base_fingerprint
    wanted(report.base_fingerprint == base, "base", f"the base {base[:19]}…", report.base_fingerprint[:72])
    rank = expectation.layout.rank
    wanted(1 <= report.rank <= rank, "rank", f"a rank from 1 to {rank}", report.rank)
    alpha = expectation.scaling * report.rank
    wanted(math.isclose(report.alpha, alpha, rel_tol=1e-6), "alpha", f"alpha {alpha:g} at this rank", report.alpha)
    wanted(report.part == expectation.part, "part", f"the part {expectation.part}", report.part)
    wanted(report.examples >= 1, "weight", "1 example or more", report.examples)
    wanted(1 <= report.steps <= MAX_STEPS, "figures", f"1 to {MAX_STEPS:,} steps", report.steps)
    wanted(report.tokens >= 0, "figures", "no fewer than 0 tokens", report.tokens)
    wanted(report.norm >= 0, "figures", "a norm from 0 on", report.norm)
    wanted(report.seconds >= 0, "figures", "seconds from 0 on", report.seconds)
    wanted(report.loss is None or 0 <= report.loss < 1e4, "figures", "a loss in nats a token", report.loss)


def _checked_norm(delta: FloatArray, max_norm: float) -> float:
    # One pass: a NaN or an infinity anywhere shows in the sum of squares, and so does anything too large to square.
    with np.errstate(all="ignore"):
        square = float(np.dot(delta, delta))
    if square <= max_norm**2:
        return math.sqrt(square)
    if not math.isfinite(square) and not np.isfinite(delta).all():
        raise Refused("not-finite", "the delta holds values that are not finite")
    norm = math.sqrt(float(np.square(delta, dtype=np.float64).sum()))
    if not norm <= max_norm:
        raise Refused("norm", f"the delta's norm is {norm:.4g}, at most {max_norm:.4g} is believed")
    return norm
