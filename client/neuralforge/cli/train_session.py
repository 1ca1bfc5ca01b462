"""What `train` does once its arguments are known: resolve, read, load, learn, save, and say so."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from neuralforge.cli.console import plain_console
from neuralforge.cli.continuing import (
    checkpoint_folder,
    find_key,
    finish,
    forget_history,
    open_learner,
    opening,
    remembers,
)
from neuralforge.cli.focusing import focus_line, focus_of, wanted_detectors
from neuralforge.cli.present import dataset_table
from neuralforge.cli.private_session import (
    closing,
    keep_private,
    private_options,
    private_session,
    way_on,
)
from neuralforge.cli.train_settled import print_notices, settled
from neuralforge.data.configured import read_dataset
from neuralforge.data.dataset import Dataset
from neuralforge.data.git import NothingChanged
from neuralforge.data.jsonl import write_examples
from neuralforge.data.run_folder import HELD_OUT_FILE, run_folder
from neuralforge.models.origin import find
from neuralforge_common.atomic import storage_errors
from neuralforge_common.config.load import ResolvedConfig
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.errors import StorageError
from neuralforge_common.folder import check_replaceable
from neuralforge_common.stop import StopRequest

if TYPE_CHECKING:
    from neuralforge.continual.incremental import IncrementalLearner, Learnt
    from neuralforge.continual.keys import Key
    from neuralforge.privacy.session import PrivateSession
    from neuralforge.training.trainer import LoRATrainer, TrainResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Debugging:
    """What a person who looks for a fault has asked for."""

    log_level: str = "WARNING"
    profile_memory: bool = False
    track_gradients: bool = False


def train(file: str | None, overrides: dict[str, object], debugging: Debugging) -> int:
    """Run a whole training; returns the exit status."""
    console = plain_console(soft_wrap=not sys.stdout.isatty())
    resolved = settled(file, overrides)
    config = resolved.config
    if config.privacy.enabled and config.federation.server is None:
        keep_private(config)
    # A name that there is not is told before anything is read.
    wanted_detectors(config)
    find(config.model.base)
    _check_writable(config)
    if config.federation.server is not None:
        from neuralforge.cli.federated_session import take_part

        return take_part(resolved, log_level=debugging.log_level)
    print_notices(resolved, console)
    key = find_key(resolved) if remembers(resolved) else None
    try:
        dataset = read_dataset(config)
    except NothingChanged as nothing:
        console.print(f"{nothing.message}: there is nothing to learn")
        return 0
    console.print(dataset_table(dataset.report))
    learner = _learner(resolved, key, console) if remembers(resolved) else None
    with contextlib.ExitStack() as until_done:
        private = None
        if config.privacy.enabled:
            place = checkpoint_folder(config, learner)
            private = until_done.enter_context(private_session(config, dataset, learner, place, console))
        return _train(config, dataset, learner, private, console, debugging)


def _train(
    config: TrainConfig,
    dataset: Dataset,
    learner: IncrementalLearner | None,
    private: PrivateSession | None,
    console: Console,
    debugging: Debugging,
) -> int:
    trainer = _trainer(config, console, debugging)
    if learner is not None:
        learner.use(trainer)
    with StopRequest().listening() as stop:
        result, learnt = _learn(config, dataset, trainer, learner, private, console, stop, debugging)
    if not result.completed:
        again = [Path(sys.argv[0]).name, *sys.argv[1:]]
        if config.output.resume != "auto":
            again += ["--resume", "auto"]
        place = checkpoint_folder(config, learner)
        way = f"to go on: {shlex.join(again)}" if private is None else way_on(config, shlex.join(again))
        console.print(
            f"stopped after step {result.steps}, saved in {place}\n{way}",
            soft_wrap=True,  # a command that is broken into lines cannot be copied
        )
        return 128 + (stop.signal or signal.SIGINT)
    if learnt is None:
        _finish(config, dataset, trainer, result, private, console)
    else:
        finish(config, dataset, learnt, console)
    if private is not None:
        console.print(closing(private, result), soft_wrap=True)
    return 0


def _check_writable(config: TrainConfig) -> None:
    # Found out now, not after an hour of training.
    output = config.output
    for folder in filter(None, (output.directory, output.checkpoint_dir, output.tensorboard)):
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise StorageError(f"cannot write {folder}: permission denied", hint="choose a folder you may write to")
    check_replaceable(config.adapter_path)


def _learner(resolved: ResolvedConfig, key: Key | None, console: Console) -> IncrementalLearner:
    with console.status("loading torch") if console.is_terminal else contextlib.nullcontext():
        learner = open_learner(resolved, key)
    if resolved.config.optimization.continue_from is not None:
        console.print(opening(learner))
        found = learner.remembered.found
        if found is not None and found.metadata.privacy is not None and not resolved.config.privacy.enabled:
            console.print(f"{found.path} is private and this session is not: it will say so no longer")
    return learner


def _trainer(config: TrainConfig, console: Console, debugging: Debugging) -> LoRATrainer:
    with console.status("loading torch") if console.is_terminal else contextlib.nullcontext():
        import torch

        from neuralforge.models.load import load_base_model
        from neuralforge.training.losses.named import named_loss
        from neuralforge.training.trainer import DEFAULT_CACHE_BYTES, LoRATrainer
    logging.basicConfig(level=debugging.log_level)
    training = config.training
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "auto", "auto": "auto"}[training.requested_precision]
    with console.status(Text(f"loading {config.model.base}")) if console.is_terminal else contextlib.nullcontext():
        base = load_base_model(
            config.model.base,
            revision=config.model.revision,
            dtype=dtype,
            device=training.device,
            trust_remote_code=config.model.trust_remote_code,
        )
    for notice in base.notices:
        console.print(notice)
    console.print(f"base {base.name}: {base.parameters / 1e6:,.0f} M parameters, {base.family}")
    return LoRATrainer(
        base,
        rank=config.lora.rank,
        alpha=config.lora.resolved_alpha,
        target_modules=config.lora.target_modules,
        dropout=config.lora.dropout,
        top_layers_only=config.lora.top_layers,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_checkpointing=training.gradient_checkpointing,
        fp16=training.requested_precision == "fp16",
        max_length=config.dataset.max_length,
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
        seed=training.seed,
        engine="opacus" if config.privacy.enabled and config.privacy.engine == "opacus" else training.engine,
        int8=training.int8,
        attention=training.attention,
        context_gradients=training.context_gradients,
        cache_bytes=DEFAULT_CACHE_BYTES if training.cache_prefix else 0,
        loss_on_context=training.loss_on_context,
        loss=named_loss(training.loss, label_smoothing=training.label_smoothing, weight=training.loss_weight),
    )


def _learn(
    config: TrainConfig,
    dataset: Dataset,
    trainer: LoRATrainer,
    learner: IncrementalLearner | None,
    private: PrivateSession | None,
    console: Console,
    stop: StopRequest,
    debugging: Debugging,
) -> tuple[TrainResult, Learnt | None]:
    from neuralforge.cli.progress import TrainingProgress
    from neuralforge.cli.task_shares import learn_tasks
    from neuralforge.training.events import Observer
    from neuralforge.training.records import MetricsFile, TensorBoard
    from neuralforge.training.shares import Shares

    progress = TrainingProgress(console, first="base" if config.optimization.continue_from is None else "before")
    records = run_folder(config.output.directory, config.model.adapter_name)
    observers: list[Observer] = [MetricsFile(records, profile_memory=debugging.profile_memory), progress]
    board = TensorBoard(config.output.tensorboard) if config.output.tensorboard is not None else None
    if board is not None:
        observers.append(board)
    training = config.training
    checkpoints = checkpoint_folder(config, learner)
    how: dict[str, Any] = {
        "epochs": training.epochs,
        "schedule": training.scheduler,
        "warmup_steps": training.warmup_steps,
        "max_steps": training.max_steps,
        "eval_steps": training.eval_steps,
        "early_stopping_patience": training.early_stopping_patience,
        "checkpoint_dir": checkpoints,
        "checkpoint_steps": training.checkpoint_steps,
        "resume": config.output.resume == "auto",
        "observers": observers,
        "stop": stop,
        "track_gradients": debugging.track_gradients,
    }
    if private is not None:
        how |= private_options(config, private.planned, trainer)
    try:
        if learner is None:
            if private is not None:
                how["gradient"] = private.gradient
            if config.tasks.shares:
                return learn_tasks(trainer, config.tasks.shares, dataset, console, **how), None
            focus = focus_of(config, dataset)
            if focus is not None:
                console.print(focus_line(focus))
                if focus.shares:
                    how["source"] = Shares(groups=focus.groups, shares=focus.shares)
            return trainer.train(dataset.train, dataset.evaluation or None, **how), None
        learnt = learner.learn_from_session(dataset, private=private, **how)
        return learnt.result, learnt
    finally:
        progress.close()
        if board is not None:
            board.close()


def _finish(
    config: TrainConfig,
    dataset: Dataset,
    trainer: LoRATrainer,
    result: TrainResult,
    private: PrivateSession | None,
    console: Console,
) -> None:
    from neuralforge.cli.progress import before_and_after

    # What `test-adapter` and `benchmark` look at where no file is named: never beside an adapter that learnt from it,
    # so an older one goes before the adapter comes. It holds no secret: see `data.dataset`.
    held_out = run_folder(config.output.directory, config.model.adapter_name) / HELD_OUT_FILE
    held_out.unlink(missing_ok=True)
    forget_history(config, console)
    path = trainer.save_adapter(
        config.adapter_path,
        name=config.model.adapter_name,
        dataset_digest=dataset.digest,
        privacy=private.statement() if private is not None else None,
    )
    if dataset.evaluation:
        write_examples(held_out, dataset.evaluation)
    if result.before is not None and result.after is not None:
        title = f"held out: {result.after.examples} examples, {result.after.tokens:,} tokens, none of them trained on"
        console.print(before_and_after(result.before, result.after, title=title))
    console.print(
        f"saved {path}\nnext: neuralforge test-adapter {path} --test-file samples.jsonl\n"
        f"      neuralforge benchmark --adapter {path}",
        soft_wrap=True,
    )
