"""What a coordinator can be told: one frozen class a section, one field a key, bounds included.

A simulation takes the same sections (`FederationConfig`), without those that need a machine to listen on.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from neuralforge_common.config.fields import (
    A_RANK,
    ABOVE_0,
    FLAG,
    FROM_0,
    FROM_1,
    NUMBER_FROM_0,
    PATH,
    TEXT,
    AnyPath,
    FilePath,
    Line,
    Name,
    Number,
    Rank,
    Section,
    Share,
    TargetModules,
    Texts,
    Wanted,
    Whole,
)
from neuralforge_common.plan import MAX_REPORT_BYTES, MAX_STEPS

DEFAULT_STEPS = 20
_MAX_MINUTES = 60 * 24 * 30

_STEPS = Wanted(f"a whole number from 1 to {MAX_STEPS:,}")
_MINUTES = Wanted(f"minutes: a number above 0, at most {_MAX_MINUTES:,}")
_PORT = Wanted("a port from 1 to 65535")
_DELTA = Wanted("a number above 0, at most 0.1")
_RATE = Wanted("a number above 0, at most 1")
_SPARE = Wanted("a whole number from 0 to 1,000")


class FederationSection(Section):
    """`federation:` how many rounds there are, whom they ask, and when one counts.

    `min_clients` begins a round, which asks `sample` of them (None: all), `over_select` times as many to take the first
    `sample` that answer. With fewer answers than the quorum nothing changes and the round is repeated.
    """

    name: Name = "team"
    rounds: Annotated[Whole, Field(ge=1, le=MAX_STEPS), _STEPS] = 10
    min_clients: Annotated[Whole, Field(ge=1), FROM_1] = 2
    sample: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    over_select: Annotated[Number, Field(ge=1, le=3), Wanted("a number from 1 to 3")] = 1.0
    quorum: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    deadline_minutes: Annotated[Number, Field(gt=0, le=_MAX_MINUTES), _MINUTES] = 30.0
    wait_minutes: Annotated[Number, Field(gt=0, le=_MAX_MINUTES), _MINUTES] = 60.0
    max_attempts: Annotated[Whole, Field(ge=1), FROM_1] = 10
    seed: Annotated[Whole, Field(ge=0), FROM_0] = 0
    evaluate_every: Annotated[Whole, Field(ge=0), FROM_0] = 1
    start_from: Annotated[FilePath | None, PATH] = None

    @property
    def resolved_quorum(self) -> int:
        """The given quorum, else `min_clients`, or `sample` where a round takes fewer."""
        if self.quorum is not None:
            return self.quorum
        return self.min_clients if self.sample is None else min(self.min_clients, self.sample)


class AdapterSection(Section):
    """`adapter:` what is trained together."""

    base: Annotated[Line, TEXT] = "smollm2-135m"
    rank: Annotated[Rank, A_RANK] = 8
    alpha: Annotated[Number | None, Field(gt=0, le=1e6), ABOVE_0] = None
    target_modules: TargetModules = "auto"
    dropout: Share = 0.0

    @property
    def resolved_alpha(self) -> float:
        """The given alpha, else twice the rank."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class TrainingSection(Section):
    """`training:` what each client does in a round; `schedule` is that of the learning rate over the rounds.

    `steps` and `epochs` are alternatives; with neither a round has 20 steps. `proximal_mu` is FedProx's μ.
    """

    steps: Annotated[Whole | None, Field(ge=1, le=MAX_STEPS), _STEPS] = None
    epochs: Annotated[Whole | None, Field(ge=1, le=1000), Wanted("a whole number from 1 to 1,000")] = None
    batch_size: Annotated[Whole, Field(ge=1, le=4096), Wanted("a whole number from 1 to 4,096")] = 4
    learning_rate: Annotated[Number, Field(gt=0, le=1), Wanted("a number above 0, at most 1")] = 0.003
    schedule: Annotated[Literal["constant", "linear", "cosine"], Wanted("constant, linear or cosine")] = "constant"
    warmup_steps: Annotated[Whole, Field(ge=0, le=MAX_STEPS), Wanted(f"a whole number from 0 to {MAX_STEPS:,}")] = 2
    max_length: Annotated[Whole, Field(ge=8, le=2**20), Wanted(f"a whole number from 8 to {2**20:,}")] = 256
    proximal_mu: Annotated[Number, Field(ge=0, lt=1e9), NUMBER_FROM_0] = 0.0
    max_grad_norm: Annotated[Number, Field(gt=0, lt=1e9), ABOVE_0] = 1.0

    @property
    def resolved_steps(self) -> int | None:
        """The given steps, else 20; None where epochs are counted."""
        return DEFAULT_STEPS if self.steps is None and self.epochs is None else self.steps


class AggregationSection(Section):
    """`aggregation:` how a round's updates become one.

    `trim` belongs to trimmed-mean, `byzantine` to multi-krum, `residual_rank` to stacking and residual, `momentum`
    (β₁), `beta2` and `tau` to the server's optimizer, `max_weight` to the weighting by examples.
    """

    method: Annotated[
        Literal["mean", "frozen-a", "alternating", "stacking", "residual", "svd", "personal"],
        Wanted("mean, frozen-a, alternating, stacking, residual, svd or personal"),
    ] = "mean"
    robust: Annotated[
        Literal["none", "clip", "median", "trimmed-mean", "multi-krum", "geometric-median"],
        Wanted("none, clip, median, trimmed-mean, multi-krum or geometric-median"),
    ] = "none"
    trim: Annotated[Number, Field(ge=0, lt=0.5), Wanted("a number from 0 to below 0.5")] = 0.2
    byzantine: Annotated[Whole, Field(ge=0), FROM_0] = 1
    optimizer: Annotated[
        Literal["fedavg", "momentum", "nesterov", "fedadam", "fedyogi"],
        Wanted("fedavg, momentum, nesterov, fedadam or fedyogi"),
    ] = "fedavg"
    server_learning_rate: Annotated[Number, Field(gt=0, le=1e6), ABOVE_0] = 1.0
    momentum: Share = 0.9
    beta2: Share = 0.99
    tau: Annotated[Number, Field(gt=0, le=1e6), ABOVE_0] = 1e-3
    residual_rank: Annotated[Rank, A_RANK] = 32
    weighting: Annotated[Literal["examples", "uniform"], Wanted("examples or uniform")] = "examples"
    max_weight: Annotated[Whole, Field(ge=1), FROM_1] = 10_000


class PrivacySection(Section):
    """`privacy:` what each client's rounds may tell at most of any one unit of its data (DP-SGD, on the client).

    (`target_epsilon`, `delta`) is for all rounds together and, so that a round can be repeated, `spare_rounds` more;
    `noise_multiplier` None is computed from it. `sample_rate` is the probability of a unit to be drawn in a step,
    `max_grad_norm` the length to which a unit's gradient is clipped.
    """

    enabled: Annotated[bool, FLAG] = False
    target_epsilon: Annotated[Number, Field(gt=0, le=1e6), ABOVE_0] = 8.0
    delta: Annotated[Number, Field(gt=0, le=0.1), _DELTA] = 1e-5
    noise_multiplier: Annotated[Number | None, Field(gt=0, le=1e6), ABOVE_0] = None
    max_grad_norm: Annotated[Number, Field(gt=0, le=1e9), ABOVE_0] = 1.0
    sample_rate: Annotated[Number, Field(gt=0, le=1), _RATE] = 0.05
    unit: Annotated[Literal["sample", "file", "repository"], Wanted("sample, file or repository")] = "sample"
    spare_rounds: Annotated[Whole, Field(ge=0, le=1000), _SPARE] = 2


class CentralSection(Section):
    """`central:` what the adapter may tell at most of any one client's whole data (noise by the coordinator).

    Each update is clipped to the length `clip`, which `adaptive_clip` moves towards the `target_quantile` of the
    updates' lengths. A `client_rate` below 1 asks each client with that probability. `target_epsilon`, `delta`,
    `noise_multiplier` and `spare_rounds` are as in `privacy:`.
    """

    enabled: Annotated[bool, FLAG] = False
    target_epsilon: Annotated[Number, Field(gt=0, le=1e6), ABOVE_0] = 8.0
    delta: Annotated[Number, Field(gt=0, le=0.1), _DELTA] = 1e-5
    noise_multiplier: Annotated[Number | None, Field(gt=0, le=1e6), ABOVE_0] = None
    clip: Annotated[Number, Field(gt=0, le=1e9), ABOVE_0] = 1.0
    adaptive_clip: Annotated[bool, FLAG] = False
    target_quantile: Share = 0.5
    client_rate: Annotated[Number, Field(gt=0, le=1), _RATE] = 1.0
    spare_rounds: Annotated[Whole, Field(ge=0, le=1000), _SPARE] = 2


class SecureAggregationSection(Section):
    """`secure_aggregation:` who may see a single client's update: the coordinator, or (`trust: peers`) nobody.

    Among those who hold parts of a client's secrets, more than the share `threshold` must be left to unmask a sum.
    Above 20 clients they are its `neighbours` (None: as many as it takes; more are safer, and cost more).
    """

    trust: Annotated[Literal["server", "peers"], Wanted("server or peers")] = "server"
    threshold: Annotated[Number, Field(ge=0.5, lt=1), Wanted("a number from 0.5 to below 1")] = 0.5
    neighbours: Annotated[Whole | None, Field(ge=1, lt=10_000), Wanted("a whole number from 1 to 9,999")] = None


class AdmissionSection(Section):
    """`admission:` what an update must satisfy; no `max_update_norm` means one from steps, learning rate and size."""

    max_update_norm: Annotated[Number | None, Field(gt=0), ABOVE_0] = None
    max_report_bytes: Annotated[
        Whole, Field(ge=1024, le=MAX_REPORT_BYTES), Wanted(f"a whole number from 1,024 to {MAX_REPORT_BYTES:,}")
    ] = MAX_REPORT_BYTES


class WireSection(Section):
    """`wire:` how updates travel."""

    format: Annotated[Literal["fp32", "fp16", "int8"], Wanted("fp32, fp16 or int8")] = "fp32"


class ListenSection(Section):
    """`listen:` where the coordinator is found; `names` are further DNS names and addresses for its certificate."""

    host: Annotated[Line, TEXT] = "0.0.0.0"  # noqa: S104 - clients come from other machines
    port: Annotated[Whole, Field(ge=1, le=65535), _PORT] = 8470
    member_port: Annotated[Whole, Field(ge=1, le=65535), _PORT] = 8471
    fleet_port: Annotated[Whole, Field(ge=1, le=65535), _PORT] = 8472
    admin_port: Annotated[Whole, Field(ge=1, le=65535), _PORT] = 8473
    names: Texts = ()


class StorageSection(Section):
    """`storage:` where keys, states and records lie."""

    directory: Annotated[AnyPath, PATH] = Path("nf-server")


class FederationConfig(Section):
    """What any federation is told, on machines or simulated."""

    federation: FederationSection = FederationSection()
    adapter: AdapterSection = AdapterSection()
    training: TrainingSection = TrainingSection()
    aggregation: AggregationSection = AggregationSection()
    privacy: PrivacySection = PrivacySection()
    central: CentralSection = CentralSection()
    secure_aggregation: SecureAggregationSection = SecureAggregationSection()
    admission: AdmissionSection = AdmissionSection()
    wire: WireSection = WireSection()

    @property
    def counts_clients_alike(self) -> bool:
        """Whether privacy has every client count alike: how many examples one has is nobody's business then."""
        return self.privacy.enabled or self.central.enabled or self.secure_aggregation.trust == "peers"


class ServerConfig(FederationConfig):
    """Everything that a coordinator can be told; `ServerConfig()` is one with all defaults."""

    listen: ListenSection = ListenSection()
    storage: StorageSection = StorageSection()
