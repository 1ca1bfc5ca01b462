"""The end of a federation on a client's machine: how good its adapter is on code held out here, and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.trainer import LoRATrainer, utc_now
from neuralforge_common import __version__, metadata
from neuralforge_common.adapter import FloatArray
from neuralforge_common.folder import write_adapter_folder
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan
from neuralforge_common.privacy import PrivacyStatement


def before_and_after(
    trainer: LoRATrainer, layout: AdapterLayout, vector: FloatArray, held_out: Sequence[TokenizedExample]
) -> metadata.Evaluation | None:
    """Figures of the base and of an adapter, None where nothing is held out; the adapter stands in the trainer then."""
    if held_out:
        trainer.load_state(layout.unflatten(np.zeros(layout.size, np.float32)))
        base = trainer.evaluate(held_out)
    trainer.load_state(layout.unflatten(vector))
    if not held_out:
        return None
    adapter = trainer.evaluate(held_out)
    return metadata.Evaluation(
        base=metadata.Scores(perplexity=base.perplexity, accuracy=base.accuracy),
        adapter=metadata.Scores(perplexity=adapter.perplexity, accuracy=adapter.accuracy),
        samples=adapter.examples,
    )


def write_finished(
    path: Path,
    plan: RoundPlan,
    trainer: LoRATrainer,
    *,
    scores: metadata.Evaluation | None,
    privacy: PrivacyStatement | None,
) -> None:
    """Write the adapter that stands in the trainer as a `.lora` folder; raises StorageError."""
    write_adapter_folder(
        path,
        spec=trainer.spec,
        state=trainer.state(),
        metadata=metadata.AdapterMetadata(
            name=path.name.removesuffix(".lora"),
            description=f"LoRA adapter of rank {trainer.spec.rank} on {trainer.base.name}, trained together in "
            f"{plan.round} rounds of the federation {plan.federation}"
            + (f"; its {plan.personal} are this client's own" if plan.personal != "none" else ""),
            accuracy=scores.adapter.accuracy if scores else None,
            created=utc_now(),
            base_model=trainer.base.name,
            neuralforge_version=__version__,
            evaluation=scores,
            privacy=privacy,
            federation_rounds=plan.round,
        ),
    )
