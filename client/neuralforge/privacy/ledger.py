"""The ledger of a scope: one lineage of releases, and what all of them together may have told about its data.

    $NEURALFORGE_HOME/privacy/<scope>-<digest>/      0700
    ├── ledger.jsonl    a line for each block of steps, on the disk before the first of them is taken (see journal.py)
    ├── cohorts.jsonl   which units were first seen together, as keyed hashes (see cohorts.py)
    ├── key             of those hashes, 0600
    └── lock            held by the one run that charges

Nothing is ever refunded: a run that crashes and takes steps again is charged for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, cast, get_args

from neuralforge.privacy.budget import Accountant, Block, Budget, noise_for, prv_epsilon, require_fresh
from neuralforge.privacy.cohorts import COHORTS, Cohorts
from neuralforge.privacy.journal import FORGOTTEN, Journal
from neuralforge.privacy.scope import locked, scope_folder
from neuralforge.privacy.spending import Charge, Spending, Tally
from neuralforge_common.errors import BudgetSpent, PrivacyError
from neuralforge_common.key_files import make_private_folder
from neuralforge_common.privacy import LEVELS, Unit
from neuralforge_common.strict_json import is_plain_text

LEDGER = "ledger.jsonl"
FORMAT = 1


class Ledger:
    """What stands in a scope's ledger. Reading needs no lock: a line that is being written is not there yet."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        """Check and add up the entries of a journal that is not empty.

        Raises:
            PrivacyError: an entry that this program does not write.
        """
        header = journal.entries[0]
        scope, unit = header.get("scope"), header.get("unit")
        if header.get("format") != FORMAT or not isinstance(scope, str) or unit not in get_args(Unit):
            raise PrivacyError(f"{journal.path}, line 1: wanted format {FORMAT}, a scope and a unit")
        self.folder = folder
        self.scope = scope
        self.unit = cast(Unit, unit)
        self.torn = journal.torn
        self.tally = Tally()
        self._journal = journal
        for number, entry in enumerate(journal.entries[1:], start=2):
            self.tally.add(Charge.from_entry(entry, f"{journal.path}, line {number}"))

    @classmethod
    def read(cls, folder: Path) -> Ledger | None:
        """The ledger of a scope's folder; None where none was begun.

        Raises:
            PrivacyError: it is damaged.
            StorageError: it cannot be read, or others than its owner may read it.
        """
        journal = Journal(folder / LEDGER)
        return cls(folder, journal) if journal.entries else None

    def add(self, charge: Charge) -> None:
        """Put a charge on the disk, and count it."""
        self._journal.append(charge.to_entry())
        self.tally.add(charge)

    def close(self) -> None:
        """Nothing more can be added."""
        self._journal.close()


class Account:
    """A scope's ledger and cohorts, open for the one run that charges; closed by `with` or `close`."""

    def __init__(self, ledger: Ledger, cohorts: Cohorts, lock: ExitStack, now: Callable[[], datetime]) -> None:
        self.scope = ledger.scope
        self.unit = ledger.unit
        self._ledger = ledger
        self._cohorts = cohorts
        self._lock = lock
        self._now = now

    @classmethod
    def open(
        cls,
        home: Path,
        scope: str,
        *,
        unit: Unit,
        tell: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Account:
        """Open the account of a scope, or begin one; `tell` hears of an entry that a crash has cut off.

        Raises:
            PrivacyError: another run has it open, it counts by another unit, or it is damaged or incomplete.
            StorageError: the disk refuses, or others than the owner may use the files.
        """
        if not is_plain_text(scope):
            raise PrivacyError(f"a privacy scope: wanted plain text, got {scope!r}")
        folder = scope_folder(home, scope)
        make_private_folder(folder)
        with ExitStack() as stack:
            stack.enter_context(locked(folder))
            cohorts = Cohorts.open(folder)
            ledger = Ledger.read(folder) or _begun(folder, scope, unit, cohorts)
            if ledger.torn:
                tell(
                    f"{folder / LEDGER}: {ledger.torn:,} bytes at its end are an entry that was never finished, "
                    "and nothing was learnt under it: it is dropped"
                )
            if ledger.scope != scope:
                raise PrivacyError(f"{folder} is the ledger of another scope: wanted {scope}, got {ledger.scope}")
            if ledger.unit != unit:
                raise PrivacyError(
                    f"{scope}: its ledger is {LEVELS[ledger.unit]}, this run wants {LEVELS[unit]}: these do not add up",
                    hint=f"unit: {ledger.unit}, or a new adapter or federation",
                )
            if (charged := max(ledger.tally.cohorts, default=0)) > len(cohorts):
                raise PrivacyError(
                    f"{folder / COHORTS} is not complete: cohort {charged} was charged, the file ends with "
                    f"{len(cohorts)}",
                    hint=FORGOTTEN,
                )
            return cls(ledger, cohorts, stack.pop_all(), now)

    def enter(self, unit_ids: Sequence[str]) -> list[int]:
        """The cohort of each unit: those never seen in this scope are a new one, on the disk when this returns."""
        return self._cohorts.enter(unit_ids)

    def noise_for(
        self, budget: Budget, *, rates: Mapping[int, float], steps: int, accountant: Accountant = "rdp"
    ) -> float:
        """The least σ with which so many more steps fit into the budget of every cohort in `rates` (cohort -> q).

        Raises:
            PrivacyError: no noise is enough.
        """
        return noise_for(
            {cohort: self._ledger.tally.standing(cohort, budget) for cohort in rates},
            budget,
            rates=rates,
            steps=steps,
            accountant=accountant,
        )

    def check(self, block: Block, budget: Budget, *, accountant: Accountant = "rdp") -> None:
        """See whether a block fits into the budget of every cohort in it; nothing is charged.

        Raises:
            BudgetSpent: it does not.
        """
        self._admitted(block, budget, accountant, "")

    def charge(self, block: Block, budget: Budget, *, what: str, accountant: Accountant = "rdp") -> None:
        """Charge a block of steps: it is on the disk when this returns, and only then may the first of them be taken.

        Raises:
            BudgetSpent: it does not fit into the budget of a cohort; nothing is charged.
            StorageError: the disk refuses.
        """
        if not is_plain_text(what):
            raise PrivacyError(f"what is charged for: wanted plain text, got {what!r}")
        self._ledger.add(self._admitted(block, budget, accountant, what))

    def spent(self, delta: float, *, more: Block | None = None) -> Spending:
        """What was charged so far at δ, and what it would be with one more block."""
        return self._ledger.tally.spent(self.unit, delta, more=more)

    def close(self) -> None:
        """Let others charge; this one cannot any more."""
        self._ledger.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admitted(self, block: Block, budget: Budget, accountant: Accountant, what: str) -> Charge:
        tally = self._ledger.tally
        tight = None
        if accountant == "prv":
            require_fresh(tally.standing(cohort, budget) for cohort in block.rates)
            tight = prv_epsilon(block.of(block.busiest), budget.delta)
            if tight > budget.target_epsilon:
                raise self._refusal(block, budget, tight)
        elif tally.left(block, budget) < block.steps:
            after = self.spent(budget.delta, more=block)
            raise self._refusal(
                block, budget, max(each.epsilon for each in after.cohorts if each.cohort in block.rates)
            )
        return Charge(
            what=what,
            time=self._now().isoformat(timespec="seconds"),
            block=block,
            budget=budget,
            orders={cohort: tally.reach(cohort, block, budget)[1] for cohort in block.rates},
            prv_epsilon=tight,
        )

    def _refusal(self, block: Block, budget: Budget, reached: float) -> BudgetSpent:
        left = self._ledger.tally.left(block, budget)
        return BudgetSpent(
            f"privacy budget of {self.scope}: {block.steps:,} more steps would come to ε = {reached:.4g} at "
            f"δ = {budget.delta:g}, {LEVELS[self.unit]}; at most ε = {budget.target_epsilon:g} is allowed",
            hint=f"{left:,} more steps are left with this noise; more noise, a lower sample rate, or a higher target",
        )


def _begun(folder: Path, scope: str, unit: Unit, cohorts: Cohorts) -> Ledger:
    # The first line is on the disk before any unit is entered: cohorts without it have lost it.
    if len(cohorts):
        raise PrivacyError(
            f"{folder / LEDGER} is gone, {COHORTS} beside it is not: what was spent is not known", hint=FORGOTTEN
        )
    Journal(folder / LEDGER).append({"format": FORMAT, "scope": scope, "unit": unit})
    return Ledger(folder, Journal(folder / LEDGER))
