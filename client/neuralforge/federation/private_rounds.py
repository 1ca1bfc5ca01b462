"""What private rounds of one federation may cost this machine's data, and the ledger that says what they have.

The plan has a budget, the site's policy may have a lower one, and so may this client's own `privacy:`; the lowest
counts, over all rounds, attempts and restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from neuralforge.data.example import Example
from neuralforge.federation import policy as site
from neuralforge.privacy.ledger import Account, Ledger
from neuralforge.privacy.release import Receipt
from neuralforge.privacy.run import PrivateTraining
from neuralforge.privacy.scope import scope_folder
from neuralforge.privacy.spending import Spending
from neuralforge_common.config.policy import RequireSection, SitePolicy
from neuralforge_common.config.schema import PrivacySection
from neuralforge_common.errors import BudgetSpent, FederationError, PrivacyError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.privacy import LEVELS, PrivacyStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRounds:
    """The scope of one federation on this machine.

    `own` is this client's `privacy:`, a ceiling where it is enabled. `home` has the ledgers of all scopes. `tell` hears
    of what a crash has cut off.
    """

    home: Path
    scope: str
    own: PrivacySection = field(default_factory=PrivacySection)
    tell: Callable[[str], None] = lambda line: None

    @property
    def folder(self) -> Path:
        """Where the ledger is, or will be."""
        return scope_folder(self.home, self.scope)

    def check(self, plan: RoundPlan, policy: SitePolicy) -> None:
        """Holds a plan against policy, configuration and past; raises FederationError."""
        for who, require in self._demands(policy):
            site.check_privacy(plan.privacy, require, who=who)
        if plan.privacy is None and (spending := self.spent()) is not None and spending.steps:
            raise FederationError(
                f"the rounds of {plan.federation} were private on this machine, and round {plan.round} would not be",
                hint=f"what was promised would no longer hold; to let it, move {self.folder} away",
            )

    def spent(self) -> Spending | None:
        """What stands in the ledger; None where there is none. Raises PrivacyError where it is damaged."""
        if not self.folder.is_dir() or (ledger := Ledger.read(self.folder)) is None:
            return None
        last = ledger.tally.last
        return ledger.tally.spent(ledger.unit, last.budget.delta if last is not None else PrivacySection().delta)

    @contextmanager
    def round(
        self, plan: RoundPlan, examples: Sequence[Example], policy: SitePolicy
    ) -> Iterator[tuple[PrivateTraining, Receipt]]:
        """The training of a round, which charges it before its first step, and what its release must show.

        Raises:
            FederationError: a budget does not allow the round. Nothing was learnt and nothing charged.
            PrivacyError: the ledger is damaged or in use.
        """
        asked, steps = plan.privacy, plan.steps
        if asked is None or steps is None:
            raise PrivacyError(f"round {plan.round} is not a private one")
        most = [require.max_epsilon for _, require in self._demands(policy) if require.max_epsilon is not None]
        terms = replace(asked, target_epsilon=min([asked.target_epsilon, *most]))
        what = f"federation round {plan.round}, attempt {plan.nonce}"
        with Account.open(self.home, self.scope, unit=terms.unit, tell=self.tell) as account:
            before = account.spent(terms.delta).steps
            try:
                training = PrivateTraining(
                    terms,
                    account,
                    examples,
                    steps=steps,
                    what=what,
                    engine=self.own.engine if self.own.enabled else "auto",
                    max_unit_examples=self.own.max_unit_examples,
                )
                yield training, Receipt(folder=self.folder, what=what, before=before)
            except BudgetSpent as fault:
                # How much of which data is spent, the hint and the log say; neither leaves this machine.
                raise FederationError(
                    f"the privacy budget of this client does not allow round {plan.round}: at most "
                    f"ε = {terms.target_epsilon:g} at δ = {terms.delta:g}, {LEVELS[terms.unit]}",
                    hint=fault.message,
                ) from fault

    def statement(self, plan: RoundPlan) -> PrivacyStatement | None:
        """What the federation's adapter tells of anybody's data; None where its rounds were not private."""
        own = self.spent()
        if plan.privacy is None:
            return own.statement(note="of this client's data alone") if own is not None and own.steps else None
        return PrivacyStatement(
            epsilon=plan.privacy.target_epsilon,
            delta=plan.privacy.delta,
            unit=plan.privacy.unit,
            steps=own.steps if own else 0,
            note="the budget of every client of the federation"
            + (f"; this one's own data took part up to ε = {own.at_most:.3g}" if own else ""),
        )

    def _demands(self, policy: SitePolicy) -> list[tuple[str, RequireSection]]:
        own = self.own
        if not own.enabled:
            return [("the site policy", policy.require)]
        mine = RequireSection(privacy=True, max_epsilon=own.target_epsilon, max_delta=own.delta, unit=own.unit)
        return [("the site policy", policy.require), ("this client's configuration", mine)]
