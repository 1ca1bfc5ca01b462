"""What every way of `train` starts from: the configuration as it is resolved, and what of it will not be used."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from neuralforge.cli.continuing import continued, remembers
from neuralforge.cli.private_session import as_private
from neuralforge_common.config.load import ResolvedConfig, resolve_train_config


def resolve(file: str | None, overrides: dict[str, object]) -> ResolvedConfig:
    """File, environment and command line in one."""
    return resolve_train_config(Path(file) if file else None, overrides, os.environ)


def settled(file: str | None, overrides: dict[str, object]) -> ResolvedConfig:
    """What is resolved, with what an earlier session and privacy decide."""
    found = continued(resolve(file, overrides))
    return as_private(found, remembers=remembers(found))


def print_notices(resolved: ResolvedConfig, console: Console) -> None:
    """Say what was noticed, and which keys are set and of no use."""
    for notice in (*resolved.notices, *_not_used(resolved)):
        console.print(notice)


def _not_used(resolved: ResolvedConfig) -> list[str]:
    """Keys that a file may set and that this run has no use for, in words."""
    reasons: dict[str, str] = {}
    if not resolved.config.training.focus_on and not resolved.config.dataset.features:
        reasons["training.focus_weight"] = "training.focus_on and dataset.features name nothing"
    if not remembers(resolved):
        reasons |= {
            "optimization.ewc_lambda": "a first session has no older knowledge to keep",
            "optimization.replay_buffer_size": "a first session has nothing to replay",
            "optimization.der_alpha": "a first session has nothing to replay",
        }
    if resolved.config.optimization.continue_from is None:
        reasons["optimization.progressive"] = "a first session is the first block"
    return [
        f"{key}: read and not used, {why}" for key, why in reasons.items() if str(resolved.origins[key]) != "default"
    ]
