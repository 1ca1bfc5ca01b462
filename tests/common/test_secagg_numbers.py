"""Shamir's shares and fixed point: what comes back is what went in, to the last bit or to half a step."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.errors import FederationError, TrainingError
from neuralforge_common.secagg.fixed_point import FixedPoint, pack, packed_size, unpack
from neuralforge_common.secagg.shamir import PRIME, SECRET_BYTES, combine, split
from neuralforge_common.secagg.terms import MaskingTerms
from neuralforge_server.secagg.terms import masking_terms

# Shamir


@given(secret=st.binary(min_size=32, max_size=32), threshold=st.integers(1, 7), more=st.integers(0, 5), data=st.data())
def test_any_threshold_of_the_shares_give_the_secret(
    secret: bytes, threshold: int, more: int, data: st.DataObject
) -> None:
    points = data.draw(
        st.lists(st.integers(1, 10_000), min_size=threshold + more, max_size=threshold + more, unique=True)
    )
    shares = split(secret, points, threshold)
    chosen = data.draw(st.permutations(points))[: threshold + data.draw(st.integers(0, more))]
    assert combine({x: shares[x] for x in chosen}, threshold) == secret


@given(secret=st.binary(min_size=32, max_size=32), other=st.binary(min_size=32, max_size=32))
def test_one_share_less_fits_every_secret_equally_well(secret: bytes, other: bytes) -> None:
    """With the 3 shares that are known and any secret there is a fourth share that belongs to them."""
    shares = split(secret, [1, 2, 3, 4], 4)
    known = {x: int.from_bytes(shares[x], "big") for x in (1, 2, 3)}
    points = {0: int.from_bytes(other, "big")} | known
    fourth = 0
    for x, value in points.items():
        for y in points:
            if y != x:
                value = value * (4 - y) * pow(x - y, -1, PRIME) % PRIME
        fourth = (fourth + value) % PRIME
    assert combine({**{x: shares[x] for x in known}, 4: fourth.to_bytes(33, "big")}, 4) == other


def test_the_same_secret_is_dealt_out_differently_each_time() -> None:
    secret = secrets.token_bytes(32)
    assert split(secret, [1, 2], 2)[1] != split(secret, [1, 2], 2)[1]


def test_the_field_is_that_of_a_prime_above_every_secret() -> None:
    from Crypto.Util.number import isPrime

    assert isPrime(PRIME)
    assert PRIME > 2 ** (8 * SECRET_BYTES)


@pytest.mark.parametrize(("points", "threshold"), [([0, 1], 2), ([1, 1], 2), ([1], 2), ([1, PRIME], 2), ([1], 0)])
def test_what_cannot_be_dealt_out_is_refused(points: list[int], threshold: int) -> None:
    with pytest.raises(FederationError):
        split(bytes(32), points, threshold)


def test_shares_that_are_none_or_of_another_secret_are_refused() -> None:
    shares = split(b"\xff" * 32, [1, 2, 3], 2)
    for bad in (b"\xff" * 33, shares[1][:-1]):
        with pytest.raises(FederationError):
            combine({1: bad, 2: shares[2]}, 2)
    with pytest.raises(FederationError, match="wanted 2 shares"):
        combine({1: shares[1]}, 2)


# Fixed point


@pytest.mark.parametrize("clients", [3, 10, 50, 1000, 10_000])
@pytest.mark.parametrize("learning_rate", [3e-4, 3e-3, 3e-2])
def test_an_update_with_sigma_of_1e_4_is_off_by_less_than_a_thousandth(clients: int, learning_rate: float) -> None:
    terms = masking_terms(
        asked=clients, steps=50, learning_rate=learning_rate, max_norm=1e3, threshold=0.5, neighbours=None
    )
    form = FixedPoint.of(terms)
    update = (1e-4 * np.random.default_rng(0).standard_normal(20_000)).astype(np.float32)
    error = form.decode(form.encode(update)) - update
    assert np.linalg.norm(error) <= 1e-3 * np.linalg.norm(update)
    assert np.abs(error).max() <= 1e-3 * 1e-4


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clients", [3, 7, 10_000])
def test_no_sum_of_so_many_clients_overflows(bits: int, clients: int) -> None:
    form = FixedPoint(limit=0.3, clients=clients, bits=bits)  # type: ignore[arg-type]
    for extreme in (np.float32(np.finfo(np.float32).max), np.float32(-1e30), np.float32(0.3)):
        word = form.encode(np.full(1, extreme, np.float32))
        largest = int(word.view(f"<i{bits // 8}")[0])
        assert abs(largest) == form.largest
        assert abs(clients * largest) < 2 ** (bits - 1)
        total = np.array([clients * largest % 2**bits], form.dtype)
        assert form.decode(total)[0] == pytest.approx(np.sign(extreme) * clients * 0.3, rel=1e-7)


def test_what_adam_can_do_in_the_steps_of_a_plan_is_not_cut() -> None:
    """The worst that Adam does in a step is (1 − β₁)/√(1 − β₂) learning rates (Kingma & Ba 2015, §2.1)."""
    terms = masking_terms(asked=5, steps=20, learning_rate=1e-3, max_norm=1e3, threshold=0.5, neighbours=None)
    assert terms.limit >= 20 * 1e-3 * (1 - 0.9) / np.sqrt(1 - 0.999)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(value: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        FixedPoint(limit=1.0, clients=3, bits=32).encode(np.array([0, value], np.float32))


def test_words_come_back_and_no_other_bytes_are_taken_for_them() -> None:
    form = FixedPoint.of(MaskingTerms(clients=3, limit=1.0, max_norm=1.0))
    words = form.encode(np.linspace(-1, 1, 9).astype(np.float32))
    data = pack(words)
    assert len(data) == packed_size(9, 32)
    np.testing.assert_array_equal(unpack(data, count=9, form=form), words)
    for bad in (
        data[:-1],
        data + b"\0",
        b"NFW1" + data[4:],
        data[:4] + b"\x40" + data[5:],
        data[:6] + b"\1" + data[7:],
    ):
        with pytest.raises(FederationError):
            unpack(bad, count=9, form=form)
    with pytest.raises(FederationError):
        unpack(data, count=8, form=form)
