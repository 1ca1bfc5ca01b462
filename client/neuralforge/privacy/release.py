"""The one exit for what a private round has learnt: what is not on the list stays here, whatever it is.

    1  the ledger on the disk has this very round as its newest entry, with the plan's steps and noise
    2  a report is made anew, of what the plan says and of this machine's rank: no counts, no loss, no norm, no time
    3  the delta passes

When an answer comes (how many units a step drew shows in its time), that there is none, and the length of a message
are outside of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuralforge.privacy.ledger import Ledger
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import PrivacyError
from neuralforge_common.plan import RoundPlan, TrainReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Which entry of which ledger a round must have; `before` is how many steps had been charged when it began."""

    folder: Path
    what: str
    before: int


def release(
    plan: RoundPlan, report: TrainReport, delta: FloatArray, receipt: Receipt
) -> tuple[TrainReport, FloatArray]:
    """What may leave of a round's report and delta.

    Raises:
        PrivacyError: the round was not charged, or is not a private one. Nothing leaves.
    """
    terms, steps = plan.privacy, plan.steps
    if terms is None or steps is None:
        raise PrivacyError(f"round {plan.round} is not a private one: nothing of it passes here")
    ledger = Ledger.read(receipt.folder)
    last = ledger.tally.last if ledger is not None else None
    if (
        ledger is None
        or last is None
        or last.what != receipt.what
        or (last.block.steps, last.block.noise_multiplier) != (steps, terms.noise_multiplier)
        or ledger.tally.spent(terms.unit, terms.delta).steps != receipt.before + steps
    ):
        raise PrivacyError(
            f"what round {plan.round} has learnt is not released: {receipt.folder} has no entry for it",
            hint="the round is lost, the next one is not; if this comes again, the folder is being changed",
        )
    return (
        TrainReport(
            round=plan.round,
            nonce=plan.nonce,
            base_fingerprint=plan.spec.base_fingerprint,
            rank=report.rank,
            alpha=plan.spec.scaling * report.rank,
            part=plan.part,
            examples=1,
            steps=steps,
            tokens=0,
        ),
        delta,
    )
