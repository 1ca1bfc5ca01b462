"""A federation's configuration → the plain values that its parts take."""

from __future__ import annotations

from neuralforge_common.accounting import calibrate
from neuralforge_common.privacy import PrivacyTerms
from neuralforge_server.aggregation.choose import make_method
from neuralforge_server.aggregation.method import Method
from neuralforge_server.config import FederationConfig
from neuralforge_server.terms import AdapterRequest, CentralTerms, Terms


def terms_of(config: FederationConfig) -> Terms:
    """How the rounds go; raises PrivacyError where no noise would be enough for a privacy that is asked for."""
    federation, training, aggregation = config.federation, config.training, config.aggregation
    return Terms(
        federation=federation.name,
        adapter=AdapterRequest(
            base=config.adapter.base,
            rank=config.adapter.rank,
            alpha=config.adapter.resolved_alpha,
            target_modules=config.adapter.target_modules,
            dropout=config.adapter.dropout,
        ),
        rounds=federation.rounds,
        min_clients=federation.min_clients,
        sample=federation.sample,
        over_select=federation.over_select,
        quorum=federation.resolved_quorum,
        deadline=60 * federation.deadline_minutes,
        patience=60 * federation.wait_minutes,
        max_attempts=federation.max_attempts,
        seed=federation.seed,
        evaluate_every=federation.evaluate_every,
        steps=training.resolved_steps,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        warmup_steps=training.warmup_steps,
        max_length=training.max_length,
        proximal_mu=training.proximal_mu,
        max_grad_norm=training.max_grad_norm,
        wire=config.wire.format,
        weighting="uniform" if config.counts_clients_alike else aggregation.weighting,
        max_weight=aggregation.max_weight,
        max_norm=config.admission.max_update_norm,
        max_report_bytes=config.admission.max_report_bytes,
        method=aggregation.method,
        personal="B" if aggregation.method == "personal" else "none",
        privacy=privacy_of(config),
        central=central_of(config),
        trust=config.secure_aggregation.trust,
        threshold=config.secure_aggregation.threshold,
        neighbours=config.secure_aggregation.neighbours,
    )


def privacy_of(config: FederationConfig) -> PrivacyTerms | None:
    """What each client's training must satisfy; raises PrivacyError."""
    asked, steps = config.privacy, config.training.resolved_steps
    if not asked.enabled or steps is None:
        return None
    noise = asked.noise_multiplier or calibrate(
        target_epsilon=asked.target_epsilon,
        delta=asked.delta,
        sample_rate=asked.sample_rate,
        steps=steps * (config.federation.rounds + asked.spare_rounds),
    )
    return PrivacyTerms(
        noise_multiplier=noise,
        max_grad_norm=asked.max_grad_norm,
        sample_rate=asked.sample_rate,
        unit=asked.unit,
        target_epsilon=asked.target_epsilon,
        delta=asked.delta,
    )


def central_of(config: FederationConfig) -> CentralTerms | None:
    """What the coordinator's noise is; raises PrivacyError."""
    asked = config.central
    if not asked.enabled:
        return None
    noise = asked.noise_multiplier or calibrate(
        target_epsilon=asked.target_epsilon,
        delta=asked.delta,
        sample_rate=asked.client_rate,
        steps=config.federation.rounds + asked.spare_rounds,
    )
    return CentralTerms(
        noise_multiplier=noise,
        clip=asked.clip,
        adaptive=asked.adaptive_clip,
        quantile=asked.target_quantile,
        client_rate=asked.client_rate,
        target_epsilon=asked.target_epsilon,
        delta=asked.delta,
    )


def method_of(config: FederationConfig) -> Method:
    """How updates become one."""
    aggregation = config.aggregation
    return make_method(
        method=aggregation.method,
        robust=aggregation.robust,
        trim=aggregation.trim,
        byzantine=aggregation.byzantine,
        optimizer=aggregation.optimizer,
        server_learning_rate=aggregation.server_learning_rate,
        momentum=aggregation.momentum,
        beta2=aggregation.beta2,
        tau=aggregation.tau,
        residual_rank=aggregation.residual_rank,
        seed=config.federation.seed,
    )
