"""What `train --continue-from` adds: the adapter says what it is, its history what it has learnt, a key locks that."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from neuralforge.data.dataset import Dataset
from neuralforge.data.jsonl import write_examples
from neuralforge.data.run_folder import HELD_OUT_FILE, REPLAY, continual_folder, languages_folder, run_folder
from neuralforge_common.config.load import ResolvedConfig
from neuralforge_common.config.resolve import Origin
from neuralforge_common.config.schema import LoraSection, TrainConfig
from neuralforge_common.errors import ConfigError, VaultError
from neuralforge_common.folder import AdapterFolder, read_adapter_folder

if TYPE_CHECKING:
    from neuralforge.continual.incremental import IncrementalLearner, Learnt
    from neuralforge.continual.keys import Key


def continued(resolved: ResolvedConfig) -> ResolvedConfig:
    """The configuration of a run, with base, rank, alpha, modules and place of the adapter that it continues.

    Raises:
        ConfigError: somebody has asked for others, with both values.
        AdapterError: there is no such adapter, or it is damaged.
    """
    config = resolved.config
    path = config.optimization.continue_from
    if path is None:
        return resolved
    if path.suffix != ".lora":
        origin = resolved.origins["optimization.continue_from"]
        raise ConfigError([f"{origin}: optimization.continue_from: wanted a folder NAME.lora, got {path}"])
    found = read_adapter_folder(path)
    _refuse_contradictions(resolved, found)
    spec = found.spec
    lora = LoraSection.model_construct(
        rank=spec.rank,
        alpha=spec.alpha,
        dropout=spec.dropout,
        target_modules=spec.target_modules,
        top_layers=None if spec.layers is None else len(spec.layers),
    )
    named = resolved.origins["model.base"].kind != "default"
    model = config.model.model_copy(
        update={
            "base": config.model.base if named else spec.base,
            "revision": config.model.revision if named else spec.base_revision,
            "adapter_name": path.name.removesuffix(".lora"),
        }
    )
    output = config.output.model_copy(update={"directory": path.parent})
    changed = config.model_copy(update={"lora": lora, "model": model, "output": output})
    adapters = Origin(kind="file", where=str(path))
    keys = [*(f"lora.{name}" for name in LoraSection.model_fields), "model.adapter_name", "output.directory"]
    keys += [] if named else ["model.base", "model.revision"]
    return replace(resolved, config=changed, origins={**resolved.origins, **dict.fromkeys(keys, adapters)})


def remembers(resolved: ResolvedConfig) -> bool:
    """Whether this run leaves behind what a later session needs: it continues one, or a person has said so.

    A key that somebody has named is saying so; a keyring that happens to be there is not.
    """
    optimization = resolved.config.optimization
    return (
        optimization.continue_from is not None
        or optimization.remember
        or (optimization.replay_buffer_size > 0 and _key_is_named(optimization.key_file))
    )


def find_key(resolved: ResolvedConfig) -> Key | None:
    """The key for what is kept of the code, None where none is kept; before anything is loaded.

    Raises:
        VaultError: there is none, with the ways out.
    """
    from neuralforge.continual.keys import choose_key
    from neuralforge.continual.vault import read_header

    optimization = resolved.config.optimization
    if optimization.replay_buffer_size == 0:
        return None
    continuing = optimization.continue_from is not None
    header = read_header(continual_folder(resolved.config.adapter_path) / REPLAY) if continuing else None
    ask = getpass.getpass if sys.stdin.isatty() else None
    try:
        return choose_key(header.kind if header else None, key_file=optimization.key_file, ask=ask)
    except VaultError as error:
        way = "go on with EWC alone" if continuing else "keep no code"
        raise VaultError(error.message, hint=f"{error.hint}; or {way}: --replay-buffer-size 0") from error


def open_learner(resolved: ResolvedConfig, key: Key | None) -> IncrementalLearner:
    """The learner of a run that remembers; its trainer comes later."""
    from neuralforge.continual.incremental import IncrementalLearner

    optimization = resolved.config.optimization
    return IncrementalLearner(
        resolved.config.adapter_path,
        ewc_lambda=optimization.ewc_lambda,
        replay_buffer_size=optimization.replay_buffer_size,
        replay_ratio=optimization.replay_ratio,
        replay_balance=optimization.replay_balance,
        der_alpha=optimization.der_alpha,
        progressive=optimization.progressive,
        orthogonal_lambda=optimization.orthogonal_lambda,
        key=key,
        anew=optimization.continue_from is None,
    )


def opening(learner: IncrementalLearner) -> str:
    """A line on what this session builds on."""
    sessions = len(learner.sessions)
    blocks = learner.remembered.blocks() if learner.progressive else None
    if not sessions:
        holds = "it is frozen beside a new block" if blocks else "nothing holds what it knows in this session"
        return f"{learner.path} has no history: {holds}; from now on its sessions are remembered"
    kept = []
    if blocks is not None:
        kept.append(f"a new block beside {len(blocks.ranks)} frozen")
    elif learner.ewc.state is not None and learner.ewc.ewc_lambda > 0:
        kept.append(f"EWC at {learner.ewc.ewc_lambda:g}")
    if len(learner.replay_buffer) and learner.replay_ratio > 0:
        answers = sum(item.answer is not None for item in learner.replay_buffer.items) if learner.der_alpha > 0 else 0
        which = f" ({answers:,} with their answers)" if answers else ""
        share = f"{learner.replay_ratio:.0%} of each batch"
        kept.append(f"{len(learner.replay_buffer):,} examples to replay{which}, {share}")
    return f"{learner.path} after {sessions} session{'s' * (sessions > 1)}: {', '.join(kept) or 'nothing is held'}"


def checkpoint_folder(config: TrainConfig, learner: IncrementalLearner | None) -> Path:
    """Where a run saves itself; each session of an adapter in a folder of its own, as it begins from other weights."""
    place = config.output.checkpoint_dir or run_folder(config.output.directory, config.model.adapter_name)
    if learner is None or config.optimization.continue_from is None:
        return place
    return place / _session_name(str(len(learner.sessions) + 1))


def _session_name(number: str) -> str:
    return f"session-{number}"


def finish(config: TrainConfig, dataset: Dataset, learnt: Learnt, console: Console) -> None:
    """Tell what a session that is remembered came to."""
    from neuralforge.cli.progress import before_and_after

    optimization, path = config.optimization, config.adapter_path
    if optimization.replay_buffer_size == 0 and dataset.evaluation:
        # No code is kept encrypted: as after a plain training, `test-adapter` finds it in the clear.
        write_examples(run_folder(path.parent, config.model.adapter_name) / HELD_OUT_FILE, dataset.evaluation)
    if optimization.continue_from is not None and config.output.checkpoint_dir is None and learnt.session is not None:
        # Of use until the session is in the history; the next one saves itself elsewhere.
        shutil.rmtree(run_folder(path.parent, config.model.adapter_name) / _session_name(learnt.session.name), True)
    result, session = learnt.result, learnt.session
    if result.before is not None and result.after is not None:
        title = f"held out: {result.after.examples} examples, {result.after.tokens:,} tokens, none of them trained on"
        names = ("base", "adapter") if optimization.continue_from is None else ("before", "after")
        console.print(before_and_after(result.before, result.after, title=title, names=names))
    if learnt.repeated:
        why = "hold them out" + (", or were charged for them" if config.privacy.enabled else "")
        console.print(f"{learnt.repeated:,} examples were left out: earlier sessions {why}")
    if (merged := learnt.merged) is not None:
        console.print(
            f"{len(merged.blocks.ranks)} blocks, merged into one adapter of rank {config.lora.rank}: "
            f"{merged.error:.1%} of the whole is not in it"
        )
        for language, gates in merged.gates.items():
            weights = ", ".join(f"{weight:.2f}" for weight in gates.weights)
            console.print(f"for {language}: weights {weights}, in {languages_folder(path) / language}.lora")
    if session is not None:
        console.print(
            f"session {session.name}: {session.examples:,} examples learnt, {session.replayed:,} earlier ones at hand "
            f"to be replayed, {session.held_out:,} held out for the forget report"
        )
    console.print(
        f"saved {path}\nnext: neuralforge forget-report {path}\n      neuralforge benchmark --adapter {path}",
        soft_wrap=True,
    )


def forget_history(config: TrainConfig, console: Console) -> None:
    """The history of an adapter that a plain training is about to replace."""
    if continual_folder(config.adapter_path).is_dir():
        from neuralforge.continual.history import History

        History(config.adapter_path).forget()
        shutil.rmtree(languages_folder(config.adapter_path), ignore_errors=True)
        console.print(f"{config.adapter_path} begins anew: what its earlier sessions had left is removed")


def _key_is_named(key_file: Path | None) -> bool:
    from neuralforge.continual.keys import PASSPHRASE

    return key_file is not None or bool(os.environ.get(PASSPHRASE))


def _refuse_contradictions(resolved: ResolvedConfig, found: AdapterFolder) -> None:
    config, spec, path = resolved.config, found.spec, found.path
    layers = None if spec.layers is None else len(spec.layers)
    values: dict[str, tuple[object, object]] = {
        "lora.rank": (spec.rank, config.lora.rank),
        "lora.alpha": (spec.alpha, config.lora.alpha),
        "lora.dropout": (spec.dropout, config.lora.dropout),
        "lora.top_layers": (layers, config.lora.top_layers),
        "model.adapter_name": (path.name.removesuffix(".lora"), config.model.adapter_name),
        "output.directory": (path.parent.resolve(), config.output.directory.resolve()),
    }
    if config.lora.target_modules != "auto":
        # As the adapter spells them: a base of another family would call them otherwise, but this one is its own.
        values["lora.target_modules"] = (tuple(sorted(spec.target_modules)), tuple(sorted(config.lora.target_modules)))
    if not spec.base_fingerprint:
        values["model.base"] = (spec.base, config.model.base)
    faults = [
        _fault(resolved, key, found, has, asked)
        for key, (has, asked) in values.items()
        if resolved.origins[key].kind != "default" and asked is not None and asked != has
    ]
    if faults:
        raise ConfigError(faults, hint="leave them out: a continued adapter stays what it is")


def _fault(resolved: ResolvedConfig, key: str, found: AdapterFolder, has: object, asked: object) -> str:
    return f"{resolved.origins[key]}: {key}: {found.path} has {_shown(has)}, asked for is {_shown(asked)}"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
