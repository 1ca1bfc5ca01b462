"""This machine in the rounds under masks: its name and identity, one attempt at a time, and what it has unmasked."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from neuralforge.federation.home import JoinedFederation
from neuralforge.federation.secagg.pins import Pins
from neuralforge.federation.secagg.round import MaskedRound
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.messages import (
    KEYS,
    SHARES,
    SURVIVORS,
    UNMASK,
    Confirmation,
    Delivery,
    Survivors,
    UnmaskRequest,
    adverts_from_json,
)


def member_of(joined: JoinedFederation) -> SecureMember | None:
    """This machine in the rounds of a federation that it has joined; None where it joined without an identity.

    Raises:
        StorageError: the identity is damaged, or others may read it.
    """
    identity = joined.identity
    return None if identity is None else SecureMember(joined.record.name, identity, Pins(joined.peers))


class SecureMember:
    """Answers a coordinator's questions in rounds under masks; `name` is what the federation calls this machine.

    An attempt ends when another one begins. Nothing of it is on the disk.
    """

    def __init__(self, name: str, identity: Ed25519PrivateKey, pins: Pins) -> None:
        self.name = name
        self._identity = identity
        self._pins = pins
        self._attempt: MaskedRound | None = None
        self._begun: set[tuple[str, int, str]] = set()
        self._unmasked: dict[int, tuple[str, ...]] = {}

    def check(self, plan: RoundPlan) -> None:
        """Refuses a bare update to a federation whose rounds were under masks before; raises FederationError."""
        if plan.trust != "peers" and self._pins.read().keys:
            raise FederationError(
                "the plan asks for this client's update by itself, and this federation added updates up under masks "
                "before",
                hint=f"if that was agreed upon, remove {self._pins.path}",
            )

    def answer(self, question: str, plan: RoundPlan, text: str) -> str:
        """What this client says to a question (`KEYS`, `SHARES`, `SURVIVORS`, `UNMASK`) that holds `text`.

        Raises:
            FederationError: nothing that may be answered; the attempt is over for this client then.
            AdapterError: no JSON.
            StorageError: the pins cannot be read or written.
        """
        if question == KEYS:
            return self._begin(plan).advert.to_json()
        attempt = self._attempt_of(plan)
        try:
            if question == SHARES:
                adverts = adverts_from_json(text)
                dealt = attempt.deal(adverts)
                # Those whose signatures hold are the ones worth remembering.
                self._pins.check({a.name: a.identity for a in adverts if a.name != self.name})
                return dealt.to_json()
            if question == SURVIVORS:
                survivors = Survivors.from_json(text)
                self._check_repeated(plan, survivors)
                return Confirmation(signature=attempt.confirm(survivors)).to_json()
            if question == UNMASK:
                revealed = attempt.reveal(UnmaskRequest.from_json(text))
                self._unmasked[plan.round] = attempt.survivors
                self._attempt = None
                return revealed.to_json()
            raise FederationError(f"no question of a round under masks is called {question}")
        except BaseException:
            self._attempt = None
            raise

    def collect(self, plan: RoundPlan, text: str) -> None:
        """Take the shares that come with the plan to train; raises as `answer` does."""
        attempt = self._attempt_of(plan)
        try:
            attempt.collect(Delivery.from_json(text))
        except BaseException:
            self._attempt = None
            raise

    def mask(self, plan: RoundPlan, vector: FloatArray) -> bytes:
        """An update (count,) at the plan's full rank, under masks.

        Raises:
            FederationError: the attempt is over for this client.
            TrainingError: it holds values that are not finite.
        """
        return self._attempt_of(plan).mask(vector)

    def _begin(self, plan: RoundPlan) -> MaskedRound:
        self._attempt = None
        if plan.masking is None:
            raise FederationError("the plan says nothing of masks")
        attempt = (plan.federation, plan.round, plan.nonce)
        if attempt in self._begun:
            raise FederationError(f"round {plan.round}: this attempt was begun before: its nonce is not a new one")
        self._begun.add(attempt)
        self._attempt = MaskedRound(plan, plan.masking, name=self.name, identity=self._identity)
        return self._attempt

    def _attempt_of(self, plan: RoundPlan) -> MaskedRound:
        if self._attempt is None or self._attempt.digest != plan.digest:
            raise FederationError(
                f"round {plan.round}: this client has no keys for this attempt: it was started anew, has refused "
                "something, or another attempt began"
            )
        return self._attempt

    def _check_repeated(self, plan: RoundPlan, survivors: Survivors) -> None:
        # A round that is done again gives the same updates: two sums that differ by a client give that client's away.
        # What the plan calls the federation has no say: it changes nothing of what is learnt.
        before = self._unmasked.get(plan.round)
        if before is not None and before != survivors.names:
            raise FederationError(
                f"round {plan.round} was unmasked before, for other survivors: the difference would lay single updates "
                "open",
                hint="where the coordinator has lost a round, start this client anew to agree to another attempt",
            )
