"""The dataset that a configuration describes."""

from __future__ import annotations

from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.data.quality import quality
from neuralforge_common.config.schema import TrainConfig


def read_dataset(config: TrainConfig) -> Dataset:
    """Read, cleaned and split; raises DataError."""
    data = config.dataset
    return gather(
        from_git=data.from_git,
        since=data.since,
        sources=data.sources,
        train_file=data.train_file,
        eval_file=data.eval_file,
        patterns=data.patterns,
        languages=tuple(name.strip() for name in (data.language or "").split(",") if name.strip()),
        eval_fraction=data.eval_fraction,
        max_samples=data.max_samples,
        max_eval_samples=data.max_eval_samples,
        seed=config.training.seed,
        quality=quality(without=data.rules_off, licenses=data.licenses),
        balance=data.balance,
    )
