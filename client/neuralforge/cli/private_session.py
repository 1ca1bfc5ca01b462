"""What `train --private` adds: a plan that is told before anything is learnt, an account, a folder without figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from neuralforge.data.dataset import Dataset
from neuralforge.data.run_folder import REPLAY, continual_folder, run_folder
from neuralforge.privacy.planned import LEARNING_RATE_FACTOR, Continued, PrivatePlan, plan, steps_per_epoch
from neuralforge.privacy.scope import adapter_scope
from neuralforge.privacy.units import unit_ids
from neuralforge_common.atomic import storage_errors
from neuralforge_common.config.load import ResolvedConfig
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.errors import AdapterError, PrivacyError, StorageError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.key_files import (
    PRIVATE_FOLDER,
    make_private_folder,
    read_private_file,
    write_private_file,
)
from neuralforge_common.privacy import LEVELS
from neuralforge_common.strict_json import parse_json_object

if TYPE_CHECKING:
    from neuralforge.continual.incremental import IncrementalLearner
    from neuralforge.privacy.session import PrivateSession
    from neuralforge.training.trainer import LoRATrainer, TrainResult

RUN_FILE = "private-run.json"
FEW_UNITS = 8
"""Drawn in a step on average, fewer are hard to hear through the noise."""


def as_private(resolved: ResolvedConfig, *, remembers: bool) -> ResolvedConfig:
    """The configuration as a private run reads it: earlier examples are kept and replayed only where that was asked.

    Each example that is kept is kept by a coin of its own, so a buffer has no size; and there are no stored answers.
    """
    if not resolved.config.privacy.enabled or not remembers:
        return resolved
    from neuralforge.privacy.session import UNBOUNDED

    asked = resolved.config.optimization
    named = [f"optimization.{name}" for name in ("replay_ratio", "replay_buffer_size")]
    named = [key for key in named if resolved.origins[key].kind != "default"]
    replays = bool(named) and asked.replay_ratio > 0 and asked.replay_buffer_size > 0
    changes = {"remember": True, "der_alpha": 0.0, "replay_buffer_size": UNBOUNDED if replays else 0}
    notices = []
    if not named:
        notices.append(
            "no example is kept to be replayed, as that spends its budget again: --replay-ratio 0.2 asks for it"
        )
    elif replays and "optimization.replay_buffer_size" in named:
        notices.append(
            "optimization.replay_buffer_size is no bound in a private run: what a full buffer keeps would depend on "
            "all others, so each example is kept by a coin of its own"
        )
    config = resolved.config.model_copy(update={"optimization": asked.model_copy(update=changes)})
    return replace(resolved, config=config, notices=(*resolved.notices, *notices))


def planned_run(config: TrainConfig, *, sessions: int, noise_multiplier: float | None = None) -> PrivatePlan:
    """The plan of this run, which is the session after so many where it continues an adapter; raises PrivacyError."""
    optimization, continued = config.optimization, None
    if optimization.continue_from is not None:
        share = 0.0
        if optimization.replay_buffer_size and (continual_folder(config.adapter_path) / REPLAY).is_dir():
            share = optimization.replay_ratio
        # Where there is as much old data as new, this share of what is drawn is old.
        rate = min(1.0, config.privacy.sample_rate * share / (1 - share)) if share < 1 else 1.0
        continued = Continued(session=sessions + 1, replay_rate=rate)
    return plan(config, continued=continued, noise_multiplier=noise_multiplier)


@contextmanager
def private_session(
    config: TrainConfig, dataset: Dataset, learner: IncrementalLearner | None, checkpoints: Path, console: Console
) -> Iterator[PrivateSession]:
    """Plan, tell, and open the adapter's account, which nobody else charges meanwhile.

    Raises:
        PrivacyError: the budget does not allow a step, or the ledger cannot be trusted; nothing has been learnt.
        StorageError: others may look into the folders, or the disk refuses.
    """
    from neuralforge.privacy.ledger import Account
    from neuralforge.privacy.session import PrivateSession, require_private

    privacy = config.privacy
    gone_on_with = config.output.resume == "auto" and any(checkpoints.glob("checkpoint-*.safetensors"))
    planned = planned_run(
        config,
        sessions=len(learner.sessions) if learner is not None else 0,
        noise_multiplier=_noise_of(checkpoints, adapter_scope(config.adapter_path)) if gone_on_with else None,
    )
    if learner is not None and (found := learner.remembered.found) is not None:
        require_private(found, planned)
    console.print(str(planned), highlight=False)
    console.print("losses and figures on held-out examples are without noise: for your eyes, not to be published")
    with Account.open(planned.home, planned.scope, unit=planned.terms.unit, tell=console.print) as account:
        if gone_on_with:
            _require_charged(checkpoints, account.spent(planned.terms.delta).steps)
        session = PrivateSession(
            planned,
            account,
            # A run is saved at the end of each block: what a crash repeats is the block that it was in.
            block=None if privacy.accountant == "prv" else config.training.checkpoint_steps or planned.steps,
            engine=privacy.engine,
            max_unit_examples=privacy.max_unit_examples,
            accountant=privacy.accountant,
        )
        if learner is None:
            session.begin(dataset.train)
        for notice in _for_the_owner(planned, dataset):
            console.print(notice)
        if not gone_on_with:
            make_private_folder(checkpoints)
            record = {"format": 1, "scope": planned.scope, "noise_multiplier": planned.terms.noise_multiplier}
            write_private_file(checkpoints / RUN_FILE, json.dumps(record).encode() + b"\n")
        yield session


def private_options(config: TrainConfig, planned: PrivatePlan, trainer: LoRATrainer) -> dict[str, Any]:
    """For `LoRATrainer.train`: nothing is chosen by what is held out, and the noised gradient is left as it is."""
    from neuralforge.training.schedule import default_learning_rate, make_scheduler

    training = config.training
    rate = training.learning_rate or LEARNING_RATE_FACTOR * default_learning_rate(trainer.base.parameters)
    return {
        "lr_scheduler": make_scheduler(
            training.scheduler, base_lr=rate, warmup_steps=training.warmup_steps, total_steps=planned.steps
        ),
        "keeps": "last",
        "early_stopping_patience": 0,
        "max_grad_norm": 0.0,
        "trainable": trainer.flat.mask("B") if freezes_a(config) else None,
    }


def freezes_a(config: TrainConfig) -> bool:
    """Whether B alone is trained: where that was asked for, as all of LoRA was measured to learn more."""
    return bool(config.privacy.freeze_a)


def way_on(config: TrainConfig, command: str) -> str:
    """How a run that was stopped is gone on with, and what that costs."""
    if config.privacy.accountant == "prv":
        return "its whole schedule is charged, and prv cannot count a resumed one: begin anew, under another name"
    return f"to go on: {command}\nsteps that it repeats are charged again"


def closing(session: PrivateSession, result: TrainResult) -> str:
    """What was spent, and how the run came to its end."""
    spent = session.statement()
    line = f"spent: {spent}, in {spent.steps:,} steps; the adapter says so, and nothing else about its data"
    if result.steps < session.planned.steps:
        return f"the budget is spent: {result.steps:,} of {session.planned.steps:,} steps were taken\n{line}"
    return line


def keep_private(config: TrainConfig) -> None:
    """See that nobody else can read what a run leaves beside its adapter: losses, counts, digests, examples.

    Those are functions of the data without noise. The folders are closed to others, and git passes them over.

    Raises:
        StorageError: a folder that somebody has named is open to others.
    """
    records = run_folder(config.output.directory, config.model.adapter_name)
    with storage_errors(records):
        records.mkdir(parents=True, exist_ok=True)
        records.chmod(PRIVATE_FOLDER)  # a run that was not private may have made it
        (records.parent / ".gitignore").write_text("*\n")
    for folder in filter(None, (config.output.checkpoint_dir, config.output.tensorboard)):
        make_private_folder(folder)


def preview_private(config: TrainConfig, dataset: Dataset, console: Console) -> None:
    """Of a dry run: what would be spent."""
    planned = planned_run(config, sessions=_sessions(config))
    console.print(str(planned), highlight=False)
    for notice in _for_the_owner(planned, dataset):
        console.print(notice)
    console.print(
        f"{len(dataset.train):,} examples, {len(dataset.evaluation):,} held out; "
        f"{steps_per_epoch(planned.terms.sample_rate):,} steps an epoch, {planned.steps:,} steps in all\n"
        f"the adapter would go to {config.adapter_path}"
    )


def _sessions(config: TrainConfig) -> int:
    if config.optimization.continue_from is None:
        return 0
    from neuralforge.continual.history import History, adapter_digest

    found = read_adapter_folder(config.adapter_path)
    return len(History(found.path).read(adapter_digest(found.spec, found.state)).sessions)


def _for_the_owner(planned: PrivatePlan, dataset: Dataset) -> Iterator[str]:
    """What only who has the data may know about it: shown at the terminal, kept nowhere."""
    terms = planned.terms
    units = len(set(unit_ids(dataset.train, terms.unit)))
    level = LEVELS[terms.unit].removesuffix("-level")
    if terms.delta * units >= 1:
        yield (
            f"privacy.delta is {terms.delta:g} and there are {units:,} units: a δ that is not below one in as many "
            f"lets some {level} be published as it is"
        )
    if units * terms.sample_rate < FEW_UNITS:
        yield (
            f"a step draws {units * terms.sample_rate:.1f} of {units:,} units on average, and most of what is learnt "
            "is noise: a higher --sample-rate, or a smaller unit"
        )


def _noise_of(checkpoints: Path, scope: str) -> float | None:
    """The noise of the run of this scope that left these checkpoints; None where it was not a private one."""
    path = checkpoints / RUN_FILE
    if not path.exists():
        return None
    try:
        record = parse_json_object(read_private_file(path), what=str(path), limit=64 * 1024)
        noise, whose = record["noise_multiplier"], record["scope"]
        if not isinstance(noise, float) or not noise > 0:
            raise AdapterError(f"{path}: noise_multiplier: got {noise}")
    except (AdapterError, KeyError) as fault:
        raise StorageError(f"{path} is damaged", hint="leave --resume out to begin anew") from fault
    if whose != scope:
        raise PrivacyError(
            f"the checkpoints in {checkpoints} are of {whose}, whose steps are charged there and not to {scope}",
            hint="leave --resume out to begin anew, or name another --checkpoint-dir",
        )
    return noise


def _require_charged(checkpoints: Path, charged: int) -> None:
    taken = max(int(path.stem.rpartition("-")[2]) for path in checkpoints.glob("checkpoint-*.safetensors"))
    if taken > charged:
        raise PrivacyError(
            f"{checkpoints} holds {taken:,} steps, and the ledger of this adapter knows of {charged:,}",
            hint="put the ledger back, or leave --resume out to begin anew",
        )
