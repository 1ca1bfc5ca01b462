"""A training run's configuration, as `resolve.py` reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from neuralforge_common.config.resolve import Resolved, flatten, resolve, to_yaml
from neuralforge_common.config.rules import TRAIN
from neuralforge_common.config.schema import TrainConfig

__all__ = ["ResolvedConfig", "flatten", "load_train_config", "resolve_train_config", "to_yaml", "variable_of"]

ResolvedConfig: TypeAlias = Resolved[TrainConfig]


def load_train_config(file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]) -> TrainConfig:
    """The configuration of a run; `overrides` maps dotted keys of the command line to values, as text or typed.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    return resolve_train_config(file, overrides, environ).config


def resolve_train_config(
    file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> ResolvedConfig:
    """As `load_train_config`, with the origin of each value and notices.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    return resolve(TRAIN, file, overrides, environ)


def variable_of(key: str) -> str:
    """The environment variable of a dotted key of a training run."""
    return TRAIN.variable_of(key)
