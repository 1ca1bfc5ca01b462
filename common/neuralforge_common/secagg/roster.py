"""Everybody who takes part in one attempt, with their keys: the one list on which all of them have to agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from neuralforge_common.errors import FederationError
from neuralforge_common.secagg.graph import fewest_neighbours, graph_of, needed
from neuralforge_common.secagg.keys import SUITE, View, framed, is_signed
from neuralforge_common.secagg.messages import Advert
from neuralforge_common.secagg.terms import FEWEST, MaskingTerms


def keys_statement(plan_digest: bytes, advert: Advert) -> bytes:
    """What a client signs of its keys; the plan's digest covers federation, round, nonce and terms."""
    return framed(SUITE, "keys", plan_digest, advert.name, advert.mask_key, advert.seal_key, advert.promise)


def survivors_statement(view: View, dealers: Sequence[str], survivors: Sequence[str]) -> bytes:
    """What a client signs of the survivors: with them, the attempt and who had dealt shares."""
    return framed(SUITE, "survivors", view.digest, framed(*dealers), framed(*survivors))


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The clients of an attempt by name, what follows from their keys, and how many of them it takes for what.

    Raises:
        FederationError: too few or too many; a name or a key that stands there twice; a signature that does not hold.
    """

    round: int
    nonce: str
    plan_digest: bytes
    terms: MaskingTerms
    adverts: tuple[Advert, ...]

    def __post_init__(self) -> None:
        count = len(self.adverts)
        if not FEWEST <= count <= self.terms.clients:
            raise FederationError(f"wanted the keys of {FEWEST} to {self.terms.clients:,} clients, got {count:,}")
        if list(self.names) != sorted(self.names):
            raise FederationError("the clients of a round stand in the order of their names")
        for what in ("name", "identity", "mask_key", "seal_key"):
            if len({getattr(advert, what) for advert in self.adverts}) != count:
                raise FederationError(f"two clients of the round have the same {what.replace('_', ' ')}")
        for advert in self.adverts:
            if not is_signed(advert.identity, advert.signature, keys_statement(self.plan_digest, advert)):
                raise FederationError(f"the keys of {advert.name} were not signed for this round by its identity")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Everybody, in order."""
        return tuple(advert.name for advert in self.adverts)

    @cached_property
    def by_name(self) -> dict[str, Advert]:
        """Name → keys."""
        return {advert.name: advert for advert in self.adverts}

    @cached_property
    def view(self) -> View:
        """The attempt with a digest of the plan and of every key."""
        parts: Iterable[bytes | str] = (
            part
            for advert in self.adverts
            for part in (advert.name, advert.identity, advert.mask_key, advert.seal_key, advert.promise)
        )
        digest = hashlib.sha256(framed(SUITE, "roster", self.plan_digest, *parts)).digest()
        return View(round=self.round, nonce=self.nonce, digest=digest)

    @cached_property
    def graph(self) -> dict[str, frozenset[str]]:
        """Who shares secrets and masks with whom."""
        count = len(self.adverts)
        return graph_of(self.names, max(self.terms.neighbours, fewest_neighbours(count)), self.view.digest)

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds a share of a client's secrets: its neighbours, and itself."""
        return tuple(sorted(self.graph[name] | {name}))

    def point(self, name: str) -> int:
        """Where the polynomials of shares are read for a client, from 1 on."""
        return 1 + self.names.index(name)

    def needed_shares(self, name: str) -> int:
        """How many shares give a client's secret back."""
        return needed(self.terms.threshold, len(self.graph[name]) + 1)

    @property
    def needed_clients(self) -> int:
        """How many must have dealt shares, sent an update and signed the survivors."""
        return needed(self.terms.threshold, len(self.adverts))
