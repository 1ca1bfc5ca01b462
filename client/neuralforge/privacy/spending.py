"""What a ledger's charges come to: for each cohort, and for a unit that was in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuralforge.privacy.budget import Accountant, Block, Budget, Standing, lasts
from neuralforge.privacy.journal import Entry
from neuralforge_common.accounting import Curve, Steps, cost, epsilon, epsilon_of
from neuralforge_common.errors import PrivacyError
from neuralforge_common.privacy import PrivacyStatement, Unit

_MECHANISM = "sampled-gaussian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One entry of a ledger: a block of steps, on which budget, and the order that each cohort's is counted at.

    `prv_epsilon` is what the `prv` accountant says of a block that is a whole schedule; None with `rdp`.
    """

    what: str
    time: str
    block: Block
    budget: Budget
    orders: Mapping[int, float]
    prv_epsilon: float | None = None

    def to_entry(self) -> Entry:
        """As JSON."""
        return {
            "what": self.what,
            "time": self.time,
            "mechanism": _MECHANISM,
            "sigma": self.block.noise_multiplier,
            "steps": self.block.steps,
            "cohorts": {str(cohort): [rate, self.orders[cohort]] for cohort, rate in self.block.rates.items()},
            "target_epsilon": self.budget.target_epsilon,
            "delta": self.budget.delta,
            "prv_epsilon": self.prv_epsilon,
        }

    @classmethod
    def from_entry(cls, entry: Entry, where: str) -> Charge:
        """The other way.

        Raises:
            PrivacyError: not an entry of this program; `where` names it.
        """
        try:
            if entry["mechanism"] != _MECHANISM:
                raise PrivacyError(f"{where}: mechanism: wanted {_MECHANISM}, got {entry['mechanism']}")
            cohorts = {int(cohort): (float(rate), float(order)) for cohort, (rate, order) in entry["cohorts"].items()}
            prv = entry["prv_epsilon"]
            charge = cls(
                what=str(entry["what"]),
                time=str(entry["time"]),
                block=Block(
                    rates={cohort: rate for cohort, (rate, _) in cohorts.items()},
                    noise_multiplier=float(entry["sigma"]),
                    steps=int(entry["steps"]),
                ),
                budget=Budget(target_epsilon=float(entry["target_epsilon"]), delta=float(entry["delta"])),
                orders={cohort: order for cohort, (_, order) in cohorts.items()},
                prv_epsilon=None if prv is None else float(prv),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise PrivacyError(f"{where}: not an entry of this program: {fault!r}") from fault
        return charge


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSpending:
    """What one cohort has been through, since when, and the ε that comes of it."""

    cohort: int
    since: str
    steps: int
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a scope has spent at δ; `epsilon` is the maximum over its cohorts.

    `at_most` is the ε of a unit that would have been in every charge. It depends on the public numbers alone, where
    `epsilon` tells which cohorts' data is still learnt from: what leaves the machine says `at_most`. `accountant` is
    the one that `at_most` is by.
    """

    unit: Unit
    delta: float
    cohorts: tuple[CohortSpending, ...]
    epsilon: float
    at_most: float
    steps: int
    accountant: Accountant = "rdp"

    def statement(self, *, note: str = "") -> PrivacyStatement:
        """`at_most`, as it may be told to others."""
        return PrivacyStatement(
            epsilon=self.at_most,
            delta=self.delta,
            unit=self.unit,
            accountant=self.accountant,
            steps=self.steps,
            note=note,
        )


class Tally:
    """All charges of a ledger, added up."""

    def __init__(self) -> None:
        self.last: Charge | None = None
        self._cohorts: dict[int, _Course] = {}
        self._every = _Course()

    def add(self, charge: Charge) -> None:
        """Count one more charge."""
        for cohort in charge.block.rates:
            self._cohorts.setdefault(cohort, _Course()).add(charge, cohort)
        self._every.add(charge, charge.block.busiest)
        self.last = charge

    @property
    def cohorts(self) -> Sequence[int]:
        """Those that were charged."""
        return sorted(self._cohorts)

    def standing(self, cohort: int, budget: Budget) -> Standing:
        """What a cohort has been through, as the filter of a budget wants it; nothing for one never charged."""
        course = self._cohorts.get(cohort, _Course())
        return Standing(history=course.history(), order=course.orders.get(budget))

    def reach(self, cohort: int, block: Block, budget: Budget) -> tuple[int, float]:
        """How many more steps such as the block's a cohort's budget allows, and the order it is counted at."""
        steps = block.of(cohort)
        standing = self.standing(cohort, budget)
        return lasts(standing, budget, sample_rate=steps.sample_rate, noise_multiplier=steps.noise_multiplier)

    def left(self, block: Block, budget: Budget) -> int:
        """How many more steps such as the block's the budget of every cohort in it allows."""
        return min(self.reach(cohort, block, budget)[0] for cohort in block.rates)

    def spent(self, unit: Unit, delta: float, *, more: Block | None = None) -> Spending:
        """ε at δ, and what it would be with one more block."""
        cohorts = []
        for number in sorted({*self._cohorts, *(more.rates if more else ())}):
            course = self._cohorts.get(number, _Course())
            extra = (more.of(number),) if more is not None and number in more.rates else ()
            cohorts.append(
                CohortSpending(
                    cohort=number,
                    since=course.since,
                    steps=sum(steps.count for steps in course.history(*extra)),
                    epsilon=course.epsilon(delta, *extra),
                )
            )
        extra = () if more is None else (more.of(more.busiest),)
        at_most = self._every.epsilon(delta, *extra)
        return Spending(
            unit=unit,
            delta=delta,
            cohorts=tuple(cohorts),
            epsilon=max((cohort.epsilon for cohort in cohorts), default=0.0),
            at_most=at_most,
            steps=sum(steps.count for steps in self._every.history(*extra)),
            accountant="prv" if not extra and at_most == self._every.tight(delta) else "rdp",
        )

    def curve(self) -> Curve:
        """An RDP curve that no cohort's exceeds at any order."""
        curve = cost(())
        for course in self._cohorts.values():
            curve = curve.clip(min=cost(course.history()))
        return curve


def total_epsilon(tallies: Iterable[Tally], delta: float) -> float:
    """The ε of a unit that is in all of these scopes, in each one's costliest cohort."""
    return epsilon_of(sum((tally.curve() for tally in tallies), cost(())), delta)


class _Course:
    """What a unit has been through: steps by (q, σ)."""

    def __init__(self) -> None:
        self.since = ""
        self.orders: dict[Budget, float] = {}
        self._counts: dict[tuple[float, float], int] = {}
        self._charges: list[Charge] = []  # no more than two: whether there was but one

    def add(self, charge: Charge, cohort: int) -> None:
        steps = charge.block.of(cohort)
        key = (steps.sample_rate, steps.noise_multiplier)
        self._counts[key] = self._counts.get(key, 0) + steps.count
        self.orders.setdefault(charge.budget, charge.orders[cohort])
        self.since = self.since or charge.time
        self._charges = [*self._charges, charge][:2]

    def history(self, *more: Steps) -> tuple[Steps, ...]:
        counts = self._counts.items()
        return *(Steps(sample_rate=q, noise_multiplier=sigma, count=n) for (q, sigma), n in counts), *more

    def epsilon(self, delta: float, *more: Steps) -> float:
        found = epsilon(self.history(*more), delta)
        tight = None if more else self.tight(delta)
        return found if tight is None else min(found, tight)

    def tight(self, delta: float) -> float | None:
        """What `prv` says of a history that is one schedule, charged by it; None of any other."""
        match self._charges:
            case [Charge(prv_epsilon=float(tight), budget=budget)] if budget.delta == delta:
                return tight
        return None
