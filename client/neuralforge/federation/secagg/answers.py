"""A round under masks in Flower's records: what a coordinator asks for, and what goes back to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from flwr.app import RecordDict

from neuralforge.federation.secagg.member import SecureMember
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import answer_to_records, masked_to_records, masks_of, state_of
from neuralforge_common.secagg.terms import state_digest

Learn: TypeAlias = Callable[[RoundPlan, FloatArray], tuple[TrainReport, FloatArray]]


def answer_question(member: SecureMember, question: str, plan: RoundPlan, content: RecordDict) -> RecordDict:
    """The answer to one of the questions beside `train`; raises as `SecureMember.answer` does."""
    return answer_to_records(member.answer(question, plan, masks_of(content)))


def train_masked(
    member: SecureMember, plan: RoundPlan, content: RecordDict, layout: AdapterLayout, learn: Learn
) -> RecordDict:
    """Learn as in any round, and send the update under masks with a report that says nothing of this client.

    `layout` is that of the state which comes with the plan. Raises as `learn` and `SecureMember` do, and
    FederationError where the state is not the plan's or the client trains at a lower rank.
    """
    # First what the others have sent: if that is not in order, nothing is learnt for it.
    member.collect(plan, masks_of(content))
    state = state_of(content, layout)
    # The keys were signed for the plan, and so for this state alone: with another one for each client, in which most
    # have nothing to learn, the sum would be one client's update.
    if plan.masking is None or state_digest(state) != plan.masking.state:
        raise FederationError("the state is not the one that everybody's keys were signed for")
    report, delta = learn(plan, state)
    if report.rank != plan.spec.rank:
        raise FederationError(
            f"under masks every client trains at the plan's rank, {plan.spec.rank}, and this one at {report.rank}: "
            "what it lacks would be in the sum of the others alone"
        )
    return masked_to_records(_silent(report, plan), member.mask(plan, delta))


def _silent(report: TrainReport, plan: RoundPlan) -> TrainReport:
    """Of a report what the plan says anyway."""
    rank, alpha = plan.spec.rank, plan.spec.alpha
    return replace(
        report, rank=rank, alpha=alpha, examples=1, steps=plan.steps or 1, tokens=0, loss=None, norm=0.0, seconds=0.0
    )
