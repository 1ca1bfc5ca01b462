"""What the ledgers of a machine say: for each scope, what is spent, what is left, what the next steps would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neuralforge.privacy.budget import Block, Budget
from neuralforge.privacy.ledger import LEDGER, Ledger
from neuralforge.privacy.scope import adapter_scope, privacy_folder
from neuralforge.privacy.spending import Spending, total_epsilon
from neuralforge_common.errors import NeuralForgeError
from neuralforge_common.privacy import PrivacyStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The next steps on the terms of the last ones: what would be spent after them, and how many the budget allows."""

    budget: Budget
    block: Block
    after: Spending
    steps_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeStatus:
    """One scope at the δ of its last charge; `spent` and `outlook` are None where nothing was charged yet."""

    ledger: Ledger
    spent: Spending | None
    outlook: Outlook | None


def read_ledgers(home: Path, wanted: str | None = None) -> tuple[list[Ledger], list[NeuralForgeError]]:
    """The ledgers below a home, by scope, and what is wrong with those that cannot be read.

    `wanted` is a part of a scope's name, or the adapter whose scope it is.
    """
    ledgers, faults = [], []
    for path in sorted(privacy_folder(home).glob(f"*/{LEDGER}")):
        try:
            ledger = Ledger.read(path.parent)
        except NeuralForgeError as fault:
            faults.append(fault)
            continue
        if ledger and (wanted is None or wanted in ledger.scope or adapter_scope(Path(wanted)) == ledger.scope):
            ledgers.append(ledger)
    return sorted(ledgers, key=lambda ledger: ledger.scope), faults


def status_of(ledger: Ledger, *, steps: int | None = None) -> ScopeStatus:
    """Where a scope stands; `steps` are looked ahead, or as many as were charged last."""
    tally, last = ledger.tally, ledger.tally.last
    if last is None:
        return ScopeStatus(ledger=ledger, spent=None, outlook=None)
    block = last.block if steps is None else replace(last.block, steps=steps)
    delta = last.budget.delta
    outlook = Outlook(
        budget=last.budget,
        block=block,
        after=tally.spent(ledger.unit, delta, more=block),
        steps_left=tally.left(block, last.budget),
    )
    return ScopeStatus(ledger=ledger, spent=tally.spent(ledger.unit, delta), outlook=outlook)


def totals(ledgers: Sequence[Ledger]) -> list[PrivacyStatement]:
    """For each kind of unit, what all its scopes have told of one that is in every one of them.

    δ is the largest of theirs.
    """
    found = []
    for unit in sorted({ledger.unit for ledger in ledgers}):
        mine = [ledger.tally for ledger in ledgers if ledger.unit == unit and ledger.tally.last]
        if mine:
            delta = max(tally.last.budget.delta for tally in mine if tally.last)
            found.append(PrivacyStatement(epsilon=total_epsilon(mine, delta), delta=delta, unit=unit))
    return found
