"""One attempt at a round under masks, as the coordinator keeps it: what clients have said, what they are told next.

It knows no network and no secret. A reply that is not in order is refused by name, before anybody else is shown it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError, NeuralForgeError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.fixed_point import FixedPoint
from neuralforge_common.secagg.keys import gives_secrets, is_signed
from neuralforge_common.secagg.messages import Advert, Confirmation, Delivery, Sealed, Unmasking, UnmaskRequest
from neuralforge_common.secagg.roster import Roster, keys_statement, survivors_statement
from neuralforge_common.secagg.terms import FEWEST
from neuralforge_server.admission import Refused
from neuralforge_server.secagg.unmasking import MaskedSum, left_masks

Said = TypeVar("Said")


class TooFew(Exception):
    """Not enough clients are left for the attempt to go on."""

    def __init__(self, stage: str, got: int, wanted: int) -> None:
        super().__init__(f"{stage}: {got} clients are left, {wanted} are needed")
        self.got = got
        self.wanted = wanted


class Tally:
    """The stages of one attempt: add what comes, then ask for what goes out; `needed` updates must come at the least.

    `registered` are the identities that clients joined with, None where nobody keeps them. What is added raises
    Refused; what goes out raises TooFew.
    """

    def __init__(self, plan: RoundPlan, *, size: int, needed: int, registered: Mapping[str, bytes] | None) -> None:
        if plan.masking is None:
            raise FederationError("the plan says nothing of masks")
        self._plan = plan
        self._terms = plan.masking
        self._digest = plan.digest
        self._needed = needed
        self._registered = registered
        self._adverts: dict[str, Advert] = {}
        self._roster: Roster | None = None
        self._sealed: dict[str, Mapping[str, bytes]] = {}
        self._sum = MaskedSum(size, FixedPoint.of(self._terms))
        self._arrived: list[str] = []
        self._signatures: dict[str, bytes] = {}
        self._shares: dict[str, Unmasking] = {}

    def add_keys(self, client: str, text: str) -> None:
        """A client's public keys."""
        advert = _read(Advert.from_json, text)
        if advert.name != client:
            raise Refused("identity", "the keys are in the name of another client")
        if self._registered is not None and self._registered.get(client) != advert.identity:
            raise Refused("identity", "this client shows another identity than the one that it joined with")
        if not is_signed(advert.identity, advert.signature, keys_statement(self._digest, advert)):
            raise Refused("signature", "the keys are not signed for this attempt")
        # With such a one every other client would have to give up.
        if not (gives_secrets(advert.mask_key) and gives_secrets(advert.seal_key)):
            raise Refused("keys", "a public key with which nobody can agree on a secret")
        self._adverts[client] = advert

    def roster(self) -> Roster:
        """Everybody's keys, for everybody; closed with the first call."""
        if self._roster is None:
            count, wanted = len(self._adverts), max(self._needed, FEWEST)
            if count < wanted:
                raise TooFew("keys", count, wanted)
            adverts = tuple(self._adverts[name] for name in sorted(self._adverts))
            self._roster = Roster(
                round=self._plan.round,
                nonce=self._plan.nonce,
                plan_digest=self._digest,
                terms=self._terms,
                adverts=adverts,
            )
        return self._roster

    def add_shares(self, client: str, text: str) -> None:
        """A client's shares, sealed for its neighbours."""
        sealed = _read(Sealed.from_json, text).shares
        if sealed.keys() != self.roster().graph[client]:
            raise Refused("shares", "the shares are not for this client's neighbours, one each")
        self._sealed[client] = sealed

    def delivery(self, client: str) -> Delivery:
        """Who has dealt shares, and those for one of them."""
        dealers = self._dealers
        self._check("shares", len(dealers))
        neighbours = self.roster().graph[client]
        return Delivery(
            dealers=dealers, shares={name: self._sealed[name][client] for name in dealers if name in neighbours}
        )

    def add_masked(self, client: str, data: bytes) -> None:
        """A client's update under its masks."""
        if client not in self._sealed:
            raise Refused("shares", "this client has dealt no shares in this attempt")
        try:
            self._sum.add(data)
        except FederationError as fault:
            raise Refused("shape", fault.message) from fault
        self._arrived.append(client)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum; raises TooFew."""
        self._check("updates", len(self._arrived))
        return tuple(sorted(self._arrived))

    def add_confirmation(self, client: str, text: str) -> None:
        """A client's signature under the survivors."""
        signature = _read(Confirmation.from_json, text).signature
        roster = self.roster()
        statement = survivors_statement(roster.view, self._dealers, self.survivors)
        if not is_signed(roster.by_name[client].identity, signature, statement):
            raise Refused("signature", "this client has signed something else than the survivors")
        self._signatures[client] = signature

    def request(self) -> UnmaskRequest:
        """What is asked of everybody who has signed."""
        self._check("signatures", len(self._signatures))
        dropped = tuple(name for name in self._dealers if name not in self.survivors)
        return UnmaskRequest(survivors=self.survivors, dropped=dropped, signatures=dict(self._signatures))

    def add_unmasking(self, client: str, text: str) -> None:
        """A client's shares of what the others have dealt it."""
        found = _read(Unmasking.from_json, text)
        held = set(self.roster().holders(client))
        seeds, mask_keys = held.intersection(self.survivors), held.intersection(self._dealers) - set(self.survivors)
        if set(found.seeds) != seeds or set(found.mask_keys) != mask_keys:
            raise Refused("shares", "the shares are not those that were asked for")
        self._shares[client] = found

    def mean(self) -> FloatArray:
        """The mean of the survivors' updates, float32.

        Raises:
            TooFew: too few have given their shares.
            FederationError: the shares do not fit, or the mean is longer than any update may be.
        """
        self._check("shares to unmask", len(self._shares))
        roster, survivors = self.roster(), self.survivors
        points = {name: roster.point(name) for name in self._shares}
        masks = left_masks(
            roster,
            self._dealers,
            survivors,
            seeds={n: {points[c]: s.seeds[n] for c, s in self._shares.items() if n in s.seeds} for n in survivors},
            mask_keys={
                n: {points[c]: s.mask_keys[n] for c, s in self._shares.items() if n in s.mask_keys}
                for n in self._dealers
            },
        )
        mean = self._sum.unmask(masks) / len(survivors)
        # What can be checked of updates that nobody sees. Rounding alone may exceed the bound by half a step a value.
        allowed = self._terms.max_norm + np.sqrt(mean.size) * FixedPoint.of(self._terms).resolution
        if not float(np.linalg.norm(mean)) <= allowed:
            raise FederationError("the updates' mean is longer than one update may be: somebody sent a longer one")
        return mean.astype(np.float32)

    @property
    def _dealers(self) -> tuple[str, ...]:
        return tuple(sorted(self._sealed))

    def _check(self, stage: str, got: int) -> None:
        # The quorum is for updates; unmasking takes as many as the secrets were dealt out for.
        wanted = self.roster().needed_clients
        if stage in ("shares", "updates"):
            wanted = max(wanted, self._needed)
        if got < wanted:
            raise TooFew(stage, got, wanted)


def _read(reader: Callable[[str], Said], text: str) -> Said:
    try:
        return reader(text)
    except NeuralForgeError as fault:
        raise Refused("records", fault.message) from fault
