"""Developers who take part in a federation: real participants on nf-tiny, and the plans that they are sent."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from neuralforge.data.dataset import Dataset
from neuralforge.federation.memory import Memory
from neuralforge.federation.participant import Participant
from neuralforge.federation.resident import ResidentModel
from neuralforge.models.load import load_base_model
from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan

NOON = datetime(2026, 3, 2, 12, 0)
TARGETS = ("q_proj", "v_proj")


def nf_tiny(**options: Any) -> ResidentModel:
    """nf-tiny in fp32, loaded when it is first needed."""
    return ResidentModel(lambda name: load_base_model(name, dtype="float32", device="cpu"), name="nf-tiny", **options)


def developer(resident: ResidentModel, data: Dataset, folder: Path, **options: Any) -> Participant:
    """A participant whose memory is in `folder`."""
    notices = options.pop("notices", [])
    memory = Memory(folder / "memory", tell=notices.append)
    return Participant(resident, data, memory=memory, **{"now": lambda: NOON, **options})


def plan_for(who: Participant, **changes: Any) -> RoundPlan:
    """A plan that fits the participant's base; `rank` and `frozen_rank` give the layout."""
    rank, frozen = changes.pop("rank", 4), changes.get("frozen_rank", 0)
    spec, layout = who.describe("nf-tiny", rank=rank, alpha=2.0 * rank, target_modules=TARGETS, dropout=0.0)
    plan = RoundPlan(
        federation="team",
        round=1,
        rounds=9,
        nonce="n-1",
        spec=spec,
        layout_digest=layout.with_rank(rank + frozen).digest,
        steps=3,
        batch_size=2,
        learning_rate=3e-3,
        max_length=64,
        seed=5,
    )
    return replace(plan, **({"steps": None} if changes.get("epochs") else {}), **changes)


def state_for(who: Participant, plan: RoundPlan, *, seed: int = 1) -> tuple[AdapterLayout, FloatArray]:
    """The layout of a plan's state, and such a state with B not zero, so that A has a gradient as well."""
    layout = who.layout(plan)
    state = layout.draw(seed)
    part = layout.part_slice("B")
    state[part] = np.random.default_rng(seed).normal(0, 0.02, layout.size_b).astype(np.float32)
    return layout, state
