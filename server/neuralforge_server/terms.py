"""The terms of a federation: everything that decides its rounds, in plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from neuralforge_common.accounting import Steps
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_common.plan import RoundPlan
from neuralforge_common.privacy import PrivacyTerms
from neuralforge_common.secagg.terms import LEAST_THRESHOLD
from neuralforge_common.wire import WireFormat
from neuralforge_server.aggregation.method import GlobalState

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRequest:
    """The adapter that a federation trains, as far as somebody without the base can say it."""

    base: str
    rank: int = 8
    alpha: float | None = None
    target_modules: str | tuple[str, ...] = "auto"
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralTerms:
    """User-level privacy by the coordinator's noise, see `central.py`.

    `noise_multiplier` is z, `clip` S (to begin with), `quantile` the share of updates shorter than an adaptive S.
    """

    noise_multiplier: float
    clip: float = 1.0
    adaptive: bool = False
    quantile: float = 0.5
    client_rate: float = 1.0
    target_epsilon: float = 8.0
    delta: float = 1e-5

    @property
    def steps(self) -> Steps:
        """What a round costs."""
        return Steps(sample_rate=self.client_rate, noise_multiplier=self.noise_multiplier, count=1)

    @property
    def draws(self) -> bool:
        """Whether clients are drawn at random."""
        return self.client_rate < 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How rounds go. Times are seconds; `sample` None asks everybody; `evaluate_every` 0 never asks for scores.

    `over_select` times as many clients as `sample` are asked and the first `sample` updates count. `max_norm` None
    lets admission derive a bound. `privacy` is what every client's training must satisfy, `central` what the
    coordinator adds; each asks for steps or a weighting that says nothing of anybody's data. With `trust` "peers"
    updates come under masks: more than the share `threshold` of the clients must be left, `neighbours` None is as many
    as it takes.
    """

    federation: str
    adapter: AdapterRequest
    rounds: int = 10
    min_clients: int = 2
    sample: int | None = None
    over_select: float = 1.0
    quorum: int | None = None
    deadline: float = 1800.0
    patience: float = 3600.0
    max_attempts: int = 10
    seed: int = 0
    evaluate_every: int = 1
    steps: int | None = 20
    epochs: int | None = None
    batch_size: int = 4
    learning_rate: float = 3e-3
    schedule: Schedule = "constant"
    warmup_steps: int = 2
    max_length: int = 256
    proximal_mu: float = 0.0
    max_grad_norm: float = 1.0
    wire: WireFormat = "fp32"
    weighting: Literal["examples", "uniform"] = "examples"
    max_weight: int = 10_000
    max_norm: float | None = None
    max_report_bytes: int = 16_384
    method: str = "mean"
    personal: Literal["none", "A", "B"] = "none"
    privacy: PrivacyTerms | None = None
    central: CentralTerms | None = None
    trust: Literal["server", "peers"] = "server"
    threshold: float = LEAST_THRESHOLD
    neighbours: int | None = None

    @property
    def needed(self) -> int:
        """Updates that a round must have to count."""
        return self.quorum if self.quorum is not None else min(self.min_clients, self.sample or self.min_clients)

    @property
    def draws_clients(self) -> bool:
        """Whether a coin decides for each client whether a round asks it."""
        return self.central is not None and self.central.draws

    def asked(self, online: int) -> int:
        """How many of the clients at hand are asked."""
        if self.sample is None:
            return online
        return min(online, math.ceil(self.sample * self.over_select))

    def rate(self, round_number: int) -> float:
        """The clients' learning rate of a round."""
        progress = (round_number - 1) / self.rounds
        factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return self.learning_rate * factor[self.schedule]

    def fixed(self) -> dict[str, object]:
        """What may not change while a federation lives: with other values its committed rounds would mean nothing."""
        local, central = self.privacy, self.central
        return {
            "federation": self.federation,
            "method": self.method,
            "adapter": asdict(self.adapter),
            "privacy": local and {"unit": local.unit, "target_epsilon": local.target_epsilon, "delta": local.delta},
            "central": central and {"target_epsilon": central.target_epsilon, "delta": central.delta},
        }

    def plan(
        self, round_number: int, nonce: str, *, spec: AdapterSpec, layout: AdapterLayout, state: GlobalState, part: Part
    ) -> RoundPlan:
        """The plan of a round; `layout` is that of the state which is sent with it."""
        return RoundPlan(
            federation=self.federation,
            round=round_number,
            rounds=self.rounds,
            nonce=nonce,
            spec=spec,
            layout_digest=layout.digest,
            frozen_rank=state.frozen_rank,
            part=part,
            personal=self.personal,
            steps=self.steps,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.rate(round_number),
            warmup_steps=self.warmup_steps,
            max_length=self.max_length,
            max_grad_norm=self.max_grad_norm,
            proximal_mu=self.proximal_mu,
            wire=self.wire,
            weighting=self.weighting,
            seed=self.seed,
            privacy=self.privacy,
            trust=self.trust,
        )
