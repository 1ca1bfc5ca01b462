"""Rounds with differential privacy: what leaves says what the plan said, and what it cost stands in a ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_messages import answer, asked
from developers import TARGETS, developer, nf_tiny, plan_for, state_for

from neuralforge.continual.item import ReplayItem
from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.federation.app import make_client_app
from neuralforge.federation.participant import Participant, RoundStopped
from neuralforge.federation.prepare import make_participant
from neuralforge.federation.private_rounds import PrivateRounds
from neuralforge.federation.remembering import Remembering
from neuralforge.federation.resident import ResidentModel
from neuralforge.privacy.release import Receipt, release
from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.config.load import resolve_train_config
from neuralforge_common.config.policy import RequireSection, SitePolicy
from neuralforge_common.config.schema import PrivacySection
from neuralforge_common.errors import FederationError, PrivacyError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.plan import PROTOCOL, RoundPlan, TrainReport
from neuralforge_common.privacy import PrivacyTerms
from neuralforge_common.records import STYPE, plan_to_records, raw_reply
from neuralforge_common.wire import encode

from flwr.app import ConfigRecord, RecordDict  # isort: skip  # after our settings

TERMS = PrivacyTerms(noise_multiplier=1.0, sample_rate=0.15, target_epsilon=50.0)
STEPS = 2


@pytest.fixture(scope="module")
def resident() -> ResidentModel:
    return nf_tiny()


@pytest.fixture(scope="module")
def data(team_code: Path) -> Dataset:
    return gather(sources=[team_code], max_samples=12, max_eval_samples=4, seed=0)


@pytest.fixture(scope="module")
def other_data(team_code: Path) -> Dataset:
    """Another developer's: other code, and less of it."""
    return gather(sources=[team_code / "csv.py"], max_samples=5, max_eval_samples=0, eval_fraction=0)


Make = Callable[..., Participant]


@pytest.fixture
def make(resident: ResidentModel, data: Dataset, tmp_path: Path) -> Make:
    def make(name: str = "ada", whose: Dataset = data, own: PrivacySection | None = None, **more: Any) -> Participant:
        home = tmp_path / name
        private = PrivateRounds(home=home, scope="federation team host:1", own=own or PrivacySection())
        return developer(resident, whose, home, **{"private": private} | more)

    return make


def private_plan(who: Participant, **changes: Any) -> RoundPlan:
    return plan_for(who, **{"weighting": "uniform", "privacy": TERMS, "steps": STEPS} | changes)


def history(steps: int) -> list[Steps]:
    return [Steps(sample_rate=TERMS.sample_rate, noise_multiplier=TERMS.noise_multiplier, count=steps)]


def spent(who: Participant) -> float:
    assert who.private is not None
    found = who.private.spent()
    return found.epsilon if found else 0.0


# What leaves


def silent_report(plan: RoundPlan) -> dict[str, object]:
    """The whole of what a private report may say: the plan, said again."""
    return {
        "protocol": PROTOCOL, "round": plan.round, "nonce": plan.nonce, "rank": plan.spec.rank,
        "base_fingerprint": plan.spec.base_fingerprint, "alpha": plan.spec.alpha, "part": plan.part,
        "examples": 1, "steps": plan.steps, "tokens": 0, "loss": None, "norm": 0.0, "seconds": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(("part", "wire"), [("both", "fp32"), ("B", "int8")])
def test_every_message_of_a_private_round_is_the_same_whoever_sends_it_but_for_the_noised_delta(
    make: Make, data: Dataset, other_data: Dataset, tmp_path: Path, part: Any, wire: Any
) -> None:
    """The capture: all records of all kinds of answers, of two developers with nothing in common."""
    answers = []
    for name, whose in (("ada", data), ("bob", other_data)):
        who = make(name, whose, adapter_path=tmp_path / f"{name}.lora")
        plan = private_plan(who, part=part, wire=wire)
        layout, state = state_for(who, plan)
        content = plan_to_records(plan, state)
        app = make_client_app(lambda context, who=who: who)
        trained = asked(app, content, "train")
        raw = raw_reply(trained.content)  # one report and one array, or it raises
        assert json.loads(raw.report) == silent_report(plan)
        scored = answer(asked(app, content, "evaluate"))
        finished = answer(asked(app, content, "query.finish"))
        assert scored == finished == {"round": 1, "nonce": "n-1"}
        request = {"base": "nf-tiny", "rank": 4, "alpha": 8.0, "target_modules": list(TARGETS), "dropout": 0.0}
        described = asked(
            app, RecordDict({"request": ConfigRecord({"json": json.dumps(request | {"protocol": PROTOCOL})})}),
            "query.describe",
        )  # fmt: skip
        refused = asked(app, plan_to_records(replace(plan, privacy=None), state), "train")
        answers.append(
            (raw.report, len(raw.delta), scored, finished, answer(described), refused.error.reason, len(layout.modules))
        )
    assert answers[0] == answers[1]


def test_the_folder_at_the_end_says_what_was_spent_and_nothing_that_was_measured(
    make: Make, data: Dataset, tmp_path: Path
) -> None:
    ada = make(adapter_path=tmp_path / "ada.lora")
    plan = private_plan(ada)
    _, state = state_for(ada, plan)
    ada.train(plan, state)
    # A coordinator that leaves privacy out of the last plan makes no difference.
    for last in (plan, replace(plan, privacy=None)):
        ada.finish(last, state)
        found = read_adapter_folder(tmp_path / "ada.lora").metadata
        assert (found.accuracy, found.evaluation, found.training_samples, found.dataset_digest) == (
            None,
            None,
            None,
            "",
        )
        assert found.privacy is not None
        assert (found.privacy.delta, found.privacy.unit) == (1e-5, "sample")
        assert "12" not in (found.description or "")
    assert ada.scores is not None, "its owner may see them"
    assert ada.scores.samples == len(data.evaluation)


def test_nothing_is_released_that_the_ledger_does_not_know(make: Make) -> None:
    ada = make()
    plan = private_plan(ada)
    _, state = state_for(ada, plan)
    _, delta = ada.train(plan, state)
    assert ada.private is not None
    report = TrainReport(
        round=1, nonce="n-1", base_fingerprint=plan.spec.base_fingerprint, rank=4, alpha=8.0, part="both", examples=99,
        steps=2, tokens=1234, loss=2.5, norm=3.0, seconds=1.0,
    )  # fmt: skip
    receipt = Receipt(folder=ada.private.folder, what="federation round 1, attempt n-1", before=0)
    released, passed = release(plan, report, delta, receipt)
    assert asdict(released) == silent_report(plan)
    assert passed is delta
    for wrong in (
        replace(receipt, what="federation round 1, attempt n-2"),
        replace(receipt, before=2),  # charged for an earlier one
        replace(receipt, folder=ada.private.home / "nowhere"),
    ):
        with pytest.raises(PrivacyError, match="is not released"):
            release(plan, report, delta, wrong)
    for other in (replace(plan, steps=4), replace(plan, privacy=replace(TERMS, noise_multiplier=2.0))):
        with pytest.raises(PrivacyError, match="is not released"):
            release(other, report, delta, receipt)
    with pytest.raises(PrivacyError, match="not a private one"):
        release(replace(plan, privacy=None), report, delta, receipt)


# What is learnt


@pytest.mark.parametrize("part", ["both", "A", "B"])
def test_weights_move_and_what_is_frozen_does_not(make: Make, part: Any) -> None:
    ada = make()
    plan = private_plan(ada, part=part)
    layout, state = state_for(ada, plan)
    _, delta = ada.train(plan, state)
    assert delta.shape == (layout.part_size(part),)
    whole = np.zeros(layout.size, np.float32)
    whole[layout.part_slice(part)] = delta
    for module, a, b in layout.factors(whole):
        assert (a.any(), b.any()) == (part != "B", part != "A"), module.name
    trainer, _ = ada.resident.trainer(plan.full_spec, max_length=plan.max_length)
    after = layout.flatten(trainer.state())
    outside = np.ones(layout.size, bool)
    outside[layout.part_slice(part)] = False
    np.testing.assert_array_equal(after[outside], state[outside])


def test_what_was_learnt_without_privacy_does_not_enter_a_private_round(make: Make, tmp_path: Path) -> None:
    ada = make(adapter_path=tmp_path / "ada.lora")
    plain = plan_for(ada, part="A", personal="B")
    layout, state = state_for(ada, plain)
    ada.train(plain, state)

    def own_b(plan: RoundPlan) -> Any:
        ada.finish(plan, state)
        whole = layout.flatten(read_adapter_folder(tmp_path / "ada.lora").state)
        return whole[layout.part_slice("B")]

    assert (own_b(plain) != state[layout.part_slice("B")]).any()
    private = private_plan(ada, part="A", personal="B")
    np.testing.assert_array_equal(own_b(private), state[layout.part_slice("B")])


def test_what_ewc_holds_in_a_private_round_is_told_by_its_noised_gradients(make: Make) -> None:
    """So little noise that something shows; how strongly it then holds is not what is looked at."""
    terms = replace(TERMS, noise_multiplier=0.003, target_epsilon=1e6, sample_rate=0.9)
    ada = make(remembering=Remembering(ewc_lambda=1e9))
    first = private_plan(ada, privacy=terms)
    _, state = state_for(ada, first)
    _, delta = ada.train(first, state)
    second = private_plan(ada, privacy=terms, round=2)
    _, held = ada.train(second, state + delta)
    assert np.linalg.norm(held) < 0.1 * np.linalg.norm(delta)
    assert spent(ada) == pytest.approx(
        epsilon([Steps(sample_rate=0.9, noise_multiplier=0.003, count=2 * STEPS)], TERMS.delta)
    ), "the Fisher costs nothing"


# What it costs


def test_rounds_attempts_and_restarts_cost_what_one_accountant_says(make: Make) -> None:
    charged = 0
    for number, nonce in ((1, "a"), (1, "again"), (2, "b"), (3, "c")):
        ada = make()  # a process of its own
        plan = private_plan(ada, round=number, nonce=nonce)
        ada.train(plan, state_for(ada, plan)[1])
        charged += plan.steps or 0
        assert spent(ada) == pytest.approx(epsilon(history(charged), TERMS.delta), rel=1e-9)
    assert charged == 8


def test_a_round_that_is_broken_off_was_charged_whole_before_its_first_step(make: Make) -> None:
    ends = iter([False, True])
    ada = make(stop=lambda: next(ends))
    plan = private_plan(ada, steps=5)
    with pytest.raises(RoundStopped):
        ada.train(plan, state_for(ada, plan)[1])
    assert spent(ada) == pytest.approx(epsilon(history(5), TERMS.delta))


BUDGET = epsilon(history(5), TERMS.delta)
"""Enough for two rounds of two steps."""


@pytest.mark.parametrize(
    "limit",
    [
        {"plan": BUDGET},
        {"policy": SitePolicy(require=RequireSection(max_epsilon=BUDGET))},
        {"own": PrivacySection(enabled=True, target_epsilon=BUDGET)},
    ],
    ids=lambda limit: next(iter(limit)),
)
def test_the_lowest_budget_of_plan_site_and_client_ends_it_before_it_is_exceeded(make: Make, limit: Any) -> None:
    ada = make(**{key: value for key, value in limit.items() if key != "plan"})
    terms = replace(TERMS, target_epsilon=limit.get("plan", TERMS.target_epsilon))
    for number in (1, 2):
        plan = private_plan(ada, round=number, privacy=terms)
        ada.train(plan, state_for(ada, plan)[1])
    plan = private_plan(ada, round=3, privacy=terms)
    with pytest.raises(FederationError) as caught:
        ada.train(plan, state_for(ada, plan)[1])
    assert caught.value.message == (
        f"the privacy budget of this client does not allow round 3: at most ε = {BUDGET:g} at δ = 1e-05, example-level"
    )
    assert "ε" in (caught.value.hint or "")
    assert spent(ada) == pytest.approx(epsilon(history(4), TERMS.delta)), "a refused round costs nothing"


# What is refused


@pytest.mark.parametrize(
    ("require", "privacy", "line"),
    [
        (
            RequireSection(privacy=True),
            None,
            "the site policy refuses: asked for a round without differential privacy, allowed: private rounds alone",
        ),
        (
            RequireSection(max_epsilon=3),
            None,
            "the site policy refuses: asked for a round without differential privacy, allowed: private rounds alone",
        ),
        (
            RequireSection(max_delta=1e-6),
            TERMS,
            "the site policy refuses: asked for δ = 1e-05, allowed: at most 1e-06",
        ),
        (
            RequireSection(unit="file"),
            TERMS,
            "the site policy refuses: asked for example-level privacy, allowed: file-level or above",
        ),
        (
            RequireSection(unit="repository"),
            replace(TERMS, unit="file"),
            "the site policy refuses: asked for file-level privacy, allowed: repository-level",
        ),
    ],
)
def test_a_site_is_asked_for_less_than_it_requires(make: Make, require: Any, privacy: Any, line: str) -> None:
    ada = make(policy=SitePolicy(require=require))
    plan = private_plan(ada, privacy=privacy)
    with pytest.raises(FederationError) as caught:
        ada.check(plan)
    assert caught.value.message == line
    assert spent(ada) == 0


def test_more_than_a_site_requires_is_fine(make: Make) -> None:
    require = RequireSection(privacy=True, max_delta=1e-5, unit="sample", max_epsilon=60)
    ada = make(policy=SitePolicy(require=require))
    for unit in ("sample", "file", "repository"):
        ada.check(private_plan(ada, privacy=replace(TERMS, unit=unit)))


def test_the_clients_own_configuration_is_a_ceiling(make: Make) -> None:
    ada = make(own=PrivacySection(enabled=True, unit="file"))
    with pytest.raises(FederationError, match="this client's configuration refuses: asked for example-level privacy"):
        ada.check(private_plan(ada))
    with pytest.raises(FederationError, match="this client's configuration refuses: asked for a round without"):
        ada.check(plan_for(ada))


def test_a_federation_that_was_private_cannot_go_on_without(make: Make) -> None:
    ada = make()
    plan = private_plan(ada)
    ada.train(plan, state_for(ada, plan)[1])
    with pytest.raises(FederationError, match="were private on this machine, and round 2 would not be"):
        make().check(plan_for(ada, round=2))


def test_a_machine_without_a_ledger_takes_part_in_no_private_round(make: Make) -> None:
    ada = make(private=None)
    plan = private_plan(ada)
    with pytest.raises(FederationError, match="keeps no ledger of what privacy costs"):
        ada.train(plan, state_for(ada, plan)[1])


def items_of(data: Dataset) -> tuple[ReplayItem, ...]:
    return tuple(ReplayItem(example=example, session="before", added="2026-01-31T09:30:00Z") for example in data.train)


def test_replay_of_a_buffer_is_refused(make: Make, other_data: Dataset) -> None:
    ada = make(remembering=Remembering(items=items_of(other_data)))
    with pytest.raises(FederationError, match=r"replays earlier examples, .* that cannot be private"):
        ada.check(private_plan(ada))
    ada.check(plan_for(ada))


@pytest.mark.parametrize("private", ["own", "site"])
def test_it_is_refused_before_the_first_round_where_rounds_will_be_private(
    data: Dataset, tmp_path: Path, private: str
) -> None:
    (tmp_path / "policy.yaml").write_text("require: {max_epsilon: 8}\n")
    key_file = tmp_path / "key"
    key_file.write_text("0f" * 32)
    key_file.chmod(0o600)
    overrides: dict[str, object] = {"optimization.replay_buffer_size": 50, "optimization.key_file": key_file}
    overrides |= {"privacy.enabled": True} if private == "own" else {"federation.policy": tmp_path / "policy.yaml"}
    resolved = resolve_train_config(None, overrides, {})
    with pytest.raises(FederationError, match="that cannot be private"):
        make_participant(resolved, memory=tmp_path / "memory", tell=lambda line: None, dataset=data)


# On the wire


@pytest.mark.slow
def test_the_bytes_of_a_private_round_hold_no_word_of_the_data(
    link: Any, key: Any, make: Make, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that goes out over TLS to a real SuperLink, as it is before encryption."""
    import httpx

    from neuralforge.federation.connection import Resident
    from neuralforge.federation.flower import connect

    sent: list[bytes] = []
    ordinary = httpx.HTTPTransport.handle_request

    def recording(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.port == link.fleet_port:  # the coordinator of this test is in this process, too
            sent.append(request.read())
        return ordinary(self, request)

    ada = make()
    plan = private_plan(ada)
    _, state = state_for(ada, plan)
    node = link.register(key, "ada")
    app = make_client_app(lambda context: ada)
    with link.run() as run, connect(link.fleet, link.ca, key, linger=0.2) as fleet:
        monkeypatch.setattr(httpx.HTTPTransport, "handle_request", recording)
        resident = Resident(fleet, app)
        for kind in ("train", "evaluate"):
            question = run.ask(node, plan_to_records(plan, state), kind=kind)
            resident.send(resident.next_answer())
            run.reply(question)
    everything = b"\n".join(sent)
    documents = [json.loads(found) for found in set(re.findall(rb'\{"[a-z_]+": [ -z]*\}', everything))]
    ours = [silent_report(plan), {"round": 1, "nonce": "n-1"}]
    array = {"dtype": "uint8", "shape": [len(encode(state, "fp32"))], "stype": STYPE, "arraychunk_ids": [0]}
    assert all(document in documents for document in ours)
    for document in documents:
        if document not in (*ours, array):  # Flower's names of records, and the digests that it finds them by
            assert document.keys() <= {"report", "delta", "flat", "answer"}
            assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in document.values())
    for example in (*data.train, *data.evaluation):
        for secret in (example.id, example.path, *(line for line in example.completion.splitlines() if len(line) > 12)):
            assert secret.encode() not in everything
