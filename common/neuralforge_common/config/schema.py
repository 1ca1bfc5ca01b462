"""What a training run can be told: one frozen class a section, one field a key, bounds included."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from neuralforge_common.config.document import keys_of, sections_of
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
    Paths,
    Rank,
    Section,
    Share,
    TargetModules,
    Texts,
    Wanted,
    Whole,
)


class ModelSection(Section):
    """`model:` what is adapted, and the name of the result."""

    base: Annotated[Line, TEXT] = "smollm2-135m"
    adapter_name: Name = "my-adapter"
    revision: Annotated[Line | None, TEXT] = None
    trust_remote_code: Annotated[bool, FLAG] = False


class LoraSection(Section):
    """`lora:` size and place of the trained matrices."""

    rank: Annotated[Rank, A_RANK] = 8
    alpha: Annotated[Number | None, Field(gt=0, le=1e6), ABOVE_0] = None
    dropout: Share = 0.0
    target_modules: TargetModules = "auto"
    top_layers: Annotated[Whole | None, Field(ge=1), FROM_1] = None

    @property
    def resolved_alpha(self) -> float:
        """The given alpha, else twice the rank."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class TrainingSection(Section):
    """`training:` how the matrices are trained; 0 switches `early_stopping_patience` and `checkpoint_steps` off.

    `warmup_steps` None is a tenth of the run, at most 10. `loss_on_context` has the code in front of a completion
    learnt, too. `label_smoothing` is that loss's share of the uniform distribution, `loss_weight` what syntax or style
    weighs beside cross-entropy.
    """

    batch_size: Annotated[Whole, Field(ge=1), FROM_1] = 4
    learning_rate: Annotated[Number | None, Field(gt=0, le=1), Wanted("a number above 0, at most 1")] = None
    epochs: Annotated[Whole, Field(ge=1), FROM_1] = 3
    warmup_steps: Annotated[Whole | None, Field(ge=0), FROM_0] = None
    scheduler: Annotated[Literal["linear", "cosine", "constant"], Wanted("linear, cosine or constant")] = "linear"
    gradient_accumulation_steps: Annotated[Whole, Field(ge=1), FROM_1] = 1
    gradient_checkpointing: Annotated[bool, FLAG] = False
    fp16: Annotated[bool, FLAG] = False
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Wanted("auto, fp32, bf16 or fp16")] = "auto"
    max_grad_norm: Annotated[Number, Field(gt=0), ABOVE_0] = 1.0
    weight_decay: Annotated[Number, Field(ge=0), NUMBER_FROM_0] = 0.0
    seed: Annotated[Whole, Field(ge=0), FROM_0] = 0
    max_steps: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    eval_steps: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    early_stopping_patience: Annotated[Whole, Field(ge=0), FROM_0] = 3
    checkpoint_steps: Annotated[Whole, Field(ge=0), FROM_0] = 50
    device: Annotated[
        str, Field(pattern=r"\A(auto|cpu|mps|cuda(:[0-9]{1,3})?)\z"), Wanted("auto, cpu, cuda, cuda:<number> or mps")
    ] = "auto"
    threads: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    int8: Annotated[Literal["off", "backward", "full"], Wanted("off, backward or full")] = "off"
    cache_prefix: Annotated[bool, FLAG] = True
    context_gradients: Annotated[bool, FLAG] = True
    engine: Annotated[Literal["auto", "fast", "general"], Wanted("auto, fast or general")] = "auto"
    attention: Annotated[Literal["auto", "sdpa", "matmul"], Wanted("auto, sdpa or matmul")] = "auto"
    focus_on: Texts = ()
    focus_weight: Annotated[Number, Field(gt=0, le=1000), Wanted("a number above 0, at most 1000")] = 3.0
    loss: Annotated[
        Literal["cross_entropy", "label_smoothing", "syntax_penalised", "style_consistent"],
        Wanted("cross_entropy, label_smoothing, syntax_penalised or style_consistent"),
    ] = "cross_entropy"
    loss_on_context: Annotated[bool, FLAG] = False
    label_smoothing: Share = 0.1
    loss_weight: Annotated[Number, Field(ge=0), NUMBER_FROM_0] = 1.0

    @property
    def requested_precision(self) -> Literal["auto", "fp32", "bf16", "fp16"]:
        """`precision`, or fp16 where the guide's `fp16: true` asks for it."""
        return "fp16" if self.fp16 else self.precision


class TasksSection(Section):
    """`tasks:` what is learnt from the code, each task with its share of the examples; none given: completion alone."""

    completion: Annotated[Number, Field(ge=0), NUMBER_FROM_0] = 0.0
    bug_detection: Annotated[Number, Field(ge=0), NUMBER_FROM_0] = 0.0
    documentation: Annotated[Number, Field(ge=0), NUMBER_FROM_0] = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Tasks with a share above 0, in order; empty where none is given."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: share for name, share in given.items() if share > 0}


class DatasetSection(Section):
    """`dataset:` where the examples come from: a file of them, a repository, or folders of source code.

    `rules_off` names rules of quality that leave nothing out, `licenses` SPDX identifiers of what may be learnt (any,
    where none is named); `balance` cuts each language to so many times the median of all.
    """

    train_file: Annotated[FilePath | None, PATH] = None
    eval_file: Annotated[FilePath | None, PATH] = None
    from_git: Annotated[AnyPath | None, PATH] = None
    since: Annotated[Line | None, Wanted("a date as git takes it, such as 2026-03-01 or 1 week ago")] = None
    sources: Paths = ()
    patterns: Texts = ()
    language: Annotated[Line | None, TEXT] = None
    features: Texts = ()
    max_length: Annotated[Whole, Field(ge=8), Wanted("a whole number ≥ 8")] = 256
    eval_fraction: Share = 0.1
    max_samples: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    max_eval_samples: Annotated[Whole | None, Field(ge=1), FROM_1] = 100
    rules_off: Texts = ()
    licenses: Texts = ()
    balance: Annotated[Number | None, Field(ge=1), Wanted("a number ≥ 1")] = None


class OptimizationSection(Section):
    """`optimization:` what keeps old knowledge while an adapter is continued, and where the key to it is.

    `ewc_lambda` and `der_alpha` None are what was measured to be good: 0.1 and 0.5 beside replayed examples, 0.5 and 0
    without any. `remember` has a first session leave behind what a later one needs. `anchor` is for a federation's
    rounds: what EWC holds the weights to, this client's own adapter of the round before or the federation's.
    """

    continue_from: Annotated[FilePath | None, PATH] = None
    ewc_lambda: Annotated[Number | None, Field(ge=0), NUMBER_FROM_0] = None
    anchor: Annotated[Literal["own", "global"], Wanted("own or global")] = "own"
    replay_buffer_size: Annotated[Whole, Field(ge=0), FROM_0] = 1000
    replay_ratio: Share = 0.2
    replay_balance: Annotated[
        Literal["uniform", "language", "session"] | None, Wanted("uniform, language or session")
    ] = None
    der_alpha: Annotated[Number | None, Field(ge=0), NUMBER_FROM_0] = None
    progressive: Annotated[bool, FLAG] = False
    orthogonal_lambda: Annotated[Number, Field(ge=0), NUMBER_FROM_0] = 0.0
    key_file: Annotated[FilePath | None, PATH] = None
    remember: Annotated[bool, FLAG] = False


class PrivacySection(Section):
    """`privacy:` what an adapter may tell at most about any one unit of the code that it learns from.

    `noise_multiplier` None is computed from (`target_epsilon`, `delta`) and the planned steps; given, it is used as it
    is and the budget still stops the run. `sample_rate` is the probability of a unit to be drawn in a step, and 1 /
    `sample_rate` steps are an epoch; `batch_size` is then what fits into memory at once. `freeze_a` trains the B alone
    (FFA-LoRA); None is what was measured to be better.
    """

    enabled: Annotated[bool, FLAG] = False
    target_epsilon: Annotated[Number, Field(gt=0, le=1e6), ABOVE_0] = 8.0
    delta: Annotated[Number, Field(gt=0, le=0.1), Wanted("a number above 0, at most 0.1")] = 1e-5
    noise_multiplier: Annotated[Number | None, Field(gt=0, le=1e6), ABOVE_0] = None
    max_grad_norm: Annotated[Number, Field(gt=0, le=1e9), ABOVE_0] = 1.0
    sample_rate: Annotated[Number, Field(gt=0, le=1), Wanted("a number above 0, at most 1")] = 0.05
    unit: Annotated[Literal["sample", "file", "repository"], Wanted("sample, file or repository")] = "sample"
    accountant: Annotated[Literal["rdp", "prv"], Wanted("rdp or prv")] = "rdp"
    engine: Annotated[Literal["auto", "opacus"], Wanted("auto or opacus")] = "auto"
    freeze_a: Annotated[bool | None, FLAG] = None
    max_unit_examples: Annotated[Whole, Field(ge=1, le=4096), Wanted("a whole number from 1 to 4,096")] = 4


class OutputSection(Section):
    """`output:` where results go."""

    directory: Annotated[AnyPath, PATH] = Path()
    checkpoint_dir: Annotated[AnyPath | None, PATH] = None
    tensorboard: Annotated[AnyPath | None, PATH] = None
    resume: Annotated[Literal["never", "auto"], Wanted("never or auto")] = "never"


class MembershipSection(Section):
    """`federation:` which federation this machine learns with, and what its own side says about it.

    `home` holds its keys and memories; None is `$NEURALFORGE_HOME` or `~/.neuralforge`.
    """

    server: Annotated[Line | None, TEXT] = None
    policy: Annotated[FilePath | None, PATH] = None
    max_rank: Annotated[Rank | None, A_RANK] = None
    home: Annotated[AnyPath | None, PATH] = None


class TrainConfig(Section):
    """Everything that a training run can be told; `TrainConfig()` is a run with all defaults."""

    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    tasks: TasksSection = TasksSection()
    dataset: DatasetSection = DatasetSection()
    optimization: OptimizationSection = OptimizationSection()
    privacy: PrivacySection = PrivacySection()
    output: OutputSection = OutputSection()
    federation: MembershipSection = MembershipSection()

    @property
    def adapter_path(self) -> Path:
        """Where the trained adapter goes: `<output.directory>/<model.adapter_name>.lora`."""
        return self.output.directory / f"{self.model.adapter_name}.lora"


SECTIONS = sections_of(TrainConfig)

KEYS = keys_of(TrainConfig)
"""Every known key, dotted, in the order of the schema."""
