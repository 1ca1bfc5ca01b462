"""A session of `IncrementalLearner` under privacy: what may be learnt as new, what again, and what it leaves behind.

new data     without the units that earlier sessions were charged for: each unit is new once
replay       each example was kept by a coin of its own, and is drawn with a public probability of its own; its
             cohort is charged whether it is still there or not. Nothing gives way to anything else: which examples
             a full buffer keeps would depend on all others
EWC          of the noised gradients, around the released adapter: free, see `fisher`
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neuralforge.data.example import Example
from neuralforge.privacy.ledger import Ledger
from neuralforge.privacy.run import PrivateTraining, Replay
from neuralforge.privacy.scope import scope_folder
from neuralforge.privacy.units import unit_ids
from neuralforge_common.errors import DataError, PrivacyError
from neuralforge_common.folder import AdapterFolder
from neuralforge_common.metadata import AdapterMetadata
from neuralforge_common.privacy import PrivacyStatement

if TYPE_CHECKING:
    from neuralforge.continual.ewc import EWCRegularizer
    from neuralforge.privacy.ledger import Account
    from neuralforge.privacy.planned import PrivatePlan
    from neuralforge.training.gradient import GradientMaker
    from neuralforge.training.trainer import LoRATrainer

UNBOUNDED = 2**31
"""The size of a replay buffer from which nothing is ever evicted."""


class PrivateSession:
    """For `IncrementalLearner.learn_from_session(…, private=…)`; `how` goes to `PrivateTraining`."""

    def __init__(self, planned: PrivatePlan, account: Account, **how: Any) -> None:
        self.planned = planned
        self._account = account
        self._how = how
        self._training: PrivateTraining | None = None

    @property
    def replays(self) -> bool:
        """Whether earlier examples are learnt again."""
        return self.planned.replay_rate > 0

    @property
    def gradient(self) -> GradientMaker:
        """Of the training that has begun, for `LoRATrainer.train`."""
        return self._begun().gradient

    def unseen(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Those of units that no earlier session was charged for.

        Raises:
            DataError: there are none.
        """
        cohorts = self._account.enter(unit_ids(examples, self.planned.terms.unit))
        new = [example for example, cohort in zip(examples, cohorts, strict=True) if cohort not in self.planned.earlier]
        if not new:
            raise DataError("nothing new: all of it belongs to what earlier sessions were charged for")
        return new

    def begin(self, new: Sequence[Example], earlier: Sequence[Example] = ()) -> PrivateTraining:
        """The training of this session; see `PrivateTraining` for what it raises."""
        planned = self.planned
        self._training = PrivateTraining(
            planned.terms,
            self._account,
            new,
            steps=planned.steps,
            what=planned.what,
            rates=planned.rates,
            replay=Replay(examples=earlier, sample_rate=planned.replay_rate) if self.replays else None,
            **self._how,
        )
        return self._training

    def consolidate(self, ewc: EWCRegularizer, trainer: LoRATrainer) -> None:
        """Have EWC hold what mattered, as far as the noised gradients of this session tell it."""
        from neuralforge.privacy.fisher import private_fisher

        noised = self._begun().noised
        if noised is not None and noised.steps:
            ewc.take(private_fisher(trainer, noised, self.planned.terms))

    def joining(self, examples: Sequence[Example]) -> list[Example]:
        """Those that are kept for later sessions: a fair coin for each, whatever else there is."""
        return [example for example in examples if secrets.randbits(1)]

    def told(self, facts: AdapterMetadata) -> AdapterMetadata:
        """Without what is a function of the data without noise, and with what was spent."""
        return replace(
            facts,
            training_samples=None,
            accuracy=None,
            dataset_digest="",
            evaluation=None,
            privacy=self.statement(),
        )

    def statement(self) -> PrivacyStatement:
        """What has been spent of the data of any session: no unit is of two."""
        return self._begun().statement(disjoint=True)

    def _begun(self) -> PrivateTraining:
        if self._training is None:
            raise PrivacyError("a private session has not begun: its examples are not known")
        return self._training


def require_private(found: AdapterFolder, planned: PrivatePlan) -> None:
    """See that all that an adapter was trained on is accounted for.

    Raises:
        PrivacyError: it was learnt without privacy, or its ledger is not on this machine, or tells of less than the
            adapter does.
    """
    claim, ledger = found.metadata.privacy, Ledger.read(scope_folder(planned.home, planned.scope))
    if claim is None:
        raise PrivacyError(
            f"{found.path} was learnt without privacy: what it tells of that data cannot be taken back",
            hint="begin a new adapter with --private",
        )
    way_out = f"put its ledger, and the adapter, where they were made: below {planned.home}"
    if ledger is None or not planned.earlier:
        raise PrivacyError(
            f"{found.path} is private, and no ledger of {planned.scope} says what was spent on it", hint=way_out
        )
    known = ledger.tally.spent(ledger.unit, claim.delta)
    # The other way round is in order: a run that came to nothing was charged as well.
    if claim.unit != ledger.unit or claim.steps > known.steps or claim.epsilon > known.at_most * (1 + 1e-9):
        raise PrivacyError(
            f"{found.path} says {claim}, in {claim.steps:,} steps, and its ledger knows of "
            f"{known.statement()}, in {known.steps:,}: that is another adapter's, or an older copy",
            hint=way_out,
        )
