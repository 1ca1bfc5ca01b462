"""The ClientApp, called with messages as Flower calls it: what comes back is what a coordinator admits, or a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_messages import answer, asked
from developers import developer, nf_tiny, plan_for, state_for

from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.federation import app as module
from neuralforge.federation.app import RAISED, make_client_app, reason_of
from neuralforge.federation.participant import Participant, RoundStopped
from neuralforge.federation.resident import ResidentModel
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.config.policy import AllowSection, SitePolicy
from neuralforge_common.errors import AdapterError, DataError, FederationError, StorageError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import PROTOCOL, RoundPlan, TrainReport
from neuralforge_common.records import plan_to_records, raw_reply
from neuralforge_common.wire import decode, encode

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict  # isort: skip  # after our settings
from flwr.common.constant import ErrorCode  # isort: skip

Ask = Callable[..., Message]


@pytest.fixture(scope="module")
def resident() -> ResidentModel:
    return nf_tiny()


@pytest.fixture(scope="module")
def data(team_code: Path) -> Dataset:
    return gather(sources=[team_code], max_samples=12, max_eval_samples=4, seed=0)


@pytest.fixture
def ada(resident: ResidentModel, data: Dataset, tmp_path: Path) -> Participant:
    return developer(resident, data, tmp_path, adapter_path=tmp_path / "team.lora")


@pytest.fixture
def ask(ada: Participant) -> Ask:
    faults: list[Exception] = []
    app = make_client_app(lambda context: ada, on_fault=faults.append)
    return lambda content, kind: asked(app, content, kind)


def question(**changes: Any) -> RecordDict:
    asks = {"base": "nf-tiny", "rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"], "dropout": 0.0}
    text = json.dumps(asks | {"protocol": PROTOCOL, "version": "0"} | changes)
    return RecordDict({"request": ConfigRecord({"json": text})})


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_a_round_over_messages_is_the_round_of_the_participant(ada: Participant, ask: Ask, wire: Any) -> None:
    plan = plan_for(ada, wire=wire)
    layout, state = state_for(ada, plan)
    reply = ask(plan_to_records(plan, state), "train")
    raw = raw_reply(reply.content)
    report = TrainReport.from_json(raw.report)
    assert (report.round, report.nonce, report.rank, report.part) == (1, "n-1", 4, "both")
    assert report.base_fingerprint == plan.spec.base_fingerprint
    delta = decode(raw.delta, count=layout.size, wire=wire)
    assert report.norm == pytest.approx(float(np.linalg.norm(delta)))
    assert raw.delta == encode(ada.train(plan, state)[1], wire)


def test_a_federation_of_three_learns_over_messages(resident: ResidentModel, data: Dataset, tmp_path: Path) -> None:
    people = {
        name: developer(resident, Dataset(train=data.train[i::3], evaluation=data.evaluation, report=data.report),
                        tmp_path / name)
        for i, name in enumerate(("ada", "bob", "eve"))
    }  # fmt: skip
    apps = {name: make_client_app(lambda context, who=who: who) for name, who in people.items()}
    first = answer(asked(apps["ada"], question(), "query.describe"))
    spec = AdapterSpec(**first["spec"] | {"target_modules": tuple(first["spec"]["target_modules"])})
    layout = AdapterLayout.from_json(first["layout"])
    state = layout.draw(3)
    losses = []
    for number in range(1, 4):
        plan = RoundPlan(
            federation="team", round=number, rounds=3, nonce=f"n-{number}", spec=spec, layout_digest=layout.digest,
            steps=4, batch_size=4, learning_rate=5e-3, max_length=64,
        )  # fmt: skip
        content = plan_to_records(plan, state)
        losses.append(answer(asked(apps["eve"], content, "evaluate"))["loss"])
        replies = [asked(app, content, "train").content for app in apps.values()]
        state = state + np.mean(
            [decode(raw_reply(reply).delta, count=layout.size, wire="fp32") for reply in replies], axis=0
        )
    assert losses[2] < losses[1] < losses[0]


def test_scores_name_the_round_and_nothing_else_where_the_site_keeps_its_figures(ada: Participant, ask: Ask) -> None:
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    content = plan_to_records(plan, state)
    scores = ada.evaluate(plan, state)
    assert scores is not None
    assert answer(ask(content, "evaluate")) == {
        "round": 1, "nonce": "n-1", "loss": scores.loss, "accuracy": scores.accuracy, "tokens": scores.tokens,
        "examples": 4,
    }  # fmt: skip
    ada.policy = SitePolicy(allow=AllowSection(report_metrics=False))
    assert answer(ask(content, "evaluate")) == {"round": 1, "nonce": "n-1"}


def test_the_end_leaves_an_adapter_folder(ada: Participant, ask: Ask) -> None:
    plan = plan_for(ada)
    layout, state = state_for(ada, plan)
    assert answer(ask(plan_to_records(plan, state), "query.finish")) == {"round": 1, "nonce": "n-1"}
    assert ada.adapter_path is not None
    assert layout.flatten(read_adapter_folder(ada.adapter_path).state).tobytes() == state.tobytes()


def test_a_description_is_what_a_plan_then_fits(ada: Participant, ask: Ask) -> None:
    described = answer(ask(question(), "query.describe"))
    plan = plan_for(ada)
    assert described["max_rank"] == 256
    assert AdapterLayout.from_json(described["layout"]).digest == plan.layout_digest
    assert described["spec"]["base_fingerprint"] == plan.spec.base_fingerprint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (question(protocol=99), "protocol 99"),
        (question(base="other"), "configured for 'nf-tiny'"),
        (question(base=7), "base: got 7"),
        (question(rank=0), "rank: wanted"),
        (question(rank=True), "rank: got True"),
        (question(rank=10**6), "rank: wanted"),
        (question(alpha="x"), "alpha: got"),
        (question(target_modules=[1]), "wanted names"),
        (question(target_modules=[".*"]), "is not a name"),
        (question(target_modules=["nose"]), "nose"),
        (question(dropout=2), "dropout: wanted"),
        (RecordDict(), "asks for no adapter"),
        (RecordDict({"request": ConfigRecord({"json": "{"})}), "not valid JSON"),
    ],
)
def test_a_question_that_makes_no_sense_gets_a_reason(ask: Ask, content: RecordDict, reason: str) -> None:
    reply = ask(content, "query.describe")
    assert reply.has_error()
    assert reply.error.code == RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reason in (reply.error.reason or "")


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.finish"])
def test_a_plan_or_state_that_does_not_fit_gets_a_reason(ada: Participant, ask: Ask, kind: str) -> None:
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    ada.policy = SitePolicy(allow=AllowSection(max_rank=8))

    def reason(content: RecordDict) -> str:
        reply = ask(content, kind)
        assert reply.has_error()
        return reply.error.reason or ""

    good = plan_to_records(plan, state)
    assert "no plan" in reason(RecordDict())
    assert "no state" in reason(RecordDict({"plan": good["plan"]}))
    assert "bytes" in reason(plan_to_records(plan, state[:-1]))
    numpy_array = ArrayRecord({"flat": Array(state)})
    assert "wire format" in reason(RecordDict({"plan": good["plan"], "state": numpy_array}))
    assert "rank 16" in reason(plan_to_records(replace(plan, spec=replace(plan.spec, rank=16)), state))
    wider = replace(plan, spec=replace(plan.spec, rank=8))
    assert "another adapter" in reason(plan_to_records(wider, state))


def test_a_reason_holds_nothing_private() -> None:
    assert reason_of(FederationError("said", hint="look into /home/ada")) == "said"
    assert reason_of(AdapterError("a" * 900)) == "a" * 500
    assert reason_of(FederationError("two\nlines \x1b[31m")) == "two lines  [31m"
    assert reason_of(StorageError("cannot write /home/ada/secret")) == "StorageError"
    assert reason_of(DataError("password = 'hunter2'")) == "DataError"
    assert reason_of(KeyError("ada")) == "KeyError"


def test_a_fault_is_told_whole_on_this_side_and_in_part_on_the_other(ada: Participant, tmp_path: Path) -> None:
    faults: list[Exception] = []
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    (tmp_path / "team.lora").write_text("in the way")
    app = make_client_app(lambda context: ada, on_fault=faults.append)
    reply = asked(app, plan_to_records(plan, state), "query.finish")
    assert reply.error.reason == "StorageError"
    assert str(tmp_path) in str(faults[0])


def test_a_participant_that_cannot_be_had_is_a_reason_too() -> None:
    def nobody(context: Context) -> Participant:
        raise DataError("no examples in /home/ada/code")

    reply = asked(make_client_app(nobody, on_fault=lambda fault: None), question(), "query.describe")
    assert reply.error.reason == "DataError"


def test_a_stop_is_for_whoever_runs_the_client(resident: ResidentModel, data: Dataset, tmp_path: Path) -> None:
    ada = developer(resident, data, tmp_path, stop=lambda: True)
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    with pytest.raises(RoundStopped):
        asked(make_client_app(lambda context: ada), plan_to_records(plan, state), "train")


def test_a_stock_node_names_its_configuration(
    ada: Participant, team_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALFORGE_HOME", str(tmp_path / "home"))
    (tmp_path / "policy.yaml").write_text("allow:\n  max_rank: 5\n")
    config = tmp_path / "client.yaml"
    config.write_text(
        f"model:\n  base: nf-tiny\n  adapter_name: ours\n"
        f"dataset:\n  sources: [{team_code}]\n  max_samples: 12\n  max_eval_samples: 4\n"
        f"training:\n  device: cpu\n  precision: fp32\noutput:\n  directory: {tmp_path}\n"
        f"federation:\n  policy: {tmp_path / 'policy.yaml'}\n  max_rank: 2\n"
    )
    described = answer(asked(module.app, question(), "query.describe", config=str(config)))
    assert described["max_rank"] == 2
    plan = plan_for(ada, wire="int8")
    _, state = state_for(ada, plan)
    reply = asked(module.app, plan_to_records(plan, state), "train", config=str(config))
    assert TrainReport.from_json(raw_reply(reply.content).report).rank == 2
    assert len(list((tmp_path / "home" / "memory").iterdir())) == 1
    assert not asked(module.app, plan_to_records(plan, state), "query.finish", config=str(config)).has_error()
    assert read_adapter_folder(tmp_path / "ours.lora").spec.rank == 4
    refused = asked(module.app, question(rank=6), "query.describe", config=str(config))
    assert not refused.has_error(), "a rank that is only described costs nothing"
    wide = plan_for(ada, rank=6)
    reply = asked(module.app, plan_to_records(wide, state_for(ada, wide)[1]), "train", config=str(config))
    assert "rank 6, allowed: at most 5" in (reply.error.reason or "")
    for node_config in ({}, {"config": 3}):
        assert "no configuration" in (asked(module.app, question(), "query.describe", **node_config).error.reason or "")
    missing = asked(module.app, question(), "query.describe", config=str(tmp_path / "absent.yaml"))
    assert missing.error.reason == "ConfigError"
