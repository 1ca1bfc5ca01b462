"""A participant's round, on a real base: what is trained, what is sent, what stays, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from developers import NOON, TARGETS, developer, nf_tiny, plan_for, state_for

from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.federation.participant import Participant, RoundStopped
from neuralforge.federation.resident import ResidentModel
from neuralforge.training.engine import EngineOptions
from neuralforge_common.adapter import FloatArray
from neuralforge_common.config.policy import AllowSection, RequireSection, SitePolicy
from neuralforge_common.errors import FederationError, NeuralForgeError, TrainingError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.wire import decode, encode


@pytest.fixture(scope="module")
def resident() -> ResidentModel:
    """One base for all participants of this file, as in a simulation."""
    return nf_tiny()


@pytest.fixture(scope="module")
def data(team_code: Path) -> Dataset:
    return gather(sources=[team_code], max_samples=12, max_eval_samples=4, seed=0)


@pytest.fixture
def ada(resident: ResidentModel, data: Dataset, tmp_path: Path) -> Participant:
    return developer(resident, data, tmp_path / "ada")


def trained(who: Participant, plan: RoundPlan) -> tuple[AdapterLayout, FloatArray, TrainReport, FloatArray]:
    layout, state = state_for(who, plan)
    report, delta = who.train(plan, state)
    return layout, state, report, delta


def adapter_of(who: Participant, plan: RoundPlan) -> FloatArray:
    """The whole vector as training left it."""
    trainer, layout = who.resident.trainer(plan.full_spec, max_length=plan.max_length)
    return layout.flatten(trainer.state())


@pytest.mark.parametrize("part", ["both", "A", "B"])
def test_a_part_alone_is_trained_and_sent(ada: Participant, part: Any) -> None:
    plan = plan_for(ada, part=part)
    layout, before, report, delta = trained(ada, plan)
    after = adapter_of(ada, plan)
    inside = np.zeros(layout.size, bool)
    inside[layout.part_slice(part)] = True
    assert delta.shape == (layout.part_size(part),)
    assert delta.dtype == np.float32
    assert report.part == part
    np.testing.assert_array_equal(after[~inside].view(np.uint32), before[~inside].view(np.uint32))
    np.testing.assert_array_equal(before[inside] + delta, before[inside] + (after - before)[inside])
    np.testing.assert_allclose(before[inside] + delta, after[inside], atol=1e-7)
    # Every matrix of the part has moved, each in its own place of the common order.
    whole = np.zeros(layout.size, np.float32)
    whole[inside] = delta
    for module, a, b in layout.factors(whole):
        assert (a.any(), b.any()) == (part != "B", part != "A"), module.name


def test_frozen_components_never_move(ada: Participant) -> None:
    plan = plan_for(ada, rank=3, frozen_rank=2)
    layout, before, report, delta = trained(ada, plan)
    assert (layout.rank, report.rank) == (5, 3)
    assert report.alpha == plan.spec.alpha
    assert delta.size == layout.with_rank(3).size
    for (_, a, b), (_, a_after, b_after) in zip(
        layout.factors(before), layout.factors(adapter_of(ada, plan)), strict=True
    ):
        np.testing.assert_array_equal(a[3:].view(np.uint32), a_after[3:].view(np.uint32))
        np.testing.assert_array_equal(b[:, 3:].view(np.uint32), b_after[:, 3:].view(np.uint32))
        assert (a[:3] != a_after[:3]).any()


def test_frozen_components_are_applied(ada: Participant) -> None:
    plan = plan_for(ada, rank=3, frozen_rank=2)
    layout, state = state_for(ada, plan)
    with_them = ada.evaluate(plan, state)
    for _, a, _ in layout.factors(state):
        a[3:] = 0
    without = ada.evaluate(plan, state)
    assert with_them is not None
    assert without is not None
    assert with_them.loss != without.loss


def test_two_developers_with_the_same_data_send_the_same_bytes_and_a_repeated_round_does(
    resident: ResidentModel, data: Dataset, tmp_path: Path
) -> None:
    ada, bob = (developer(resident, data, tmp_path / name) for name in ("ada", "bob"))
    plan = plan_for(ada, wire="int8")
    _, state = state_for(ada, plan)
    sent = [who.train(replace(plan, nonce=nonce), state)[1].tobytes() for who, nonce in
            ((ada, "a"), (bob, "b"), (ada, "c"))]  # fmt: skip
    assert sent[0] == sent[1] == sent[2]
    later = [ada.train(replace(plan, round=2, nonce=nonce), state)[1].tobytes() for nonce in "de"]
    assert later[0] == later[1]
    assert later[0] != sent[0], "another round sees other batches"


def test_every_number_of_a_plan_counts(ada: Participant) -> None:
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    sent = {ada.train(plan, state)[1].tobytes()}
    changes: list[dict[str, Any]] = [
        {"steps": 4}, {"batch_size": 3}, {"learning_rate": 2e-3}, {"warmup_steps": 2}, {"max_length": 32},
        {"max_grad_norm": 0.01}, {"proximal_mu": 1.0}, {"seed": 6}, {"round": 2}, {"spec": replace(plan.spec, alpha=9)},
        {"spec": replace(plan.spec, dropout=0.5)},
    ]  # fmt: skip
    for change in changes:
        sent.add(ada.train(replace(plan, **change), state)[1].tobytes())
    assert len(sent) == 1 + len(changes)


def test_no_pull_is_no_change_and_a_strong_pull_holds_the_weights(ada: Participant) -> None:
    plan = plan_for(ada, steps=12)
    _, state = state_for(ada, plan)
    free, none, strong = (ada.train(replace(plan, proximal_mu=mu), state)[1] for mu in (0.0, 1e-30, 1e4))
    assert none.tobytes() == free.tobytes()
    assert np.linalg.norm(strong) < 0.4 * np.linalg.norm(free)


def test_epochs_see_every_example_and_steps_go_round_again(ada: Participant, data: Dataset) -> None:
    _, _, report, _ = trained(ada, plan_for(ada, epochs=2, batch_size=5))
    assert report.steps == 2 * 3
    assert report.examples == len(data.train) == 12
    _, _, report, _ = trained(ada, plan_for(ada, steps=5, batch_size=5))
    assert report.steps == 5
    _, _, report, _ = trained(ada, plan_for(ada, weighting="uniform"))
    assert report.examples == 1


def test_a_client_of_a_lower_rank_trains_the_first_components_at_the_same_scaling(
    resident: ResidentModel, data: Dataset, tmp_path: Path
) -> None:
    small = developer(resident, data, tmp_path, max_rank=2)
    plan = plan_for(small, rank=4, frozen_rank=1)
    layout, before, report, delta = trained(small, plan)
    assert report.rank == 2
    assert report.alpha / report.rank == plan.spec.scaling
    assert delta.size == layout.with_rank(2).size
    sent = layout.with_rank(2).factors(delta)
    for (_, a, b), (_, a_sent, b_sent), (_, a_after, b_after) in zip(
        layout.factors(before), sent, layout.factors(adapter_of(small, plan)), strict=True
    ):
        np.testing.assert_allclose(a[:2] + a_sent, a_after[:2], atol=1e-7)
        np.testing.assert_allclose(b[:, :2] + b_sent, b_after[:, :2], atol=1e-7)
        assert not a_after[2:4].any()
        assert not b_after[:, 2:4].any()
        np.testing.assert_array_equal(a_after[4:], a[4:])


def test_a_personal_b_stays_and_survives_a_restart(resident: ResidentModel, data: Dataset, tmp_path: Path) -> None:
    ada = developer(resident, data, tmp_path)
    first = plan_for(ada, part="A", personal="B")
    layout, state, _, delta = trained(ada, first)
    place = layout.part_slice("B")
    own = adapter_of(ada, first)[place]
    assert delta.size == layout.size_a, "B is not sent"
    assert (own != state[place]).any(), "B is trained"

    again = developer(resident, data, tmp_path)
    assert again.evaluate(first, state) != developer(resident, data, tmp_path / "new").evaluate(first, state)
    second = replace(first, round=2, learning_rate=1e-9)
    again.train(second, state)
    np.testing.assert_allclose(adapter_of(again, second)[place], own, atol=1e-7)
    # The first round once more: from the coordinator's B, not from what was learnt since.
    assert again.train(first, state)[1].tobytes() == delta.tobytes()


def test_what_a_narrow_wire_leaves_out_comes_later(ada: Participant) -> None:
    """Over rounds the sum of what arrives is the sum of what was learnt, but for the last rest (error feedback)."""
    plan = plan_for(ada, part="A", wire="int8")
    layout, state = state_for(ada, plan)
    arrived, learnt = np.zeros(layout.size_a), np.zeros(layout.size_a)
    plain = np.zeros(layout.size_a)
    for number in range(1, 6):
        asked = replace(plan, round=number)
        _, delta = ada.train(asked, state)
        true = (adapter_of(ada, asked) - state)[layout.part_slice("A")]
        arrived += decode(encode(delta, "int8"), count=delta.size, wire="int8")
        plain += decode(encode(true, "int8"), count=true.size, wire="int8")
        learnt += true
    one_step = np.abs(delta).max() / 127 / 2
    assert np.abs(arrived - learnt).max() <= 1.01 * one_step
    assert np.linalg.norm(arrived - learnt) < 0.8 * np.linalg.norm(plain - learnt)
    # A round in fp32 delivers the rest, and then nothing is owed any more.
    _, delta = ada.train(replace(plan, round=6, wire="fp32"), state)
    learnt += (adapter_of(ada, plan) - state)[layout.part_slice("A")]
    np.testing.assert_allclose(arrived + delta, learnt, atol=1e-6)
    _, delta = ada.train(replace(plan, round=7, wire="fp32"), state)
    np.testing.assert_array_equal(delta, (adapter_of(ada, plan) - state)[layout.part_slice("A")])


def test_what_one_part_is_owed_waits_for_a_round_of_that_part(ada: Participant) -> None:
    first = plan_for(ada, part="A", wire="int8")
    layout, state = state_for(ada, first)
    _, delta = ada.train(first, state)
    owed = delta - decode(encode(delta, "int8"), count=delta.size, wire="int8")
    assert owed.any()
    ada.train(replace(first, round=2, part="B"), state)
    third = replace(first, round=3, wire="fp32")
    _, delta = ada.train(third, state)
    learnt = (adapter_of(ada, third) - state)[layout.part_slice("A")]
    np.testing.assert_array_equal(delta, learnt + owed)


def test_scores_tell_base_from_adapter_and_finish_writes_both_down(
    resident: ResidentModel, data: Dataset, tmp_path: Path
) -> None:
    ada = developer(resident, data, tmp_path, adapter_path=tmp_path / "team.lora")
    plan = plan_for(ada, steps=10)
    layout = ada.layout(plan)
    state = layout.draw(0)
    base = ada.evaluate(plan, state)
    state = state + ada.train(plan, state)[1]
    scores = ada.evaluate(plan, state)
    assert base is not None
    assert scores is not None
    assert scores.loss < base.loss
    assert scores.examples == len(data.evaluation)
    assert ada.finish(replace(plan, round=9), state) == tmp_path / "team.lora"
    folder = read_adapter_folder(tmp_path / "team.lora")
    assert layout.flatten(folder.state).tobytes() == state.tobytes()
    assert folder.spec == replace(plan.full_spec, base_revision=folder.spec.base_revision)
    assert "9 rounds of the federation team" in folder.metadata.description
    assert folder.metadata.evaluation is not None
    assert folder.metadata.evaluation.base.perplexity == pytest.approx(base.perplexity)
    assert folder.metadata.evaluation.adapter.accuracy == pytest.approx(scores.accuracy)


def test_the_finished_adapter_of_a_personal_method_has_the_clients_own_b(
    resident: ResidentModel, data: Dataset, tmp_path: Path
) -> None:
    ada = developer(resident, data, tmp_path, adapter_path=tmp_path / "mine.lora")
    plan = plan_for(ada, part="A", personal="B")
    layout, state, _, _ = trained(ada, plan)
    own = adapter_of(ada, plan)[layout.part_slice("B")]
    ada.finish(plan, state)
    written = layout.flatten(read_adapter_folder(tmp_path / "mine.lora").state)
    np.testing.assert_array_equal(written[layout.part_slice("B")], own)
    np.testing.assert_array_equal(written[layout.part_slice("A")], state[layout.part_slice("A")])


def allow(**limits: Any) -> SitePolicy:
    return SitePolicy(allow=AllowSection(**limits))


@pytest.mark.parametrize(
    ("policy", "changes", "asked", "allowed"),
    [
        (allow(bases=("smollm2-135m",)), {}, "nf-tiny", "smollm2-135m"),
        (allow(max_rank=3), {}, "rank 4", "at most 3"),
        (allow(max_steps=2), {}, "3 steps", "at most 2"),
        (allow(max_steps=11), {"epochs": 2}, "12 steps", "at most 11"),
        (allow(max_epochs=1), {"epochs": 2}, "2 epochs", "at most 1"),
        (allow(max_rounds=8), {}, "9 rounds", "at most 8"),
        (allow(hours="22:00-06:00"), {}, "a round at 12:00", "22:00-06:00"),
        (allow(hours="13:00-14:00"), {}, "a round at 12:00", "13:00-14:00"),
        (SitePolicy(require=RequireSection(privacy=True)), {}, "without differential privacy", "private"),
    ],
)
def test_the_sites_policy_refuses_with_what_is_asked_and_what_is_allowed(
    ada: Participant, policy: SitePolicy, changes: dict[str, Any], asked: str, allowed: str
) -> None:
    plan = plan_for(ada, **changes)
    _, state = state_for(ada, plan)
    ada.policy = policy
    with pytest.raises(FederationError) as refused:
        ada.train(plan, state)
    assert asked in refused.value.message
    assert allowed in refused.value.message


@pytest.mark.parametrize(
    "policy",
    [
        allow(bases=("nf-tiny",), max_rank=4, max_steps=3, max_rounds=9, hours="12:00-12:01"),
        allow(hours="11:00-06:00", max_epochs=1),
        SitePolicy(),
    ],
)
def test_the_sites_policy_lets_through_what_is_just_within_it(ada: Participant, policy: SitePolicy) -> None:
    ada.policy = policy
    ada.check(plan_for(ada))


def test_hours_over_midnight(ada: Participant) -> None:
    plan = plan_for(ada)
    ada.policy = allow(hours="22:00-06:00")
    for hour, inside in ((22, True), (23, True), (0, True), (5, True), (6, False), (21, False)):
        ada._now = lambda hour=hour: NOON.replace(hour=hour)
        if inside:
            ada.check(plan)
        else:
            with pytest.raises(FederationError, match="22:00-06:00"):
                ada.check(plan)


def test_a_site_may_keep_its_figures(ada: Participant) -> None:
    plan = plan_for(ada)
    _, state, report, _ = trained(ada, plan)
    assert report.loss is not None
    assert report.seconds > 0
    ada.policy = allow(report_metrics=False)
    report, _ = ada.train(plan, state)
    assert (report.loss, report.seconds) == (None, 0.0)
    assert ada.evaluate(plan, state) is None


def test_another_base_is_refused_with_both_fingerprints(ada: Participant) -> None:
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    strange = replace(plan, spec=replace(plan.spec, base_fingerprint="sha256:" + "ab" * 32))
    with pytest.raises(FederationError, match="another base") as refused:
        ada.train(strange, state)
    assert "abababababab" in refused.value.message
    assert plan.spec.base_fingerprint.removeprefix("sha256:")[:12] in refused.value.message


def test_another_order_of_values_is_refused_with_both_digests(ada: Participant) -> None:
    plan = plan_for(ada)
    layout, state = state_for(ada, plan)
    with pytest.raises(FederationError, match="another adapter") as refused:
        ada.train(replace(plan, layout_digest="cd" * 32), state)
    assert "cdcdcdcdcdcd" in refused.value.message
    assert layout.digest[:12] in refused.value.message


def test_personal_matrices_are_never_sent(ada: Participant) -> None:
    plan = plan_for(ada, part="both", personal="B")
    _, state = state_for(ada, plan)
    with pytest.raises(FederationError, match="kept by the client"):
        ada.train(plan, state)


def test_a_stopped_round_sends_and_remembers_nothing(resident: ResidentModel, data: Dataset, tmp_path: Path) -> None:
    ada = developer(resident, data, tmp_path, stop=lambda: True)
    plan = plan_for(ada, wire="int8")
    _, state = state_for(ada, plan)
    with pytest.raises(RoundStopped):
        ada.train(plan, state)
    assert not (tmp_path / "memory").exists()


def test_describe_names_this_bases_own_modules(ada: Participant) -> None:
    spec, layout = ada.describe("nf-tiny", rank=6, alpha=None, target_modules="auto", dropout=0.1)
    assert (spec.rank, spec.alpha, spec.dropout, layout.rank) == (6, 12.0, 0.1, 6)
    assert spec.base_fingerprint.startswith("sha256:")
    assert {module.name.rpartition(".")[2] for module in layout.modules} == set(spec.target_modules) > set(TARGETS)
    # While an adapter is on the base, too: its wrappers have other names.
    again, same = ada.describe("nf-tiny", rank=6, alpha=None, target_modules=list(spec.target_modules), dropout=0.1)
    assert (again, same) == (spec, layout)
    with pytest.raises(FederationError, match="no linear layer called 'nose'"):
        ada.describe("nf-tiny", rank=6, alpha=None, target_modules=["nose"], dropout=0.0)


def test_only_a_base_that_somebody_here_named_is_loaded(data: Dataset, tmp_path: Path) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        raise NeuralForgeError(f"{name} is not loaded in this test")

    configured = developer(ResidentModel(load, name="nf-tiny"), data, tmp_path)
    secret = developer(ResidentModel(load, name="/home/ada/secret/model"), data, tmp_path)
    free = developer(ResidentModel(load), data, tmp_path)
    listed = developer(ResidentModel(load), data, tmp_path, policy=allow(bases=("nf-tiny", "./mine")))
    question: dict[str, Any] = {"rank": 4, "alpha": None, "target_modules": "auto", "dropout": 0.0}
    for who, base in ((configured, "smollm2-135m"), (secret, "nf-tiny"), (free, "/etc"), (free, "nf-tiny"),
                      (listed, "smollm2-135m")):  # fmt: skip
        with pytest.raises(FederationError) as refused:
            who.describe(base, **question)
        assert base in refused.value.message
        assert "ada" not in refused.value.message
    assert not loaded
    for who, base in ((configured, "nf-tiny"), (free, "smollm2-135m"), (listed, "./mine")):
        with pytest.raises(NeuralForgeError, match="not loaded"):
            who.describe(base, **question)
    assert loaded == ["nf-tiny", "smollm2-135m", "./mine"]


def test_a_base_that_no_engine_could_train_is_fit_for_another_question(data: Dataset, tmp_path: Path) -> None:
    ada = developer(nf_tiny(options=EngineOptions(engine="fast")), data, tmp_path)
    ada.resident.base("nf-tiny").model.config.hidden_act = "gelu"
    with pytest.raises(TrainingError, match="the fast engine cannot train this"):
        plan_for(ada)
    trained(ada, plan_for(ada))  # the base is loaded anew, without what was done to it


def test_developers_share_one_base_and_one_trainer(resident: ResidentModel, data: Dataset, tmp_path: Path) -> None:
    ada = developer(resident, data, tmp_path / "ada")
    bob = developer(resident, Dataset(train=data.train[:5], evaluation=(), report=data.report), tmp_path / "bob")
    plan = plan_for(ada)
    _, state = state_for(ada, plan)
    alone = ada.train(plan, state)[1].tobytes()
    trainer = resident.trainer(plan.full_spec, max_length=plan.max_length)[0]
    report, delta = bob.train(plan, state)
    assert report.examples == 5
    assert delta.tobytes() != alone
    assert ada.train(plan, state)[1].tobytes() == alone
    assert resident.trainer(plan.full_spec, max_length=plan.max_length)[0] is trainer
    wider = plan_for(ada, rank=8)
    trained(ada, wider)
    assert ada.train(plan, state)[1].tobytes() == alone, "after another adapter was on the base"
