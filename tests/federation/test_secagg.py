"""Rounds under masks: the sum is the plain sum whoever drops out when, and a coordinator that cheats gets nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked_party import STAGES, Party, a_plan

from neuralforge.federation import policy
from neuralforge.federation.secagg.pins import Peers
from neuralforge.federation.secagg.round import Step
from neuralforge_common.config.policy import RequireSection, SitePolicy
from neuralforge_common.errors import FederationError, NeuralForgeError, TrainingError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.fixed_point import FixedPoint, unpack
from neuralforge_common.secagg.keys import commitment, public_bytes
from neuralforge_common.secagg.messages import (
    KEYS,
    SHARES,
    SURVIVORS,
    UNMASK,
    Advert,
    Delivery,
    Survivors,
    Unmasking,
    adverts_from_json,
    adverts_to_json,
)
from neuralforge_common.secagg.roster import keys_statement
from neuralforge_common.secagg.shamir import combine
from neuralforge_server.admission import Refused
from neuralforge_server.secagg.tally import TooFew

TEN = [f"c{number:03d}" for number in range(10)]


@pytest.fixture
def party(tmp_path: Path) -> Party:
    return Party(tmp_path, 10)


# What it does


@pytest.mark.parametrize("stage", STAGES)
def test_four_of_ten_may_drop_out_at_any_stage_and_the_sum_is_the_plain_one(party: Party, stage: str) -> None:
    gone = TEN[1::2][:4]
    mean = party.run({stage: gone})
    # Whose update came before they dropped out is in the sum.
    counted = TEN if stage in (SURVIVORS, UNMASK) else [name for name in TEN if name not in gone]
    assert list(party.tally.survivors) == counted
    np.testing.assert_array_equal(mean, party.plain_mean(counted))
    exact = np.mean([party.updates[name].astype(np.float64) for name in counted], axis=0)
    assert np.linalg.norm(mean - exact) <= 1e-3 * np.linalg.norm(exact)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(when=st.lists(st.sampled_from(["stays", *STAGES]), min_size=6, max_size=6), nonce=st.uuids())
def test_whoever_drops_out_when_it_is_the_sum_of_those_whose_update_came_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, when: list[str], nonce: object
) -> None:
    party = Party(tmp_path_factory.mktemp("party"), 6, size=33)
    gone = {stage: {name for name, at in zip(party.names, when, strict=True) if at == stage} for stage in STAGES}
    try:
        mean = party.run(gone)
    except TooFew:
        return
    np.testing.assert_array_equal(mean, party.plain_mean(party.tally.survivors))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_half_of_them_are_too_few_at_any_stage_after_the_keys(party: Party, stage: str) -> None:
    with pytest.raises(TooFew, match="5 clients are left, 6 are needed"):
        party.run({stage: TEN[:5]})


@pytest.mark.slow
def test_above_twenty_clients_the_graph_is_sparse_and_the_sum_the_same(tmp_path: Path) -> None:
    party = Party(tmp_path, 60, size=65)
    gone = party.names[::5]
    mean = party.run({"train": gone})
    roster = party.tally.roster()
    assert {len(neighbours) for neighbours in roster.graph.values()} == {48}
    np.testing.assert_array_equal(mean, party.plain_mean(set(party.names) - set(gone)))


def test_sixty_four_bits_are_as_good(tmp_path: Path) -> None:
    party = Party(tmp_path, 3)
    party.begin(a_plan(3, size=party.size, bits=64, limit=50.0))
    np.testing.assert_array_equal(party.run(), party.plain_mean(party.names))


# What a coordinator sees


def test_an_update_under_masks_looks_like_noise(tmp_path: Path) -> None:
    party = Party(tmp_path, 3, size=20_000)
    party.run()
    assert party.plan.masking is not None
    form = FixedPoint.of(party.plan.masking)
    for name in party.names:
        words = unpack(party.said["train"][name], count=party.size, form=form)
        # χ² over the 256 values of each byte: 255 ± 5 standard deviations of √510.
        counts = np.bincount(np.frombuffer(words.tobytes(), np.uint8), minlength=256)
        expected = words.nbytes / 256
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 5 * np.sqrt(510)
        # 5 standard deviations of a correlation between independent vectors.
        signed = words.view("<i4").astype(np.float64)
        assert abs(np.corrcoef(signed, party.updates[name])[0, 1]) < 5 / np.sqrt(party.size)


def test_fewer_shares_than_needed_give_no_secret_whatever_was_logged(party: Party) -> None:
    party.keys()
    party.shares(adverts_to_json(party.tally.roster().adverts))
    party.train()
    party.confirm()
    request = party.tally.request().to_json()
    roster, victim = party.tally.roster(), TEN[0]
    logged: dict[int, bytes] = {}
    for name in TEN[1:]:
        told = Unmasking.from_json(party.members[name].answer(UNMASK, party.plan, request))
        logged[roster.point(name)] = told.seeds[victim]
        promise, needed = roster.by_name[victim].promise, roster.needed_shares(victim)
        assert needed == 6
        if len(logged) < needed:
            # Too few, and no interpolation of fewer gives it either.
            with pytest.raises(FederationError, match="wanted 6 shares"):
                combine(logged, needed)
            assert commitment(_combined_or_zero(logged), victim) != promise
        else:
            assert commitment(combine(logged, needed), victim) == promise
        assert not told.mask_keys


def _combined_or_zero(shares: dict[int, bytes]) -> bytes:
    try:
        return combine(shares, len(shares))
    except FederationError:
        return bytes(32)


def test_the_shares_that_a_client_gives_are_of_one_kind_for_each_of_the_others(party: Party) -> None:
    party.run({"train": TEN[:3]})
    for text in party.said[UNMASK].values():
        told = Unmasking.from_json(text)
        assert set(told.seeds) == set(TEN[3:])
        assert set(told.mask_keys) == set(TEN[:3])


# A coordinator that cheats. Each returns what the client must not answer.

Cheat = Callable[[Party], Any]


def at_keys(change: Callable[[Party, list[Advert]], list[Advert]]) -> Cheat:
    def cheat(party: Party) -> None:
        adverts = change(party, list(adverts_from_json(party.keys())))
        party.shares(adverts_to_json(adverts), [TEN[0]])

    return cheat


def swapped_key(party: Party, adverts: list[Advert]) -> list[Advert]:
    return [*adverts[:3], replace(adverts[3], mask_key=os.urandom(32)), *adverts[4:]]


def swapped_own_key(party: Party, adverts: list[Advert]) -> list[Advert]:
    return [signed(party, replace(adverts[0], seal_key=os.urandom(32)), party.identities[TEN[0]]), *adverts[1:]]


def changed_identity(party: Party, adverts: list[Advert]) -> list[Advert]:
    party.pins[TEN[0]].check({a.name: a.identity for a in adverts[1:]})
    impostor = Ed25519PrivateKey.generate()
    fake = replace(adverts[3], identity=public_bytes(impostor), mask_key=os.urandom(32))
    return [*adverts[:3], signed(party, fake, impostor), *adverts[4:]]


def one_machine_twice(party: Party, adverts: list[Advert]) -> list[Advert]:
    twin = replace(adverts[9], name="c010", mask_key=os.urandom(32), seal_key=os.urandom(32))
    return [adverts[0], *adverts[2:], signed(party, twin, party.identities[TEN[9]])]


def somebody_new(party: Party, adverts: list[Advert]) -> list[Advert]:
    party.pins[TEN[0]].write(Peers(keys={a.name: a.identity for a in adverts[1:9]}, closed=True))
    return adverts


def signed(party: Party, advert: Advert, identity: Ed25519PrivateKey) -> Advert:
    return replace(advert, signature=identity.sign(keys_statement(party.plan.digest, advert)))


def at_delivery(change: Callable[[Party, Delivery], Delivery]) -> Cheat:
    def cheat(party: Party) -> None:
        party.shares(party.keys())
        delivery = change(party, party.tally.delivery(TEN[0]))
        party.members[TEN[0]].collect(party.plan, delivery.to_json())

    return cheat


def flipped(party: Party, delivery: Delivery) -> Delivery:
    sealed = bytearray(delivery.shares[TEN[4]])
    sealed[20] ^= 1
    return replace(delivery, shares={**delivery.shares, TEN[4]: bytes(sealed)})


def truncated(party: Party, delivery: Delivery) -> Delivery:
    return replace(delivery, shares={**delivery.shares, TEN[4]: delivery.shares[TEN[4]][:-1]})


def exchanged(party: Party, delivery: Delivery) -> Delivery:
    return replace(delivery, shares={**delivery.shares, TEN[4]: delivery.shares[TEN[5]]})


def somebody_elses(party: Party, delivery: Delivery) -> Delivery:
    return replace(delivery, shares={**delivery.shares, TEN[4]: party.tally.delivery(TEN[1]).shares[TEN[4]]})


def too_few_dealers(party: Party, delivery: Delivery) -> Delivery:
    few = delivery.dealers[:5]
    return Delivery(dealers=few, shares={name: delivery.shares[name] for name in few[1:]})


def left_out(party: Party, delivery: Delivery) -> Delivery:
    return replace(delivery, shares={name: s for name, s in delivery.shares.items() if name != TEN[4]})


def at_survivors(names: list[str]) -> Cheat:
    def cheat(party: Party) -> None:
        party.shares(party.keys())
        party.train(TEN)
        party.members[TEN[0]].answer(SURVIVORS, party.plan, Survivors(names=tuple(names)).to_json())

    return cheat


def at_request(change: Callable[[Party, dict[str, Any]], None]) -> Cheat:
    def cheat(party: Party) -> None:
        party.shares(party.keys())
        party.train(TEN[:8])
        party.confirm()
        request = json.loads(party.tally.request().to_json())
        change(party, request)
        party.members[TEN[0]].answer(UNMASK, party.plan, json.dumps(request))

    return cheat


def both_lists(party: Party, request: dict[str, Any]) -> None:
    request["dropped"] = [TEN[1], *request["dropped"]]


def a_survivor_called_dropped(party: Party, request: dict[str, Any]) -> None:
    request["survivors"] = request["survivors"][:1] + request["survivors"][2:]
    request["dropped"] = [TEN[1], *request["dropped"]]


def nobody_dropped(party: Party, request: dict[str, Any]) -> None:
    request["dropped"] = []


def few_signatures(party: Party, request: dict[str, Any]) -> None:
    request["signatures"] = dict(list(request["signatures"].items())[:5])


def forged_signature(party: Party, request: dict[str, Any]) -> None:
    request["signatures"][TEN[1]] = request["signatures"][TEN[2]]


CHEATS: dict[str, tuple[Cheat, str]] = {
    "a key swapped": (at_keys(swapped_key), "not signed for this round by its identity"),
    "a client's own key swapped": (at_keys(swapped_own_key), "another key than this client's own"),
    "an identity changed": (at_keys(changed_identity), "shows another identity than before"),
    "one machine under two names": (at_keys(one_machine_twice), "two clients of the round have the same identity"),
    "somebody new, after the peers were closed": (at_keys(somebody_new), "none of the peers"),
    "too few clients": (at_keys(lambda party, adverts: adverts[:2]), "wanted the keys of 3"),
    "another set of clients for one": (
        lambda party: split_roster(party),
        "were changed on their way, or are another round's|not those of this client's neighbours",
    ),
    "a bit of a share flipped": (at_delivery(flipped), "changed on their way"),
    "a share cut short": (at_delivery(truncated), "wanted 82 bytes"),
    "another dealer's share": (at_delivery(exchanged), "changed on their way"),
    "a share for somebody else": (at_delivery(somebody_elses), "changed on their way"),
    "too few dealers": (at_delivery(too_few_dealers), "5 clients have dealt shares, 6 are needed"),
    "a neighbour's share left out": (at_delivery(left_out), "not those of this client's neighbours"),
    "too few survivors": (at_survivors(TEN[:5]), "agrees to 6 or more"),
    "survivors without this client": (at_survivors(TEN[1:]), "this one among them"),
    "a survivor that is none": (at_survivors([*TEN, "z"]), "have dealt shares"),
    "the same client in both lists": (at_request(both_lists), "both secrets of c001"),
    "a survivor called dropped": (at_request(a_survivor_called_dropped), "not those that this client has signed"),
    "a dropped client left out": (at_request(nobody_dropped), "not those that this client has signed"),
    "too few signatures": (at_request(few_signatures), "5 clients have signed"),
    "a signature under something else": (at_request(forged_signature), "was shown another one"),
    "another set of survivors for some": (lambda party: split_survivors(party), "was shown another one"),
}


def split_roster(party: Party) -> None:
    """One client is told of nine, the others of ten."""
    everybody = party.keys()
    nine = adverts_to_json(adverts_from_json(everybody)[:9])
    party.shares(everybody, TEN[1:])
    told = party.members[TEN[0]].answer(SHARES, party.plan, nine)
    assert set(json.loads(told)["shares"]) == set(TEN[1:9])
    shares = {name: json.loads(party.said[SHARES][name])["shares"][TEN[0]] for name in TEN[1:9]}
    delivery = {"dealers": TEN[:9], "shares": shares}
    party.members[TEN[0]].collect(party.plan, json.dumps(delivery))


def split_survivors(party: Party) -> None:
    """Half of them sign that client 9 is in the sum, half of them that it is not."""
    party.shares(party.keys())
    party.train(TEN)
    signatures = {}
    for place, name in enumerate(TEN[:9]):
        told = Survivors(names=tuple(TEN if place % 2 else TEN[:9])).to_json()
        signatures[name] = json.loads(party.members[name].answer(SURVIVORS, party.plan, told))["signature"]
    request = {"survivors": TEN[:9], "dropped": [TEN[9]], "signatures": signatures}
    party.members[TEN[0]].answer(UNMASK, party.plan, json.dumps(request))


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_coordinator_that_cheats_is_refused_and_gets_no_further_word(party: Party, cheat: str) -> None:
    run, words = CHEATS[cheat]
    with pytest.raises(NeuralForgeError, match=words):
        run(party)
    for question in (SHARES, SURVIVORS, UNMASK):
        with pytest.raises(FederationError, match="no keys for this attempt"):
            party.members[TEN[0]].answer(question, party.plan, "{}")


@pytest.mark.parametrize(
    "masking", [{"threshold": 0.3}, {"threshold": 1}, {"clients": 2}, {"limit": 0}, {"bits": 16}, {"max_norm": -1}]
)
def test_a_plan_with_weaker_terms_is_not_even_read(masking: dict[str, Any]) -> None:
    document = json.loads(a_plan(10, size=4).to_json())
    document["masking"] |= masking
    with pytest.raises(FederationError, match="secure aggregation"):
        RoundPlan.from_json(json.dumps(document))


def test_fewer_neighbours_than_clients_agree_to_are_not_taken(tmp_path: Path) -> None:
    party = Party(tmp_path, 24)
    party.begin(a_plan(24, size=party.size, neighbours=2))
    party.shares(party.keys())
    assert {len(json.loads(text)["shares"]) for text in party.said[SHARES].values()} == {23}


def test_terms_that_differ_from_client_to_client_end_the_round(party: Party) -> None:
    """A plan of its own for one client: what it signs, and what others have sealed for it, is another round's."""
    everybody = party.keys(TEN[1:])
    other = replace(party.plan, masking=replace(party.plan.masking, threshold=0.9))  # type: ignore[type-var]
    own = Advert.from_json(party.members[TEN[0]].answer(KEYS, other, "{}"))
    with pytest.raises(Refused, match="not signed for this attempt"):
        party.tally.add_keys(TEN[0], own.to_json())
    adverts = sorted([own, *adverts_from_json(everybody)], key=lambda advert: advert.name)
    with pytest.raises(FederationError, match="not signed for this round"):
        party.members[TEN[0]].answer(SHARES, other, adverts_to_json(adverts))


def test_a_plan_that_changes_in_mid_round_ends_it(party: Party) -> None:
    party.shares(party.keys())
    delivery = party.tally.delivery(TEN[0]).to_json()
    with pytest.raises(FederationError, match="no keys for this attempt"):
        party.members[TEN[0]].collect(replace(party.plan, steps=1), delivery)


def test_survivors_that_do_not_hang_together_are_not_confirmed(tmp_path: Path) -> None:
    """On a sparse graph a coordinator may call all neighbours of a client dropped, and still have more than half."""
    party = Party(tmp_path, 120, size=3)
    victim = party.names[0]
    party.shares(party.keys(), [victim])
    attempt = party.members[victim]._attempt
    assert attempt is not None
    neighbours = party.tally.roster().graph[victim]
    left = tuple(name for name in party.names if name not in neighbours)
    assert len(left) >= party.tally.roster().needed_clients
    # What the others would have sent meanwhile makes no difference here, and takes a while.
    attempt._step, attempt._dealers = Step.MASKED, tuple(party.names)
    with pytest.raises(FederationError, match="do not hang together"):
        attempt.confirm(Survivors(names=left))


def test_a_nonce_works_once(party: Party) -> None:
    party.run()
    with pytest.raises(FederationError, match="not a new one"):
        party.members[TEN[0]].answer(KEYS, party.plan, "{}")


def test_a_client_that_is_started_anew_in_mid_round_has_dropped_out(party: Party) -> None:
    party.shares(party.keys())
    party.start_anew(TEN[0])
    with pytest.raises(FederationError, match="no keys for this attempt"):
        party.members[TEN[0]].collect(party.plan, party.tally.delivery(TEN[0]).to_json())


def test_a_step_is_taken_once(party: Party) -> None:
    party.shares(party.keys())
    party.train()
    with pytest.raises(FederationError, match="does not follow"):
        party.members[TEN[0]].mask(party.plan, party.updates[TEN[0]])


def test_a_round_that_was_unmasked_is_unmasked_again_for_the_same_survivors_alone(party: Party) -> None:
    first = party.run()
    party.begin(a_plan(10, size=party.size, nonce="n2"))
    np.testing.assert_array_equal(party.run(), first)
    party.begin(a_plan(10, size=party.size, nonce="n3"))
    with pytest.raises(FederationError, match="for other survivors"):
        party.run({"train": [TEN[9]]})
    party.begin(a_plan(10, size=party.size, round_number=2, nonce="n4"))
    party.run({"train": [TEN[9]]})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_client_does_not_send_what_is_not_finite(party: Party, value: float) -> None:
    party.shares(party.keys())
    party.updates[TEN[0]][7] = value
    with pytest.raises(TrainingError, match="not finite"):
        party.train([TEN[0]])
    party.train(TEN[1:])
    party.confirm()
    np.testing.assert_array_equal(party.unmask(), party.plain_mean(TEN[1:]))


# A client that cheats is that client's own trouble, or ends the attempt.


def test_what_a_client_says_out_of_order_is_refused_by_name(party: Party) -> None:
    everybody = party.keys()
    other = json.loads(party.said[KEYS][TEN[1]])
    with pytest.raises(Refused, match="in the name of another client"):
        party.tally.add_keys(TEN[0], json.dumps(other))
    party.shares(everybody)
    few = json.loads(party.said[SHARES][TEN[0]])
    few["shares"].popitem()
    with pytest.raises(Refused, match="one each"):
        party.tally.add_shares(TEN[0], json.dumps(few))
    party.tally.delivery(TEN[0])
    with pytest.raises(Refused, match="masked values"):
        party.tally.add_masked(TEN[0], b"NFM1")
    party.train()
    signature = party.identities[TEN[0]].sign(b"something else").hex()
    with pytest.raises(Refused, match="something else than the survivors"):
        party.tally.add_confirmation(TEN[0], json.dumps({"signature": signature}))


def test_shares_that_do_not_give_what_was_promised_end_the_attempt(party: Party) -> None:
    party.shares(party.keys())
    party.train()
    party.confirm()
    request = party.tally.request().to_json()
    for name in TEN:
        told = json.loads(party.members[name].answer(UNMASK, party.plan, request))
        if name == TEN[0]:
            told["seeds"][TEN[5]] = "00" + os.urandom(32).hex()
        party.tally.add_unmasking(name, json.dumps(told))
    with pytest.raises(FederationError, match=r"c005 do not give|do not belong together"):
        party.tally.mean()


def test_an_update_that_is_too_long_shows_in_the_sum(party: Party) -> None:
    party.begin(a_plan(10, size=party.size, max_norm=0.01))
    loose = replace(party.plan.masking, max_norm=1e6)  # type: ignore[type-var]
    everybody = party.keys()
    party.members[TEN[0]]._attempt._terms = loose  # type: ignore[union-attr]  # a client that does not check itself
    party.updates[TEN[0]][:] = 0.2
    party.shares(everybody)
    party.train()
    party.confirm()
    with pytest.raises(FederationError, match="somebody sent a longer one"):
        party.unmask()


def test_a_federation_under_masks_gets_no_bare_update_afterwards(party: Party) -> None:
    bare = replace(party.plan, trust="server", masking=None)
    party.members[TEN[0]].check(bare)
    party.run()
    for plan in (party.plan, replace(party.plan, masking=None)):
        party.members[TEN[0]].check(plan)
    party.start_anew(TEN[0])
    with pytest.raises(FederationError, match="added updates up under masks before"):
        party.members[TEN[0]].check(bare)


# What a site demands


def test_a_site_that_requires_secure_aggregation_refuses_every_other_round() -> None:
    from datetime import datetime

    site = SitePolicy(require=RequireSection(secure_aggregation=True))
    masked, now = a_plan(10, size=4), datetime(2026, 1, 1, 12)
    policy.check(masked, site, now)
    with pytest.raises(FederationError, match="sees this client's update by itself"):
        policy.check(replace(masked, trust="server", masking=None), site, now)
