"""One attempt at a round under masks, from one client's side: its secrets, and steps that are taken once, in order.

    advert → deal → collect → mask → confirm → reveal

A fault anywhere ends the attempt: its keys are gone, and nothing more is said in it. The numbers in `reveal` and before
are the checks without which a coordinator could unmask a single client (Bonawitz et al. 2017, §6.2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.fixed_point import FixedPoint, pack
from neuralforge_common.secagg.graph import is_connected
from neuralforge_common.secagg.keys import (
    KEY_BYTES,
    agreed_key,
    commitment,
    derived_key,
    is_signed,
    public_bytes,
    seal,
    unseal,
)
from neuralforge_common.secagg.masks import Mask, apply_masks
from neuralforge_common.secagg.messages import Advert, Delivery, Sealed, Survivors, Unmasking, UnmaskRequest
from neuralforge_common.secagg.roster import Roster, keys_statement, survivors_statement
from neuralforge_common.secagg.shamir import SHARE_BYTES, split
from neuralforge_common.secagg.terms import MaskingTerms


class Step(IntEnum):
    """How far an attempt has come."""

    ADVERTISED = 0
    DEALT = 1
    COLLECTED = 2
    MASKED = 3
    CONFIRMED = 4
    OVER = 5


@dataclass(slots=True, kw_only=True)
class _Secrets:
    mask_key: X25519PrivateKey
    seal_key: X25519PrivateKey
    seed: bytes


class MaskedRound:
    """The secrets of one attempt and what may be done with them; `advert` is what the others are told first.

    Every step raises FederationError where what it is given is not what an honest coordinator gives.
    """

    def __init__(self, plan: RoundPlan, terms: MaskingTerms, *, name: str, identity: Ed25519PrivateKey) -> None:
        self.plan = plan
        self.digest = plan.digest
        self._terms = terms
        self._name = name
        self._identity = identity
        # Private halves and seed never leave memory: a client that is started again in mid-round has dropped out.
        self._secrets: _Secrets | None = _Secrets(
            mask_key=X25519PrivateKey.generate(), seal_key=X25519PrivateKey.generate(), seed=os.urandom(KEY_BYTES)
        )
        self._step = Step.ADVERTISED
        self._roster: Roster | None = None
        self._dealers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()
        self._held: dict[str, tuple[bytes, bytes]] = {}
        unsigned = Advert(
            name=name,
            identity=public_bytes(identity),
            mask_key=public_bytes(self._own.mask_key),
            seal_key=public_bytes(self._own.seal_key),
            promise=commitment(self._own.seed, name),
            signature=b"",
        )
        self.advert = replace(unsigned, signature=identity.sign(keys_statement(self.digest, unsigned)))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whom this client has confirmed; empty before."""
        return self._survivors

    def deal(self, adverts: tuple[Advert, ...]) -> Sealed:
        """Shares of this client's two secrets, sealed for each of its neighbours; the pins were checked before."""
        with self._taking(Step.ADVERTISED, Step.DEALT):
            # Counts, names, keys that stand there twice and signatures are the roster's own business.
            roster = Roster(
                round=self.plan.round,
                nonce=self.plan.nonce,
                plan_digest=self.digest,
                terms=self._terms,
                adverts=adverts,
            )
            if roster.by_name.get(self._name) != self.advert:
                raise FederationError("the coordinator shows others another key than this client's own")
            self._roster = roster
            return Sealed(shares=self._sealed(roster))

    def collect(self, delivery: Delivery) -> None:
        """Open the shares that the neighbours have dealt to this client."""
        with self._taking(Step.DEALT, Step.COLLECTED):
            roster, dealers = self._seen, set(delivery.dealers)
            if not dealers <= set(roster.names) or self._name not in dealers:
                raise FederationError("the shares are not from the clients of this round")
            if len(dealers) < roster.needed_clients:
                raise FederationError(f"{len(dealers)} clients have dealt shares, {roster.needed_clients} are needed")
            if delivery.shares.keys() != roster.graph[self._name] & dealers:
                raise FederationError("the shares are not those of this client's neighbours")
            for sender, sealed in delivery.shares.items():
                key = agreed_key(
                    self._own.seal_key,
                    roster.by_name[sender].seal_key,
                    "sealed shares",
                    roster.view,
                    (sender, self._name),
                )
                opened = unseal(key, sealed, roster.view, sender=sender, receiver=self._name)
                self._held[sender] = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
            self._dealers = delivery.dealers

    def mask(self, vector: FloatArray) -> bytes:
        """The update (count,) as it may leave: fixed point, a mask for each neighbour that dealt, and one of its own.

        One that is longer than the plan allows is made as long as it does.

        Raises:
            TrainingError: it holds values that are not finite.
        """
        with self._taking(Step.COLLECTED, Step.MASKED):
            roster = self._seen
            words = FixedPoint.of(self._terms).encode(self._no_longer(vector))
            masks = [Mask(derived_key(self._own.seed, "own mask", roster.view, (self._name,)), True)]
            for other in sorted(roster.graph[self._name] & set(self._dealers)):
                first, second = sorted((self._name, other))
                key = agreed_key(
                    self._own.mask_key, roster.by_name[other].mask_key, "pair mask", roster.view, (first, second)
                )
                masks.append(Mask(key, first == self._name))
            apply_masks(words, masks)
            self._secrets = None  # all that is still to be said are signatures and what others have dealt
            return pack(words)

    def confirm(self, survivors: Survivors) -> bytes:
        """Sign the one set of survivors that this client will ever help to unmask in this attempt."""
        with self._taking(Step.MASKED, Step.CONFIRMED):
            roster, names = self._seen, survivors.names
            if self._name not in names or not set(names) <= set(self._dealers):
                raise FederationError("the survivors are not clients that have dealt shares, this one among them")
            if len(names) < roster.needed_clients:
                raise FederationError(
                    f"asked to unmask the sum of {len(names)} clients, this client agrees to {roster.needed_clients} "
                    "or more of this round"
                )
            if not is_connected(roster.graph, names):
                raise FederationError("the survivors do not hang together: their parts could be unmasked one by one")
            self._survivors = names
            return self._identity.sign(survivors_statement(roster.view, self._dealers, names))

    def reveal(self, request: UnmaskRequest) -> Unmasking:
        """This client's shares: of each survivor's seed, of each other dealer's mask key, of nobody's both."""
        with self._taking(Step.CONFIRMED, Step.OVER):
            roster = self._seen
            survivors, dropped = set(request.survivors), set(request.dropped)
            # 1. Nobody is in both lists: seed and mask key together would lay a single update open.
            if both := survivors & dropped:
                raise FederationError(f"both secrets of {', '.join(sorted(both))} are asked for")
            # 2. The survivors are those that this client has signed for, the dropped ones all others who dealt.
            if request.survivors != self._survivors or dropped != set(self._dealers) - survivors:
                raise FederationError("the survivors are not those that this client has signed for")
            # 3. So have enough others, and the very same set: more than half, so that there is no second one.
            statement = survivors_statement(roster.view, self._dealers, request.survivors)
            for name, signature in request.signatures.items():
                if name not in survivors or not is_signed(roster.by_name[name].identity, signature, statement):
                    raise FederationError(f"{name} has not signed this set of survivors: it was shown another one")
            if len(request.signatures) < roster.needed_clients:
                raise FederationError(
                    f"{len(request.signatures)} clients have signed the set of survivors, "
                    f"{roster.needed_clients} are needed"
                )
            return Unmasking(
                seeds={name: shares[0] for name, shares in self._held.items() if name in survivors},
                mask_keys={name: shares[1] for name, shares in self._held.items() if name in dropped},
            )

    @property
    def _own(self) -> _Secrets:
        if self._secrets is None:
            raise FederationError("this attempt is over for this client: its keys are gone")
        return self._secrets

    @property
    def _seen(self) -> Roster:
        if self._roster is None:
            raise FederationError("this client has not been told who takes part")
        return self._roster

    def _no_longer(self, vector: FloatArray) -> FloatArray:
        # Not refused: whoever may choose the bound anew with each attempt would learn the length from who refuses.
        length, most = float(np.linalg.norm(vector.astype(np.float64))), self._terms.max_norm
        if not most < length < np.inf:
            return vector
        # A millionth shorter, as float32 rounds.
        return (vector * np.float32((1 - 1e-6) * most / length)).astype(np.float32)

    def _sealed(self, roster: Roster) -> dict[str, bytes]:
        needed, own = roster.needed_shares(self._name), self._own
        points = {holder: roster.point(holder) for holder in roster.holders(self._name)}
        seeds = split(own.seed, points.values(), needed)
        mask_keys = split(own.mask_key.private_bytes_raw(), points.values(), needed)
        sealed = {}
        for holder, point in points.items():
            shares = seeds[point], mask_keys[point]
            if holder == self._name:
                self._held[holder] = shares
                continue
            parties = self._name, holder
            key = agreed_key(own.seal_key, roster.by_name[holder].seal_key, "sealed shares", roster.view, parties)
            sealed[holder] = seal(key, b"".join(shares), roster.view, sender=self._name, receiver=holder)
        return sealed

    @contextmanager
    def _taking(self, before: Step, after: Step) -> Iterator[None]:
        found, self._step = self._step, Step.OVER
        try:
            if found is not before:
                raise FederationError(f"this step does not follow: the attempt stands at {found.name.lower()}")
            yield
            self._step = after
        finally:
            if self._step is Step.OVER:
                self._secrets = None
                self._held.clear()
