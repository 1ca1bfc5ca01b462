"""Plans and reports as text: the same back, and nothing accepted that is not understood whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import AdapterError, FederationError, NeuralForgeError
from neuralforge_common.plan import RoundPlan, TrainReport

MakeSpec = Callable[..., AdapterSpec]


def a_plan(make_spec: MakeSpec, **changes: Any) -> RoundPlan:
    facts: dict[str, Any] = {
        "federation": "team", "round": 2, "rounds": 5, "nonce": "n1", "spec": make_spec(), "layout_digest": "d" * 64,
        "steps": 20, "batch_size": 4, "learning_rate": 1e-3, "max_length": 256,
    }  # fmt: skip
    return RoundPlan(**facts | changes)


REPORT = TrainReport(
    round=2, nonce="n1", base_fingerprint="sha256:" + "f" * 64, rank=4, alpha=8.0, part="both", examples=7, steps=20,
    tokens=512, loss=1.25, norm=0.5, seconds=3.5,
)  # fmt: skip


def test_a_plan_comes_back_as_it_was(make_spec: MakeSpec) -> None:
    for plan in (
        a_plan(make_spec),
        a_plan(make_spec, steps=None, epochs=2, part="B", frozen_rank=16, wire="int8", weighting="uniform"),
        a_plan(make_spec, spec=make_spec(layers=(0, 3), base_revision=None), personal="B", part="A", proximal_mu=0.1),
    ):
        assert RoundPlan.from_json(plan.to_json()) == plan


def test_frozen_components_have_the_scaling_of_the_trained_ones(make_spec: MakeSpec) -> None:
    plan = a_plan(make_spec, spec=make_spec(rank=4, alpha=8.0), frozen_rank=12)
    assert plan.total_rank == 16
    assert plan.full_spec.rank == 16
    assert plan.full_spec.scaling == plan.spec.scaling


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"spec": None},
        {"spec": []},
        {"spec": {}},
        {"spec": {"rank": 4}},
        {"protocol": 1},
        {"protocol": "1"},
        {"protocol": True},
        {"protocol": None},
        {"round": 0},
        {"round": 6},
        {"round": 2.0},
        {"round": True},
        {"round": "2"},
        {"rounds": 10**9},
        {"nonce": ""},
        {"nonce": "x" * 65},
        {"nonce": 5},
        {"federation": "x" * 2000},
        {"layout_digest": "d"},
        {"frozen_rank": -1},
        {"frozen_rank": 253},
        {"part": "C"},
        {"part": None},
        {"personal": "both"},
        {"steps": 0},
        {"steps": None},
        {"epochs": 3},
        {"steps": 10**7},
        {"batch_size": 0},
        {"batch_size": 5000},
        {"learning_rate": 0},
        {"learning_rate": 1.5},
        {"learning_rate": -1e-3},
        {"learning_rate": "1e-3"},
        {"warmup_steps": -1},
        {"max_length": 4},
        {"max_grad_norm": 0},
        {"proximal_mu": -1},
        {"proximal_mu": 1e12},
        {"wire": "fp8"},
        {"weighting": "size"},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 10**400},
    ],
)
def test_a_plan_that_is_not_understood_whole_is_refused(make_spec: MakeSpec, change: dict[str, Any]) -> None:
    text = json.dumps(json.loads(a_plan(make_spec).to_json()) | change)
    with pytest.raises(NeuralForgeError) as caught:
        RoundPlan.from_json(text)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("field", ["round", "nonce", "spec", "batch_size", "protocol", "layout_digest", "steps"])
def test_a_plan_that_lacks_a_field_is_refused(make_spec: MakeSpec, field: str) -> None:
    document = json.loads(a_plan(make_spec).to_json())
    del document[field]
    with pytest.raises(NeuralForgeError):
        RoundPlan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": 10**9},
        {"alpha": 0},
        {"alpha": -1},
        {"target_modules": "q_proj"},
        {"target_modules": []},
        {"target_modules": [".*"]},
        {"target_modules": [["q"]]},
        {"target_modules": {"q": 1}},
        {"layers": [-1]},
        {"task": "other"},
        {"base": 5},
        {"surprise": 1},
    ],
)
def test_a_plan_for_an_impossible_adapter_is_refused(make_spec: MakeSpec, change: dict[str, Any]) -> None:
    document = json.loads(a_plan(make_spec).to_json())
    document["spec"] |= change
    with pytest.raises(NeuralForgeError):
        RoundPlan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "nul", "[" * 100_000, "\ud800", '{"protocol": NaN}'])
def test_text_that_is_no_plan_and_no_report_is_refused(text: str) -> None:
    for read in (RoundPlan.from_json, TrainReport.from_json):
        with pytest.raises(NeuralForgeError):
            read(text)


def test_a_field_that_is_given_twice_is_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(AdapterError, match="twice"):
        RoundPlan.from_json(a_plan(make_spec).to_json()[:-1] + ', "round": 3}')
    with pytest.raises(AdapterError, match="twice"):
        TrainReport.from_json(REPORT.to_json()[:-1] + ', "round": 3}')


def test_a_report_comes_back_as_it_was() -> None:
    for report in (REPORT, replace(REPORT, loss=None, part="A")):
        assert TrainReport.from_json(report.to_json()) == report


def test_a_report_longer_than_allowed_is_refused() -> None:
    text = REPORT.to_json()
    assert TrainReport.from_json(text, limit=len(text)) == REPORT
    with pytest.raises(AdapterError, match="at most"):
        TrainReport.from_json(text, limit=len(text) - 1)


@pytest.mark.parametrize("field", sorted(asdict(REPORT)))
@pytest.mark.parametrize("value", [True, [], {}, "x" * 1025, 10**400, 2**63, math.inf, math.nan])
def test_a_report_with_a_value_of_the_wrong_kind_is_refused(field: str, value: Any) -> None:
    with pytest.raises(NeuralForgeError):
        TrainReport.from_json(json.dumps(asdict(REPORT) | {field: value}))


def test_a_report_without_what_it_must_say_is_refused() -> None:
    for field in (
        "protocol",
        "round",
        "nonce",
        "base_fingerprint",
        "rank",
        "alpha",
        "part",
        "examples",
        "steps",
        "tokens",
    ):
        document = asdict(REPORT)
        del document[field]
        with pytest.raises(FederationError):
            TrainReport.from_json(json.dumps(document))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(document=st.dictionaries(st.sampled_from(sorted(asdict(REPORT))) | st.text(max_size=5), json_values))
def test_arbitrary_documents_are_read_or_refused_and_nothing_else(document: dict[str, Any]) -> None:
    try:
        report = TrainReport.from_json(json.dumps(asdict(REPORT) | document))
    except NeuralForgeError:
        return
    assert type(report.examples) is int
    assert math.isfinite(report.norm)


MASKING = {"clients": 5, "limit": 0.5, "max_norm": 10.0, "bits": 32, "threshold": 0.5, "neighbours": 0}


def masked_document(make_spec: MakeSpec) -> dict[str, Any]:
    plan = json.loads(a_plan(make_spec, weighting="uniform", trust="peers").to_json())
    return plan | {"masking": MASKING}


def test_a_plan_under_masks_comes_back_and_has_one_digest_on_both_sides(make_spec: MakeSpec) -> None:
    text = json.dumps(masked_document(make_spec))
    plan = RoundPlan.from_json(text)
    assert RoundPlan.from_json(plan.to_json()) == plan
    # Whoever wrote it may have whole numbers where a reader makes fractions of them.
    written = replace(plan, max_grad_norm=1, spec=replace(plan.spec, alpha=8))
    assert written.digest == RoundPlan.from_json(written.to_json()).digest
    assert replace(plan, nonce="n2").digest != plan.digest


@pytest.mark.parametrize(
    "change",
    [
        {"weighting": "examples"},
        {"wire": "fp16"},
        {"steps": None, "epochs": 1},
        {"frozen_rank": 2},
        {"trust": "server"},
        {"trust": "nobody"},
        {"masking": []},
        {"masking": {"clients": 5}},
        {"masking": MASKING | {"surprise": 1}},
        {"masking": MASKING | {"bits": 32.0}},
        {"masking": MASKING | {"clients": True}},
    ],
)
def test_a_plan_under_masks_that_masks_nothing_is_refused(make_spec: MakeSpec, change: dict[str, Any]) -> None:
    with pytest.raises(FederationError):
        RoundPlan.from_json(json.dumps(masked_document(make_spec) | change))
