"""What a review has got out of rounds under masks by lying to clients, or has broken with them: no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from client_messages import asked
from developers import developer, nf_tiny
from federated_clients import LAYOUT, SPEC
from masked_party import Party, a_plan

from neuralforge.data.dataset import dataset_from_examples
from neuralforge.data.example import Example
from neuralforge.federation.app import make_client_app
from neuralforge.federation.secagg.answers import train_masked
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import answer_text, masks_to_records, state_record
from neuralforge_common.secagg.keys import public_bytes
from neuralforge_common.secagg.messages import KEYS, Advert
from neuralforge_common.secagg.roster import keys_statement
from neuralforge_common.secagg.terms import state_digest
from neuralforge_server.admission import Refused


@pytest.fixture
def party(tmp_path: Path) -> Party:
    return Party(tmp_path, 3)


def test_a_state_for_one_client_alone_is_not_learnt_from(tmp_path: Path) -> None:
    """All but one get zeros, from which LoRA moves nowhere: the sum would be that one's update."""
    party, state = Party(tmp_path, 3, size=LAYOUT.size), LAYOUT.draw(0)
    plan = a_plan(3, size=LAYOUT.size)
    assert plan.masking is not None
    party.begin(replace(plan, spec=SPEC, masking=replace(plan.masking, state=state_digest(state))))
    learnt: list[FloatArray] = []

    def learn(plan: RoundPlan, state: FloatArray) -> tuple[TrainReport, FloatArray]:
        learnt.append(state)
        report = TrainReport(
            round=1,
            nonce=plan.nonce,
            base_fingerprint="",
            rank=2,
            alpha=4.0,
            part="both",
            examples=1,
            steps=1,
            tokens=0,
        )
        return report, np.ones(LAYOUT.size, np.float32)

    party.shares(party.keys())
    for name, sent in zip(party.names, (state, np.zeros_like(state), state), strict=True):
        told = masks_to_records(party.plan, party.tally.delivery(name).to_json(), state_record(sent))
        if sent is state:
            train_masked(party.members[name], party.plan, told, LAYOUT, learn)
            continue
        for _ in range(2):  # and the attempt is over: the right one comes too late
            with pytest.raises(FederationError, match=r"not the one that everybody|does not follow"):
                train_masked(party.members[name], party.plan, told, LAYOUT, learn)
            told = masks_to_records(party.plan, party.tally.delivery(name).to_json(), state_record(state))
    assert len(learnt) == 2


def test_another_name_for_the_federation_does_not_unmask_a_round_again(tmp_path: Path) -> None:
    party = Party(tmp_path, 5)
    party.run()
    party.begin(replace(a_plan(5, size=party.size, nonce="n2"), federation="another"))
    with pytest.raises(FederationError, match="for other survivors"):
        party.run({"train": party.names[4:]})


def test_who_chooses_the_bound_does_not_learn_how_long_an_update_is(party: Party) -> None:
    length = float(np.linalg.norm(party.updates["c000"]))
    for number, bound in enumerate((0.5 * length, 0.999 * length)):
        party.begin(a_plan(3, size=party.size, nonce=f"b{number}", max_norm=bound))
        for name in party.names:
            party.updates[name] = party.updates["c000"]
        mean = party.run()  # nobody says anything else than otherwise, and the coordinator does not find it too long
        np.testing.assert_allclose(mean, party.updates["c000"] * (bound / length), rtol=1e-4, atol=1e-8)


def test_private_keys_are_gone_as_soon_as_the_update_is_under_its_masks(party: Party) -> None:
    party.shares(party.keys())
    party.train()
    assert [party.members[name]._attempt._secrets for name in party.names] == [None] * 3  # type: ignore[union-attr]
    party.confirm()
    np.testing.assert_array_equal(party.unmask(), party.plain_mean(party.names))


@pytest.mark.parametrize("field", ["mask_key", "seal_key"])
def test_a_key_that_gives_no_secret_is_its_own_clients_trouble(party: Party, field: str) -> None:
    """Shown to the others, each of them would have to give up."""
    identity = party.identities["c002"]
    own = Advert.from_json(party.members["c002"].answer(KEYS, party.plan, "{}"))
    bad = replace(own, identity=public_bytes(identity), **{field: bytes(32)})
    signed = replace(bad, signature=identity.sign(keys_statement(party.plan.digest, bad)))
    with pytest.raises(Refused, match="nobody can agree on a secret"):
        party.tally.add_keys("c002", signed.to_json())


def test_who_trains_at_a_lower_rank_gives_no_keys(party: Party, tmp_path: Path) -> None:
    data = dataset_from_examples([Example(context="a = ", completion="1")])
    who = developer(nf_tiny(), data, tmp_path, max_rank=1, member=party.members["c000"])
    app = make_client_app(lambda context: who, on_fault=lambda fault: None)
    question = masks_to_records(party.plan, "{}")
    refused = asked(app, question, f"query.{KEYS}")
    assert "rank 2 and under masks, and this client trains at most at 1" in refused.error.reason
    who.max_rank = 2
    party.tally.add_keys("c000", answer_text(asked(app, question, f"query.{KEYS}").content))


def test_a_round_with_personal_matrices_gets_no_keys(party: Party, tmp_path: Path) -> None:
    """From a state of zeros only those learn who have matrices of their own already."""
    data = dataset_from_examples([Example(context="a = ", completion="1")])
    who = developer(nf_tiny(), data, tmp_path, member=party.members["c000"])
    app = make_client_app(lambda context: who, on_fault=lambda fault: None)
    question = masks_to_records(replace(party.plan, part="A", personal="B"), "{}")
    refused = asked(app, question, f"query.{KEYS}")
    assert "under masks and leaves the B with their clients" in refused.error.reason
