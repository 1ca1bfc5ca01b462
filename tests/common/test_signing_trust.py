"""The keyring: who is believed, for which team, until when; a revoked key never comes back."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from signed_adapters import write_small_adapter

from neuralforge_common.errors import SignatureError, StorageError
from neuralforge_common.signing.keyring_file import KEYRING, change_keyring, read_keyring
from neuralforge_common.signing.keys import PublicKey, generate_key
from neuralforge_common.signing.sign import sign_adapter
from neuralforge_common.signing.trust import Keyring, Signer
from neuralforge_common.signing.verify import verify_adapter

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEY, OTHER = generate_key("p256"), generate_key("ed25519")
ALICE = Signer(name="alice", key=KEY.public, added=NOW, teams=("acme",), expires=NOW + 30 * DAY)


def trusted(keyring: Keyring, *, team: str | None = None, now: datetime = NOW) -> Signer:
    return keyring.trusted(KEY.public.fingerprint, team=team, now=now)


def test_who_was_added_is_trusted_in_their_team_and_without_one() -> None:
    keyring = Keyring().with_signer(ALICE)
    assert trusted(keyring) is trusted(keyring, team="acme") is ALICE


def test_nobody_is_trusted_from_the_start_and_the_way_out_is_named() -> None:
    with pytest.raises(SignatureError, match=KEY.public.fingerprint) as caught:
        trusted(Keyring())
    assert "neuralforge trust add" in caught.value.hint


def test_a_member_of_one_team_is_none_of_another() -> None:
    keyring = Keyring().with_signer(ALICE)
    with pytest.raises(SignatureError, match="alice is trusted as one of acme, wanted 'evil-corp'"):
        trusted(keyring, team="evil-corp")


def test_a_key_is_trusted_up_to_the_moment_when_it_expires() -> None:
    keyring = Keyring().with_signer(ALICE)
    end = NOW + 30 * DAY
    assert trusted(keyring, now=end - timedelta(seconds=1)) is ALICE
    with pytest.raises(SignatureError, match="the key of alice expired on 2026-07-01"):
        trusted(keyring, now=end)


def test_a_revoked_key_is_refused_and_never_comes_back() -> None:
    keyring = Keyring().with_signer(ALICE).without("alice", now=NOW + DAY, reason="laptop stolen")
    with pytest.raises(SignatureError, match="the key of alice was revoked on 2026-06-02: laptop stolen"):
        trusted(keyring)
    with pytest.raises(SignatureError, match="that is for good"):
        keyring.with_signer(ALICE)
    with pytest.raises(SignatureError, match="no such name or fingerprint is trusted: 'alice'"):
        keyring.without("alice", now=NOW, reason="")


def test_a_key_is_revoked_by_its_fingerprint_as_well() -> None:
    keyring = Keyring().with_signer(ALICE)
    for who in (KEY.public.fingerprint, f"sha256:{KEY.public.fingerprint}"):
        with pytest.raises(SignatureError, match="revoked"):
            trusted(keyring.without(who, now=NOW, reason=""))


def test_a_name_is_one_keys_until_that_is_revoked() -> None:
    keyring = Keyring().with_signer(ALICE)
    second = Signer(name="alice", key=OTHER.public, added=NOW)
    with pytest.raises(SignatureError, match=f"alice is trusted with another key, sha256:{KEY.public.fingerprint}"):
        keyring.with_signer(second)
    after = keyring.without("alice", now=NOW, reason="").with_signer(second)
    assert after.trusted(OTHER.public.fingerprint, team=None, now=NOW) is second
    bob = Keyring((ALICE, Signer(name="bob", key=OTHER.public, added=NOW)))
    with pytest.raises(SignatureError, match="alice is trusted with another key"):
        bob.with_signer(second)


def test_adding_a_key_again_renews_it_and_keeps_its_teams_unless_others_are_named() -> None:
    keyring = Keyring().with_signer(ALICE)
    renewed = keyring.with_signer(Signer(name="alice", key=KEY.public, added=NOW))
    assert renewed.signers == (Signer(name="alice", key=KEY.public, added=NOW, teams=("acme",)),)
    moved = renewed.with_signer(Signer(name="alice", key=KEY.public, added=NOW, teams=("other",)))
    assert moved.signers[0].teams == ("other",)


@pytest.mark.parametrize("word", ["", "a b", "-x", "a\nb", "a/b", "x" * 101])
def test_names_and_teams_are_plain_words(word: str) -> None:
    with pytest.raises(SignatureError, match="wanted a name"):
        Signer(name=word, key=KEY.public, added=NOW)
    with pytest.raises(SignatureError, match="wanted a team"):
        Signer(name="x", key=KEY.public, added=NOW, teams=(word,))


def test_an_adapter_of_somebody_revoked_is_refused_at_the_signer(tmp_path: Path) -> None:
    folder = write_small_adapter(tmp_path / "x.lora")
    sign_adapter(folder, KEY)
    keyring = Keyring().with_signer(ALICE)

    def trust(fingerprint: str) -> PublicKey:
        return keyring.trusted(fingerprint, team="acme", now=NOW).key

    assert verify_adapter(folder, trust).key == KEY.public
    keyring = keyring.without("alice", now=NOW, reason="")
    with pytest.raises(SignatureError, match="step 2 of 6, signer: the key of alice was revoked") as caught:
        verify_adapter(folder, trust)
    assert (caught.value.step, caught.value.fingerprint) == ("signer", KEY.public.fingerprint)


def test_a_keyring_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "home" / KEYRING
    assert read_keyring(path) == Keyring()
    bob = Signer(name="bob", key=OTHER.public, added=NOW, revoked=NOW + DAY, reason="left, für immer")
    change_keyring(path, lambda keyring: keyring.with_signer(ALICE))
    change_keyring(path, lambda keyring: Keyring((*keyring.signers, bob)))
    assert read_keyring(path).signers == (ALICE, bob)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / KEYRING
    signers = [Signer(name=f"n{i}", key=generate_key("ed25519").public, added=NOW) for i in range(12)]
    threads = [
        threading.Thread(target=change_keyring, args=(path, lambda keyring, one=one: keyring.with_signer(one)))
        for one in signers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {signer.name for signer in read_keyring(path).signers} == {signer.name for signer in signers}


def test_a_change_that_is_refused_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / KEYRING
    change_keyring(path, lambda keyring: keyring.with_signer(ALICE))
    before = path.read_bytes()
    with pytest.raises(SignatureError):
        change_keyring(path, lambda keyring: keyring.without("nobody", now=NOW, reason=""))
    assert path.read_bytes() == before


def test_a_keyring_that_others_may_change_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / KEYRING
    change_keyring(path, lambda keyring: keyring.with_signer(ALICE))
    path.chmod(0o644)  # as a team shares it
    assert read_keyring(path).signers == (ALICE,)
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(StorageError, match="others than its owner may change it"):
            read_keyring(path)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda d: d.update(format=2), "wanted format 1"),
        (lambda d: d.update(signers={}), "wanted format 1 with a list"),
        (lambda d: d["signers"].append(d["signers"][0]), "a key stands there twice"),
        (lambda d: d["signers"][0].pop("revoked"), "signer 1: wanted added, expires"),
        (lambda d: d["signers"][0].update(key="x"), "signer 1: it holds no public key"),
        (lambda d: d["signers"][0].update(key=7), "signer 1: name, key, reason"),
        (lambda d: d["signers"][0].update(teams="acme"), "signer 1: name, key, reason and each of teams"),
        (lambda d: d["signers"][0].update(name="a b"), "wanted a name of letters"),
        (lambda d: d["signers"][0].update(revoked=False), "signer 1: wanted a time"),
        (lambda d: d["signers"][0].update(expires="2026-02-31T00:00:00Z"), "is damaged: day"),
        (lambda d: d["signers"][0].update(added=None), "signer 1: added"),
    ],
)
def test_a_damaged_keyring_is_refused_and_not_taken_for_an_empty_one(
    tmp_path: Path, change: object, refusal: str
) -> None:
    path = tmp_path / KEYRING
    change_keyring(path, lambda keyring: keyring.with_signer(ALICE))
    document = json.loads(path.read_text())
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(StorageError, match=refusal):
        read_keyring(path)
