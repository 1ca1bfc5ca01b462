"""What a session begins with: new examples as a dataset, and a trainer that carries the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from neuralforge.data.dataset import Dataset, dataset_from_examples
from neuralforge.data.example import Example
from neuralforge.data.jsonl import read_examples
from neuralforge.models.load import load_base_model
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import AdapterFolder, verify_base

NewData: TypeAlias = str | Path | Sequence[Example] | Dataset


def as_dataset(new_data: NewData) -> Dataset:
    """Examples or a file of them as a dataset: cleaned, a tenth held out by file; raises DataError."""
    if isinstance(new_data, Dataset):
        return new_data
    examples = read_examples(Path(new_data)) if isinstance(new_data, str | Path) else new_data
    return dataset_from_examples(examples, max_eval_samples=100)


def trainer_of(found: AdapterFolder, *, base: str | None = None, **options: Any) -> LoRATrainer:
    """A trainer of the same kind of adapter on its own base (or `base`, which must be the same), with its weights.

    Raises:
        ModelError, AdapterError: the base cannot be loaded, or is another one.
    """
    spec = found.spec
    loaded = load_base_model(
        base or spec.base,
        revision=None if base else spec.base_revision,
        device=options.pop("device", "auto"),
    )
    verify_base(spec, loaded.fingerprint, loaded.name)
    return LoRATrainer(
        loaded,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        dropout=options.pop("dropout", spec.dropout),
        top_layers_only=None if spec.layers is None else len(spec.layers),
        state=found.state,
        **options,
    )


def check_fits(found: AdapterFolder, trainer: LoRATrainer) -> None:
    """Raises AdapterError, with both values, for a trainer of another base or kind of adapter."""
    verify_base(found.spec, trainer.base.fingerprint, trainer.base.name)
    for name in ("rank", "alpha", "target_modules", "layers", "task"):
        has, wanted = getattr(trainer.spec, name), getattr(found.spec, name)
        if name == "target_modules":
            has, wanted = sorted(has), sorted(wanted)
        if has != wanted:
            raise AdapterError(f"{found.path}: its {name.replace('_', ' ')} is {wanted}, the trainer's is {has}")
