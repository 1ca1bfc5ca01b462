"""What a configuration asks of a private run: its steps, its noise, and what it will have spent; needs no data.

Nothing here may look at the training data: steps, noise and divisor are public, and so must not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuralforge.federation.home import client_home
from neuralforge.privacy.budget import Block, Budget, Standing, lasts, noise_for, prv_epsilon
from neuralforge.privacy.journal import Journal
from neuralforge.privacy.ledger import LEDGER, Ledger
from neuralforge.privacy.scope import adapter_scope, scope_folder
from neuralforge.privacy.spending import Tally
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.errors import BudgetSpent
from neuralforge_common.privacy import LEVELS, PrivacyTerms

DIVISOR = 16.0
"""What a step's noised sum is divided by. A constant: the expected number of units drawn, q times how many there are,
would tell how many there are. AdamW divides by the gradient's own size, so its value has no say in what is learnt."""


LEARNING_RATE_FACTOR = 3.0
"""Of a private run's learning rate over the default: its few steps, each of many examples, bear longer ones.

Measured on nf-tiny at ε = 8 (60 steps, some 50 of 1,000 units drawn in each), where perplexity falls from 74 to 62.8,
56.4 and 49.1 at a third of the default, the default and 3 times the default, and 10 times the default diverges."""

MOST_NOISE = 4.0
"""How many times the noise of a first run is still a run: less than a budget's last crumbs would ask for."""


def steps_per_epoch(sample_rate: float) -> int:
    """Steps in which a unit is expected to be drawn once: 1/q, whatever the data."""
    return max(1, round(1 / sample_rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivatePlan:
    """A run as it was planned: `epsilon` is what will have been spent at its end, earlier runs of the adapter included.

    `reach` is how many of the `steps` the budget allows. `home` and `scope` say whose account it is, `what` what is
    charged for. `rates` are the cohorts that are charged whatever the data turn out to be, with their q; units of the
    `earlier` cohorts are not learnt from as new ones.
    """

    terms: PrivacyTerms
    steps: int
    reach: int
    epsilon: float
    home: Path
    scope: str
    what: str
    rates: Mapping[int, float]
    earlier: frozenset[int] = frozenset()
    replay_rate: float = 0.0

    def __str__(self) -> str:
        terms = self.terms
        numbers = (
            f"noise multiplier {terms.noise_multiplier:g}, each {LEVELS[terms.unit].removesuffix('-level')} clipped to "
            f"{terms.max_grad_norm:g} and drawn with probability {terms.sample_rate:g}, {self.steps:,} steps"
        )
        if self.replay_rate:
            numbers += f"; earlier ones with {self.replay_rate:g}"
        if self.reach < self.steps:
            return (
                f"private: {numbers}, of which ε = {terms.target_epsilon:g} at δ = {terms.delta:g} "
                f"({LEVELS[terms.unit]}) allows {self.reach:,}: the run stops there"
            )
        return f"private: ε = {self.epsilon:.3g} at δ = {terms.delta:g}, {LEVELS[terms.unit]}, with {numbers}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """Of a run that goes on with an adapter: the number of its session, and q of earlier units, 0 for no replay."""

    session: int
    replay_rate: float = 0.0


def plan(
    config: TrainConfig, *, continued: Continued | None = None, noise_multiplier: float | None = None
) -> PrivatePlan:
    """The private run of a configuration; `noise_multiplier` is that of a run which is gone on with.

    A run that begins an adapter anew may draw all data that an earlier one at its place was trained on, and pays for
    it. One that continues it leaves that data out, and pays for what it replays.

    Raises:
        PrivacyError: no noise is enough for what is left of the budget, or the ledger is damaged.
        StorageError: the ledger cannot be read, or others may read it.
    """
    privacy, training = config.privacy, config.training
    home = config.federation.home or client_home()
    scope = adapter_scope(config.adapter_path)
    what = f"train {config.model.adapter_name}" + (f", session {continued.session}" if continued else "")
    folder = scope_folder(home, scope)
    ledger = Ledger.read(folder)
    tally = ledger.tally if ledger is not None else Tally()
    earlier = _charged_for_others(folder, what) if continued is not None else frozenset()
    q, replay_rate = privacy.sample_rate, continued.replay_rate if continued is not None else 0.0
    rates = {cohort: replay_rate if cohort in earlier else q for cohort in tally.cohorts}
    rates = {cohort: rate for cohort, rate in rates.items() if rate} | {0: q}  # 0 stands for data that is new
    steps = training.epochs * steps_per_epoch(q)
    steps = min(steps, training.max_steps or steps)
    budget = Budget(target_epsilon=privacy.target_epsilon, delta=privacy.delta)
    standings = {cohort: tally.standing(cohort, budget) for cohort in rates}
    sigma = noise_multiplier or privacy.noise_multiplier
    if sigma is None:
        sigma = noise_for(standings, budget, rates=rates, steps=steps, accountant=privacy.accountant)
        alone = noise_for({0: Standing()}, budget, rates={0: q}, steps=steps)
        if sigma > MOST_NOISE * alone:
            spent = tally.spent(privacy.unit, privacy.delta)
            more = Block(rates=rates, noise_multiplier=alone, steps=steps)
            wanted = tally.spent(privacy.unit, privacy.delta, more=more).epsilon
            raise BudgetSpent(
                f"{config.adapter_path} has spent ε = {spent.epsilon:.3g} of {budget.target_epsilon:g} at "
                f"δ = {budget.delta:g}, {LEVELS[privacy.unit]}: what is left allows {steps:,} steps with a noise "
                f"multiplier of {sigma:.3g}, where {alone:.3g} was wanted, and nothing would be learnt",
                hint=f"--target-epsilon {math.ceil(10 * wanted) / 10:g}, or fewer steps"
                + (", or --replay-ratio 0, as new data has a budget of its own" if replay_rate else ""),
            )
    block = Block(rates=rates, noise_multiplier=sigma, steps=steps)
    reach = min(
        lasts(standings[cohort], budget, sample_rate=rate, noise_multiplier=sigma)[0] for cohort, rate in rates.items()
    )
    epsilon = tally.spent(privacy.unit, privacy.delta, more=block).epsilon
    if privacy.accountant == "prv":
        reach, epsilon = steps, prv_epsilon(block.of(0), privacy.delta)
    return PrivatePlan(
        terms=PrivacyTerms(
            noise_multiplier=sigma,
            max_grad_norm=privacy.max_grad_norm,
            sample_rate=q,
            divisor=DIVISOR,
            unit=privacy.unit,
            target_epsilon=privacy.target_epsilon,
            delta=privacy.delta,
        ),
        steps=steps,
        reach=min(reach, steps),
        epsilon=epsilon,
        home=home,
        scope=scope,
        what=what,
        rates={cohort: rate for cohort, rate in rates.items() if cohort},
        earlier=earlier,
        replay_rate=replay_rate,
    )


def _charged_for_others(folder: Path, what: str) -> frozenset[int]:
    """Cohorts that were charged for anything but `what`: an interrupted session may take up its own data again."""
    charges = Journal(folder / LEDGER).entries[1:]
    return frozenset(int(cohort) for charge in charges if charge["what"] != what for cohort in charge["cohorts"])
