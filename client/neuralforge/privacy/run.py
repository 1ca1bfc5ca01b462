"""A private run: who takes part, what it may cost, and the gradients of its steps.

examples → units → cohorts of the account → does it fit into the budget? → each block of steps charged → drawn, clipped,
noised → the statement of what was spent
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge.privacy.budget import Accountant, Block, Budget
from neuralforge.privacy.planned import steps_per_epoch
from neuralforge.privacy.units import by_unit, unit_ids
from neuralforge_common.errors import BudgetSpent, PrivacyError
from neuralforge_common.noise import standard_normal
from neuralforge_common.privacy import PrivacyStatement, PrivacyTerms

if TYPE_CHECKING:
    import torch

    from neuralforge.privacy.ledger import Account
    from neuralforge.privacy.step import PrivateGradient
    from neuralforge.training.engine import Engine
    from neuralforge.training.flat import FlatParameters

NOTE = "This is about the examples that were learnt from, as cleaning, deduplication and holding out have left them"
"""What (ε, δ) is about, for its statement: cleaning and splitting look at all of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Units of earlier sessions that are learnt again, each drawn in each step with a probability of its own."""

    examples: Sequence[Example]
    sample_rate: float


class PrivateTraining:
    """DP-SGD for one call of `LoRATrainer.train`: `train(p.examples, gradient=p.gradient, keeps="last", …)`.

    The units of `examples` enter the account: those that it has not seen form a new cohort. `block` steps are charged
    at once, before the first of them is taken, and fewer where no more are left in the budget; where none is,
    `BudgetSpent` ends the run at that step. With None all `steps` are charged at the first, or none. `what` names the
    run in the ledger. Cohorts in `rates` are charged at that rate whether or not any of their units is there. `engine`
    "opacus" wants a trainer with that one.

    Raises:
        BudgetSpent: not a single step (`block` None: not all of them) fits into the budget; nothing is charged.
        PrivacyError: an example does not say which unit it is of, or `prv` is asked to count what it did not plan.
    """

    def __init__(
        self,
        terms: PrivacyTerms,
        account: Account,
        examples: Sequence[Example],
        *,
        steps: int,
        what: str,
        block: int | None = None,
        engine: Literal["auto", "opacus"] = "auto",
        max_unit_examples: int = 4,
        accountant: Accountant = "rdp",
        rates: Mapping[int, float] = MappingProxyType({}),
        replay: Replay | None = None,
    ) -> None:
        if accountant == "prv" and block is not None:
            raise PrivacyError("prv counts a schedule that was fixed in advance: its steps are charged all at once")
        self.terms = terms
        self.examples = (*examples, *(replay.examples if replay else ()))
        self.noised: PrivateGradient | None = None
        self._account = account
        self._new = len(examples)
        self._ids = unit_ids(self.examples, terms.unit)
        self._replay_rate = replay.sample_rate if replay else 0.0
        self._rates = dict(rates)
        for place, cohort in enumerate(account.enter(self._ids)):
            rate = terms.sample_rate if place < self._new else self._replay_rate
            self._rates[cohort] = max(rate, self._rates.get(cohort, 0.0))
        self._budget = Budget(target_epsilon=terms.target_epsilon, delta=terms.delta)
        self._steps = steps
        self._what = what
        self._block = block
        self._engine = engine
        self._max_unit_examples = max_unit_examples
        self._accountant: Accountant = accountant
        self._paid = range(0)
        account.check(self._of(steps if block is None else 1), self._budget, accountant=accountant)

    @property
    def units(self) -> int:
        """How many units take part as new ones. A private figure: for their owner's eyes."""
        return len(set(self._ids[: self._new]))

    def gradient(
        self,
        engine: Engine,
        flat: FlatParameters,
        *,
        examples: Sequence[TokenizedExample],
        batch_size: int,
        trainable: torch.Tensor | None,
    ) -> PrivateGradient:
        """A `GradientMaker`: noise, sampling and dropout are drawn from the system's entropy, anew in every run.

        `noised` is then what it made; it adds up the squares of the noised gradients, see `fisher`.
        """
        from neuralforge.privacy.sampling import PoissonSampler, Population
        from neuralforge.privacy.step import Mechanism, PrivateGradient

        if self._engine == "opacus" and engine.name != "opacus":
            raise PrivacyError(f"privacy: engine: wanted opacus, the trainer was made with the {engine.name} engine")
        terms = self.terms
        new, old = (
            by_unit([example for example in examples if (example.index < self._new) == is_new], self._ids)
            for is_new in (True, False)
        )
        populations = [Population(units=new, sample_rate=terms.sample_rate)]
        if old:
            populations.append(Population(units=old, sample_rate=self._replay_rate))
        self.noised = PrivateGradient(
            engine,
            flat,
            PoissonSampler(populations, max_unit_examples=self._max_unit_examples),
            Mechanism(noise_multiplier=terms.noise_multiplier, clip=terms.max_grad_norm, divisor=terms.divisor),
            noise=standard_normal,
            # Where neighbours have a part in an example's rounding, it goes alone: its row is its own alone.
            chunk=batch_size if engine.apart else 1,
            sides=_sides(flat, trainable),
            trainable=trainable,
            charge=self._charge,
            examples=examples,
            steps_per_epoch=steps_per_epoch(terms.sample_rate),
            keeps_squares=True,
        )
        return self.noised

    def statement(self, *, disjoint: bool = False) -> PrivacyStatement:
        """What has been spent in all, this run included, as it may be told to others.

        Where the runs of an account are `disjoint`, but for what `rates` charges, a unit's own cohort is what counts;
        else it is what a unit of every run would have spent, as which data came back is nobody's business.
        """
        spent = self._account.spent(self.terms.delta)
        statement = spent.statement(note=NOTE)
        return replace(statement, epsilon=spent.epsilon) if disjoint else statement

    def _charge(self, step: int) -> None:
        """Pay for the block that begins with this step, unless it is paid for; a step that is taken twice is not."""
        if step in self._paid:
            self._paid = range(step + 1, self._paid.stop)
            return
        # Up to the next multiple of the block, where the run is saved: a resumed one pays to there, and no further.
        end = self._steps if self._block is None else min(self._steps, step - step % self._block + self._block)
        if step >= end:
            raise PrivacyError(f"step {step + 1} was not planned: wanted at most {self._steps}")
        block = self._of(end - step)
        if self._block is not None:
            block = self._affordable(block)
        self._account.charge(block, self._budget, what=self._what, accountant=self._accountant)
        self._paid = range(step + 1, step + block.steps)

    def _affordable(self, block: Block) -> Block:
        """As much of the block as is left in the budget, or one step of it."""
        fits, too_many = 1, block.steps + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            try:
                self._account.check(replace(block, steps=middle), self._budget)
                fits = middle
            except BudgetSpent:
                too_many = middle
        return replace(block, steps=fits)

    def _of(self, steps: int) -> Block:
        return Block(rates=self._rates, noise_multiplier=self.terms.noise_multiplier, steps=steps)


def _sides(flat: FlatParameters, trainable: torch.Tensor | None) -> str:
    """The matrices of which anything is trained: "A", "B" or "AB"."""
    if trainable is None:
        return "AB"
    return "".join(side for side in "AB" if bool((flat.mask(side) & trainable).any()))
