"""Masks cancel, hide, and have 256 bits; the attack that guesses a weak generator's mask does not guess ours."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.errors import FederationError
from neuralforge_common.secagg.fixed_point import FixedPoint, Words
from neuralforge_common.secagg.keys import View, agreed_key, derived_key, fingerprint, public_bytes, seal, unseal
from neuralforge_common.secagg.masks import Mask, apply_masks

VIEW = View(round=1, nonce="n1", digest=bytes(32))
FORM = FixedPoint(limit=0.1, clients=10, bits=32)


@given(size=st.integers(0, 200_000), bits=st.sampled_from([32, 64]), count=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_mask_that_is_added_and_taken_away_leaves_nothing(size: int, bits: int, count: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**bits, size, dtype=f"<u{bits // 8}")
    masked = words.copy()
    masks = [Mask(os.urandom(32), bool(number % 2)) for number in range(count)]
    apply_masks(masked, masks)
    assert count == 0 or size < 8 or not np.array_equal(masked, words)
    apply_masks(masked, [mask.undone for mask in reversed(masks)])
    np.testing.assert_array_equal(masked, words)


def test_two_clients_derive_one_key_and_what_they_put_on_cancels() -> None:
    ann, bob = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    one = agreed_key(ann, public_bytes(bob), "pair mask", VIEW, ("ann", "bob"))
    assert one == agreed_key(bob, public_bytes(ann), "pair mask", VIEW, ("ann", "bob"))
    first, second = np.full(100_000, 7, np.uint32), np.full(100_000, 5, np.uint32)
    apply_masks(first, [Mask(one, True)])
    apply_masks(second, [Mask(one, False)])
    np.testing.assert_array_equal(first + second, np.full(100_000, 12, np.uint32))


def test_another_round_nonce_party_or_purpose_is_another_key() -> None:
    ann, bob = X25519PrivateKey.generate(), public_bytes(X25519PrivateKey.generate())
    keys = {
        agreed_key(ann, bob, "pair mask", VIEW, ("ann", "bob")),
        agreed_key(ann, bob, "pair mask", VIEW, ("bob", "ann")),
        agreed_key(ann, bob, "pair mask", VIEW, ("an", "nbob")),
        agreed_key(ann, bob, "sealed shares", VIEW, ("ann", "bob")),
        agreed_key(ann, bob, "pair mask", View(round=2, nonce="n1", digest=bytes(32)), ("ann", "bob")),
        agreed_key(ann, bob, "pair mask", View(round=1, nonce="n2", digest=bytes(32)), ("ann", "bob")),
        agreed_key(ann, bob, "pair mask", View(round=1, nonce="n1", digest=b"\1" * 32), ("ann", "bob")),
    }
    assert len(keys) == 7


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), b"short"])
def test_a_public_key_with_which_every_secret_is_zero_is_refused(public: bytes) -> None:
    with pytest.raises(FederationError, match="no secret"):
        agreed_key(X25519PrivateKey.generate(), public, "pair mask", VIEW, ("ann", "bob"))


@pytest.mark.parametrize("change", ["sender", "receiver", "view", "key", "bit", "length"])
def test_what_was_sealed_opens_for_its_receiver_in_its_round_alone(change: str) -> None:
    key = os.urandom(32)
    sealed = seal(key, b"shares", VIEW, sender="ann", receiver="bob")
    assert unseal(key, sealed, VIEW, sender="ann", receiver="bob") == b"shares"
    other = View(round=1, nonce="n2", digest=bytes(32))
    with pytest.raises(FederationError, match="changed on their way"):
        unseal(
            os.urandom(32) if change == "key" else key,
            {"bit": bytes([sealed[0] ^ 1]) + sealed[1:], "length": sealed[:3]}.get(change, sealed),
            other if change == "view" else VIEW,
            sender="eve" if change == "sender" else "ann",
            receiver="eve" if change == "receiver" else "bob",
        )


def test_fingerprints_are_of_128_bits_and_a_bit_changes_them() -> None:
    key = os.urandom(32)
    assert len(fingerprint(key).replace("-", "")) == 32
    assert fingerprint(key) != fingerprint(bytes([key[0] ^ 1]) + key[1:])


# Entropy. A coordinator that knows one bit of a client's mask key too few cannot take its mask off.


def test_every_one_of_the_256_bits_of_a_secret_counts() -> None:
    """No step between secret and mask shortens it: seeds of 28 bits are what made masks guessable elsewhere."""
    secret = os.urandom(32)
    streams = {_stream(derived_key(secret, "own mask", VIEW, ("ann",)))}
    for bit in range(256):
        other = bytearray(secret)
        other[bit // 8] ^= 1 << bit % 8
        streams.add(_stream(derived_key(bytes(other), "own mask", VIEW, ("ann",))))
        key = bytearray(secret)
        key[bit // 8] ^= 1 << bit % 8
        streams.add(_stream(bytes(key)))
    assert len(streams) == 1 + 2 * 256


def _stream(key: bytes) -> bytes:
    words = np.zeros(4, np.uint32)
    apply_masks(words, [Mask(key, True)])
    return words.tobytes()


def guess(masked: Words, unmask: Callable[[int], Words]) -> list[int]:
    """The known attack: take off the mask of each seed that can be, and look for values as small as updates are."""
    return [seed for seed in range(2**12) if (np.abs(unmask(seed).view("<i4")) <= FORM.largest).all()]


def test_a_mask_from_a_short_seed_is_guessed_and_ours_is_not() -> None:
    update = (1e-4 * np.random.default_rng(0).standard_normal(64)).astype(np.float32)
    words = FORM.encode(update)

    # The negative control: a Mersenne Twister under a short seed, as in a known implementation.
    weak = words + np.random.RandomState(1234).randint(0, 2**32, 64, np.uint32)
    found = guess(weak, lambda seed: weak - np.random.RandomState(seed).randint(0, 2**32, 64, np.uint32))
    assert found == [1234]
    recovered = FORM.decode(weak - np.random.RandomState(1234).randint(0, 2**32, 64, np.uint32))
    np.testing.assert_allclose(recovered, update, atol=1e-8)

    # The same attack with as many guesses at a key of 256 bits.
    strong = words.copy()
    apply_masks(strong, [Mask(os.urandom(32), True)])

    def unmask(seed: int) -> Words:
        tried = strong.copy()
        apply_masks(tried, [Mask(seed.to_bytes(32, "big"), False)])
        return tried

    assert guess(strong, unmask) == []
