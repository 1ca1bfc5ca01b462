"""A round under masks in Flower's records: what a coordinator asks for, and what goes back to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from flwr.app import RecordDict

from neuralforge.federation.secagg.member import SecureMember
from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import answer_to_records, masked_to_records, masks_of, state_of

Learn: TypeAlias = Callable[[RoundPlan, FloatArray], tuple[TrainReport, FloatArray]]


def answer_question(member: SecureMember, question: str, plan: RoundPlan, content: RecordDict) -> RecordDict:
    """The answer to one of the questions beside `train`; raises as `SecureMember.answer` does."""
    return answer_to_records(member.answer(question, plan, masks_of(content)))


def train_masked(
    member: SecureMember, plan: RoundPlan, content: RecordDict, layout: AdapterLayout, learn: Learn
) -> RecordDict:
    """Learn as in any round, and send the update under masks with a report that says nothing of this client.

    `layout` is that of the state which comes with the plan. Raises as `learn` and `SecureMember` do.
    """
    # First what the others have sent: if that is not in order, nothing is learnt for it.
    member.collect(plan, masks_of(content))
    report, delta = learn(plan, state_of(content, layout))
    # Sums are of equal lengths: a client of a lower rank changed nothing in the components that it lacks.
    whole = layout.with_rank(report.rank).resized(delta, plan.spec.rank, part=plan.part)
    return masked_to_records(_silent(report, plan), member.mask(plan, whole))


def _silent(report: TrainReport, plan: RoundPlan) -> TrainReport:
    """Of a report what the plan says anyway."""
    rank, alpha = plan.spec.rank, plan.spec.alpha
    return replace(
        report, rank=rank, alpha=alpha, examples=1, steps=plan.steps or 1, tokens=0, loss=None, norm=0.0, seconds=0.0
    )
