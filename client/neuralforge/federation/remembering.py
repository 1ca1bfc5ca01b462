"""What keeps a client from forgetting, over the rounds of a federation and over its restarts.

EWC goes from round to round through the client's memory: importance and anchor are entries of the round that made them,
so that a repeated round begins from the same ones and ends with the same bytes. What is replayed is settled when the
participant is made, and the same for all of its rounds.

In a private round the Fisher is that of its noised gradients, and the anchor a released model: nothing more is told.
Earlier examples have no part in it.

A state with frozen components (stacking, residual) begins each round with other components to train: there is no
weight that could be held, and EWC stays out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from neuralforge.continual.ewc import EWCRegularizer
from neuralforge.continual.fisher import Fisher
from neuralforge.continual.item import ReplayItem
from neuralforge.continual.mix import SHARE, Mix, replayed
from neuralforge.continual.state import EWCState
from neuralforge.data.dataset import Dataset
from neuralforge.training.penalty import Penalty
from neuralforge.training.source import EpochSource, SourceMaker
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan

IMPORTANCE, ANCHOR = "ewc-importance", "ewc-anchor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembering:
    """How strongly, and to what; the default remembers nothing.

    `anchor` "own" holds a weight where this client's own last round has left it; "global" where the federation's
    adapter has it now: FedProx with a strength for each weight, after FedCurv (Shoham et al. 2019, "Overcoming
    Forgetting in Federated Learning on Non-IID Data") without its exchange of Fishers between the clients.
    """

    ewc_lambda: float = 0.0
    anchor: Literal["own", "global"] = "own"
    items: tuple[ReplayItem, ...] = ()
    share: float = SHARE

    def check_private(self) -> None:
        """Refuses private rounds where something is remembered that they may not see; raises FederationError."""
        if self.items:
            raise FederationError(
                "this client replays earlier examples, and which of them a full buffer keeps depends on all others: "
                "that cannot be private",
                hint="optimization.replay_buffer_size: 0",
            )

    def penalties(
        self,
        plan: RoundPlan,
        trainer: LoRATrainer,
        kept: Mapping[str, FloatArray],
        before: FloatArray,
        *,
        rank: int,
    ) -> tuple[Penalty, ...]:
        """For a round that begins at `before`, (layout.size,); none in a client's first one."""
        state = self._state(plan, trainer, kept, rank=rank, anchor=before if self.anchor == "global" else None)
        return EWCRegularizer(self.ewc_lambda, state=state).penalties(trainer)

    def consolidated(
        self,
        plan: RoundPlan,
        trainer: LoRATrainer,
        fisher: Callable[[], Fisher],
        kept: Mapping[str, FloatArray],
        *,
        rank: int,
    ) -> dict[str, FloatArray]:
        """What the next round needs to know, at this client's rank; the trainer stands where the round has ended."""
        if self.ewc_lambda == 0 or plan.frozen_rank > 0:
            return {}
        state = EWCState.after(fisher(), self._state(plan, trainer, kept, rank=rank, anchor=None))
        layout = state.layout
        return {
            IMPORTANCE: layout.resized(state.importance, rank),
            ANCHOR: layout.resized(state.anchor, rank),
        }

    def source(self, trainer: LoRATrainer, data: Dataset) -> SourceMaker:
        """The batches of a round: this machine's examples, and earlier ones among them where there are any."""
        without = {example.id for example in (*data.train, *data.evaluation)}
        old = replayed(self.items, trainer, without=without)
        return Mix(replayed=old, share=self.share) if old.examples else EpochSource

    def _state(
        self,
        plan: RoundPlan,
        trainer: LoRATrainer,
        kept: Mapping[str, FloatArray],
        *,
        rank: int,
        anchor: FloatArray | None,
    ) -> EWCState | None:
        if self.ewc_lambda == 0 or plan.frozen_rank > 0 or IMPORTANCE not in kept:
            return None
        layout = AdapterLayout.of(trainer.state())
        small = layout.with_rank(rank)
        return EWCState(
            spec=trainer.spec,
            layout=layout,
            importance=small.resized(kept[IMPORTANCE], layout.rank),
            anchor=small.resized(kept[ANCHOR], layout.rank) if anchor is None else anchor,
            sessions=1,
        )
