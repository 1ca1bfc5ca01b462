"""One attempt at a round while it runs: whom it asked, and whose updates count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_server.aggregation.method import Aggregate, Update
from neuralforge_server.exchange import askers


@dataclass(slots=True, kw_only=True)
class Attempt:
    """Whom it asked with which messages and which plan, and the norms of the updates that count, by client.

    `population` is everybody who was asked, or could have been where coins decide. `short` is how many clients were
    left under masks, and how many it takes, where they were too few.
    """

    clients: Mapping[int, str]
    messages: Sequence[Message]
    plan: RoundPlan
    population: tuple[str, ...] = ()
    norms: dict[str, float] = field(default_factory=dict)
    short: tuple[int, int] | None = None
    _losses: list[tuple[float, int]] = field(default_factory=list)

    def client_of(self, reply: Message) -> str:
        """Whom a reply comes from; empty where nobody was asked."""
        return askers(self.messages, self.clients).get(reply.metadata.reply_to_message_id, "")

    def accept(self, update: Update, report: TrainReport) -> None:
        """An update counts."""
        norm = update.norm if update.norm is not None else math.sqrt(float(update.delta @ update.delta))
        self.norms[update.client] = norm
        if report.loss is not None:
            self._losses.append((report.loss, report.tokens))

    def figures(self, aggregate: Aggregate) -> dict[str, float]:
        """What the round's record says."""
        figures = {"clients": float(aggregate.clients)} | dict(aggregate.figures)
        if tokens := sum(count for _, count in self._losses):
            figures["loss"] = sum(loss * count for loss, count in self._losses) / tokens
        if aggregate.exactness_error is not None:
            figures["exactness_error"] = aggregate.exactness_error
        return figures
