"""A secret of 32 bytes dealt out so that any `threshold` of its shares give it back, and fewer tell nothing at all.

Shamir 1979, "How to Share a Secret": the secret is f(0) of a random polynomial of degree threshold − 1 over the prime
field of 2²⁵⁶ + 297, a share is f(x) at its holder's point x ≥ 1. Fewer shares leave every secret equally likely. Shares
are not authenticated here: they travel sealed, and what comes of them is compared with what was promised for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping

from neuralforge_common.errors import FederationError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, points: Iterable[int], threshold: int, *, below: Callable[[int], int] = secrets.randbelow
) -> dict[int, bytes]:
    """Deal a secret out: point → share. `below(n)` draws from [0, n) and must be a cryptographic source.

    Raises:
        FederationError: not 32 bytes, points that repeat or are out of the field, fewer of them than the threshold.
    """
    places = list(points)
    if len(secret) != SECRET_BYTES:
        raise FederationError(f"wanted a secret of {SECRET_BYTES} bytes, got {len(secret)}")
    if not 1 <= threshold <= len(places) or len(set(places)) != len(places) or not all(0 < x < PRIME for x in places):
        raise FederationError(f"a secret cannot be dealt out to {len(places)} points with a threshold of {threshold}")
    polynomial = [int.from_bytes(secret, "big"), *(below(PRIME) for _ in range(threshold - 1))]
    shares = {}
    for x in places:
        value = 0
        for coefficient in reversed(polynomial):  # Horner's rule
            value = (value * x + coefficient) % PRIME
        shares[x] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of `threshold` shares (the first ones, where there are more): f(0) by Lagrange's formula.

    Raises:
        FederationError: too few shares, a share out of the field, or shares that no secret has.
    """
    if len(shares) < threshold:
        raise FederationError(f"wanted {threshold} shares of a secret, got {len(shares)}")
    chosen = {x: int.from_bytes(shares[x], "big") for x in sorted(shares)[:threshold]}
    if any(len(shares[x]) != SHARE_BYTES or value >= PRIME or not 0 < x < PRIME for x, value in chosen.items()):
        raise FederationError("a share is not one that this program deals out")
    secret = 0
    for x, value in chosen.items():
        above, below = 1, 1
        for other in chosen:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise FederationError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")
