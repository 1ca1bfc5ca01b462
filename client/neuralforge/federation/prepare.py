"""From a client's configuration to a `Participant`: its data gathered, its base loaded when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from neuralforge.continual.item import ReplayItem
from neuralforge.continual.keys import choose_key
from neuralforge.continual.replay import ReplayBuffer
from neuralforge.continual.vault import read_header
from neuralforge.data.configured import read_dataset
from neuralforge.data.dataset import Dataset
from neuralforge.data.run_folder import REPLAY
from neuralforge.federation.home import MEMORY, client_home
from neuralforge.federation.memory import Memory
from neuralforge.federation.participant import Participant
from neuralforge.federation.private_rounds import PrivateRounds
from neuralforge.federation.remembering import Remembering
from neuralforge.federation.resident import ResidentModel
from neuralforge.federation.secagg.member import SecureMember
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.training.engine import EngineOptions
from neuralforge.training.events import Observer
from neuralforge.training.trainer import DEFAULT_CACHE_BYTES
from neuralforge_common.adapter import MAX_RANK
from neuralforge_common.config.load import ResolvedConfig, resolve_train_config
from neuralforge_common.config.policy import SitePolicy, load_site_policy

STOCK = "federation of a stock Flower"
"""The scope where no federation was joined: of all of them together, as a coordinator's name for itself is no name."""


def participant_from_config(file: Path) -> Participant:
    """The participant that a configuration file describes, for a Flower that already knows this machine.

    Raises:
        ConfigError: the file, or the site policy that it names, is not sound.
        DataError: there is nothing to learn from.
    """
    resolved = resolve_train_config(file, {}, os.environ)
    home = resolved.config.federation.home or client_home()
    return make_participant(resolved, memory=home / MEMORY, tell=lambda line: None)


def make_participant(
    resolved: ResolvedConfig,
    *,
    memory: Path,
    tell: Callable[[str], None],
    dataset: Dataset | None = None,
    member: SecureMember | None = None,
    scope: str = STOCK,
    observers: Sequence[Observer] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Participant:
    """A participant as `resolved` says; `memory` is its folder, `dataset` stands for the data that the file names.

    `scope` names the ledger of what private rounds cost, see `privacy.scope`.
    What the rounds learn is the coordinator's to say: of `lora` and `training` only the engine's options count.

    Raises:
        ConfigError: the site policy is not sound.
        DataError: there is nothing to learn from.
    """
    config = resolved.config
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    data = dataset if dataset is not None else read_dataset(config)
    policy = load_site_policy(config.federation.policy) if config.federation.policy else SitePolicy()
    remembered = remembering(resolved, data, memory / REPLAY)
    if config.privacy.enabled or policy.require.demands_privacy:
        remembered.check_private()  # now, not in the first round
    return Participant(
        resident_model(resolved),
        data,
        memory=Memory(memory, tell=tell),
        policy=policy,
        max_rank=config.federation.max_rank or MAX_RANK,
        adapter_path=config.adapter_path,
        remembering=remembered,
        member=member,
        private=PrivateRounds(
            home=config.federation.home or client_home(),
            scope=scope,
            own=config.privacy,
            tell=tell,
        ),
        observers=observers,
        stop=stop,
    )


def remembering(resolved: ResolvedConfig, data: Dataset, folder: Path) -> Remembering:
    """What keeps this client from forgetting; only what somebody has asked for, a federation's rounds are not ours.

    `folder` is the replay buffer of this federation. Today's examples join it before anything of it is replayed, so
    that a restart with the same data replays the same.

    Raises:
        VaultError: there is no key for it, or another one.
        StorageError: the disk refuses.
    """
    optimization = resolved.config.optimization
    asked = {key for key, origin in resolved.origins.items() if origin.kind != "default"}
    items: tuple[ReplayItem, ...] = ()
    if "optimization.replay_buffer_size" in asked and optimization.replay_buffer_size > 0:
        header = read_header(folder)
        key = choose_key(header.kind if header else None, key_file=optimization.key_file)
        buffer = ReplayBuffer.open(
            folder, key, max_size=optimization.replay_buffer_size, balance=optimization.replay_balance or "uniform"
        )
        session = data.digest[:16]
        if session not in buffer.sessions:
            buffer.add(data.train, session=session)
        items = buffer.items
    return Remembering(
        ewc_lambda=optimization.ewc_lambda or 0.0,
        anchor=optimization.anchor,
        items=items,
        share=optimization.replay_ratio,
    )


def resident_model(resolved: ResolvedConfig) -> ResidentModel:
    """The base that `resolved` names, or whichever a federation trains where it names none; not loaded yet."""
    config = resolved.config
    training, model = config.training, config.model
    named = resolved.origins["model.base"].kind != "default"
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "auto", "auto": "auto"}[training.requested_precision]

    def load(name: str) -> BaseModel:
        # Revision and trust were said of the base in the file, and of no other.
        return load_base_model(
            name,
            revision=model.revision if named else None,
            dtype=dtype,
            device=training.device,
            trust_remote_code=model.trust_remote_code and named,
        )

    return ResidentModel(
        load,
        name=model.base if named else None,
        options=EngineOptions(
            engine="opacus" if config.privacy.enabled and config.privacy.engine == "opacus" else training.engine,
            int8=training.int8,
            attention=training.attention,
            context_gradients=training.context_gradients,
            gradient_checkpointing=training.gradient_checkpointing,
            cache_bytes=DEFAULT_CACHE_BYTES if training.cache_prefix else 0,
        ),
        fp16=training.requested_precision == "fp16",
    )
