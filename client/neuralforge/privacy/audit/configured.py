"""The audit of what a configuration would train: its base, engine and `privacy:` section, in throw-away adapters.

Nothing of the real adapter is read or written and its ledger is charged nothing: all of that is in a temporary folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neuralforge.data.example import Example
from neuralforge.models.base import BaseModel
from neuralforge.models.lora import detach_lora
from neuralforge.privacy.audit.canaries import Crowd, adversarial_crowd
from neuralforge.privacy.audit.one_run import audit_run
from neuralforge.privacy.audit.parts import StepClaim, StepParts
from neuralforge.privacy.audit.report import Findings
from neuralforge.privacy.ledger import Account
from neuralforge.privacy.planned import plan
from neuralforge.privacy.run import PrivateTraining
from neuralforge.privacy.sampling import PoissonSampler
from neuralforge.privacy.step import Mechanism
from neuralforge.training.losses.named import named_loss
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.noise import standard_normal
from neuralforge_common.privacy import PrivacyStatement

RANK, LAYERS, LONGEST = 2, 1, 64
"""Of the adapter that single steps are taken on: the mechanism treats every value alike, and steps are many."""


def thrown_away(config: TrainConfig, folder: Path) -> TrainConfig:
    """The same run with its adapter and its account in `folder`, where nothing was ever spent."""
    output = config.output.model_copy(update={"directory": folder, "checkpoint_dir": None, "tensorboard": None})
    federation = config.federation.model_copy(update={"home": folder, "server": None})
    return config.model_copy(update={"output": output, "federation": federation})


@contextmanager
def step_of(config: TrainConfig, base: BaseModel, *, freeze_a: bool) -> Iterator[tuple[StepParts, StepClaim, Crowd]]:
    """The parts of a step as `train --private` would take it, on a small adapter, and who takes part in it."""
    terms = plan(config).terms
    longest = min(LONGEST, config.dataset.max_length)
    trainer = _trainer(
        config, base, rank=RANK, alpha=2.0 * RANK, dropout=0.0, top_layers_only=LAYERS, max_length=longest
    )
    flat = trainer.flat
    with torch.no_grad():
        # B begins at zero, where A has no gradient.
        flat.vector.add_(torch.randn(flat.vector.shape).to(flat.vector) * 0.02)
    parts = StepParts(
        engine=trainer.engine,
        flat=flat,
        mechanism=Mechanism(noise_multiplier=terms.noise_multiplier, clip=terms.max_grad_norm, divisor=terms.divisor),
        sampler=lambda population: PoissonSampler([population], max_unit_examples=config.privacy.max_unit_examples),
        noise=standard_normal,
        sides="B" if freeze_a else "AB",
        trainable=flat.mask("B") if freeze_a else None,
    )
    claim = StepClaim(
        noise_multiplier=terms.noise_multiplier,
        clip=terms.max_grad_norm,
        sample_rate=terms.sample_rate,
        delta=terms.delta,
    )
    embedding: Any = base.model.get_input_embeddings()
    vocabulary = int(embedding.weight.shape[0])
    crowd = adversarial_crowd(vocabulary=vocabulary, max_length=longest, seq2seq=base.is_encoder_decoder)
    try:
        yield parts, claim, crowd
    finally:
        detach_lora(trainer.peft)


def run_of(
    config: TrainConfig,
    base: BaseModel,
    examples: Sequence[Example],
    *,
    freeze_a: bool,
    canaries: int,
    confidence: float,
) -> Findings:
    """Train as `train --private` would, canaries among the examples, on an account that begins at nothing."""
    lora = config.lora
    trainer = _trainer(
        config,
        base,
        rank=lora.rank,
        alpha=lora.resolved_alpha,
        dropout=lora.dropout,
        top_layers_only=lora.top_layers,
        max_length=config.dataset.max_length,
    )

    def learn(trainer: LoRATrainer, joined: list[Example]) -> PrivacyStatement:
        planned = plan(config)
        privacy, training = config.privacy, config.training
        with Account.open(planned.home, planned.scope, unit=privacy.unit, tell=lambda line: None) as account:
            private = PrivateTraining(
                planned.terms,
                account,
                joined,
                steps=planned.reach,
                what="audit",
                engine=privacy.engine,
                max_unit_examples=privacy.max_unit_examples,
                accountant=privacy.accountant,
            )
            trainer.train(
                joined,
                epochs=training.epochs,
                max_steps=planned.reach,
                schedule=training.scheduler,
                warmup_steps=training.warmup_steps,
                max_grad_norm=0.0,
                gradient=private.gradient,
                keeps="last",
                trainable=trainer.flat.mask("B") if freeze_a else None,
            )
            return private.statement()

    return audit_run(trainer, examples, canaries=canaries, learn=learn, confidence=confidence)


def _trainer(config: TrainConfig, base: BaseModel, **adapter: Any) -> LoRATrainer:
    training = config.training
    return LoRATrainer(
        base,
        target_modules=config.lora.target_modules,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        gradient_checkpointing=training.gradient_checkpointing,
        fp16=training.requested_precision == "fp16",
        weight_decay=training.weight_decay,
        engine="opacus" if config.privacy.engine == "opacus" else training.engine,
        int8=training.int8,
        attention=training.attention,
        context_gradients=training.context_gradients,
        loss_on_context=training.loss_on_context,
        loss=named_loss(training.loss, label_smoothing=training.label_smoothing, weight=training.loss_weight),
        **adapter,
    )
