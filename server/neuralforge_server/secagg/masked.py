"""Rounds under masks as the strategy sees them: what their plans say, an attempt, the aggregate of its mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.app import ArrayRecord

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.terms import state_digest
from neuralforge_server.admission import Expectation, norm_bound
from neuralforge_server.aggregation.method import Aggregate, GlobalState, Method, Update
from neuralforge_server.secagg.stages import Line, SecureMean, secure_mean
from neuralforge_server.secagg.tally import Tally
from neuralforge_server.secagg.terms import masking_terms
from neuralforge_server.terms import Terms

TRUST_FIGURE = "trust_peers"
"""In the record of a round whose updates nobody has seen by themselves."""


class Masked:
    """`identities` are what clients sign with, as they joined with them; None where nobody keeps that."""

    def __init__(self, terms: Terms, identities: Callable[[], Mapping[str, bytes]] | None) -> None:
        self._terms = terms
        self._identities = identities

    def plan(self, plan: RoundPlan, layout: AdapterLayout, state: FloatArray, *, asked: int) -> RoundPlan:
        """A plan to train from `state` for so many clients, with the masks in it."""
        steps, size = plan.steps or 0, layout.part_size(plan.part)
        # Of single updates there is no history: the bound stays what steps and learning rate allow.
        ceiling = norm_bound(steps=steps, learning_rate=plan.learning_rate, size=size, history=())
        masking = masking_terms(
            asked=asked,
            steps=steps,
            learning_rate=plan.learning_rate,
            max_norm=self._terms.max_norm or ceiling,
            threshold=self._terms.threshold,
            neighbours=self._terms.neighbours,
        )
        return replace(plan, masking=replace(masking, state=state_digest(state)))

    def mean(
        self, plan: RoundPlan, layout: AdapterLayout, state: ArrayRecord, expectation: Expectation, line: Line
    ) -> SecureMean:
        """One attempt with the clients of `line`.

        Raises:
            TooFew: not enough of them were left at some stage.
            FederationError: what they gave does not fit together.
        """
        tally = Tally(
            plan,
            size=layout.part_size(plan.part),
            needed=self._terms.needed,
            registered=self._identities() if self._identities is not None else None,
        )
        return secure_mean(tally, plan, state, expectation, line)

    def aggregate(self, found: SecureMean, plan: RoundPlan, method: Method, state: GlobalState) -> Aggregate:
        """The new state: the method's own step along the mean. Nobody knows the avg(BA) to compare it with."""
        fold, count = method.begin(state, plan.round), len(found.survivors)
        fold.add(Update(client="all", rank=state.layout.rank, part=plan.part, delta=found.mean))
        figures = {"total_weight": float(count), TRUST_FIGURE: 1.0}
        return replace(fold.finish(), clients=count, exactness_error=None, figures=figures)
