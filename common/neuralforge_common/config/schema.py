"""What a training run can be told: one frozen class a section, one field a key, bounds included.

Values arrive as text from YAML, the environment and the command line alike; pydantic turns them into the field's type.
Relative paths are relative to the current directory, wherever the file that names them lies.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MAX_WHOLE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a field takes, in words for a fault: `wanted <words>, got …`."""

    words: str


def _one_line(value: str) -> str:
    if not value.strip() or _CONTROL.search(value):
        raise ValueError("not one line of text")
    return value


def _whole(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read true as 1
        raise ValueError("a truth value is not a number")
    return value


def _listed(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _targets(value: object) -> object:
    names = _listed(value)
    return "auto" if names in (("auto",), ["auto"]) else names


def _module_names(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not isinstance(names, str) and not (names and all(_MODULE_NAME.fullmatch(name) for name in names)):
        raise ValueError("not module names")
    return names


def _path(value: object) -> object:
    if isinstance(value, str):
        _one_line(value)
        if value.startswith("~"):  # the shell expands it on the command line, nobody does in a file
            try:
                return Path(value).expanduser()
            except RuntimeError as error:
                raise ValueError("no home folder of that name") from error
    return value


def _is_named(path: Path) -> Path:
    if path.name in ("", ".."):
        raise ValueError("not a file's name")
    return path


Line: TypeAlias = Annotated[str, AfterValidator(_one_line)]
Number: TypeAlias = Annotated[float, BeforeValidator(_whole), Field(allow_inf_nan=False)]
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(le=_MAX_WHOLE)]
AnyPath: TypeAlias = Annotated[Path, BeforeValidator(_path)]
FilePath: TypeAlias = Annotated[Path, BeforeValidator(_path), AfterValidator(_is_named)]

_TEXT = Wanted("one line of text")
_TEXTS = Wanted("a list of texts")
_FLAG = Wanted("true or false")
_PATH = Wanted("a path")
_FROM_0 = Wanted("a whole number ≥ 0")
_FROM_1 = Wanted("a whole number ≥ 1")
_NUMBER_FROM_0 = Wanted("a number ≥ 0")

Texts: TypeAlias = Annotated[tuple[Line, ...], BeforeValidator(_listed), _TEXTS]


class Section(BaseModel):
    """What all sections have in common: frozen, and no key that they do not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """`model:` what is adapted, and the name of the result."""

    base: Annotated[Line, _TEXT] = "smollm2-135m"
    adapter_name: Annotated[
        str,
        Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z"),
        Wanted("a name of letters, digits, dots, dashes and underscores (at most 100)"),
    ] = "my-adapter"
    revision: Annotated[Line | None, _TEXT] = None
    trust_remote_code: Annotated[bool, _FLAG] = False


class LoraSection(Section):
    """`lora:` size and place of the trained matrices."""

    rank: Annotated[Whole, Field(ge=1, le=256), Wanted("a whole number from 1 to 256")] = 8
    alpha: Annotated[Number | None, Field(gt=0, le=1e6), Wanted("a number above 0")] = None
    dropout: Annotated[Number, Field(ge=0, lt=1), Wanted("a number from 0 to below 1")] = 0.0
    target_modules: Annotated[
        Literal["auto"] | tuple[str, ...],
        BeforeValidator(_targets),
        AfterValidator(_module_names),
        Wanted("auto or a list of module names (letters, digits, underscores, dots)"),
    ] = "auto"
    top_layers: Annotated[Whole | None, Field(ge=1), _FROM_1] = None

    @property
    def resolved_alpha(self) -> float:
        """The given alpha, else twice the rank."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class TrainingSection(Section):
    """`training:` how the matrices are trained; 0 switches `early_stopping_patience` and `checkpoint_steps` off."""

    batch_size: Annotated[Whole, Field(ge=1), _FROM_1] = 4
    learning_rate: Annotated[Number | None, Field(gt=0, le=1), Wanted("a number above 0, at most 1")] = None
    epochs: Annotated[Whole, Field(ge=1), _FROM_1] = 3
    warmup_steps: Annotated[Whole, Field(ge=0), _FROM_0] = 10
    scheduler: Annotated[Literal["linear", "cosine", "constant"], Wanted("linear, cosine or constant")] = "linear"
    gradient_accumulation_steps: Annotated[Whole, Field(ge=1), _FROM_1] = 1
    gradient_checkpointing: Annotated[bool, _FLAG] = False
    fp16: Annotated[bool, _FLAG] = False
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Wanted("auto, fp32, bf16 or fp16")] = "auto"
    max_grad_norm: Annotated[Number, Field(gt=0), Wanted("a number above 0")] = 1.0
    weight_decay: Annotated[Number, Field(ge=0), _NUMBER_FROM_0] = 0.0
    seed: Annotated[Whole, Field(ge=0), _FROM_0] = 0
    max_steps: Annotated[Whole | None, Field(ge=1), _FROM_1] = None
    eval_steps: Annotated[Whole | None, Field(ge=1), _FROM_1] = None
    early_stopping_patience: Annotated[Whole, Field(ge=0), _FROM_0] = 3
    checkpoint_steps: Annotated[Whole, Field(ge=0), _FROM_0] = 50
    device: Annotated[
        str, Field(pattern=r"\A(auto|cpu|mps|cuda(:[0-9]{1,3})?)\z"), Wanted("auto, cpu, cuda, cuda:<number> or mps")
    ] = "auto"
    threads: Annotated[Whole | None, Field(ge=1), _FROM_1] = None
    int8: Annotated[Literal["off", "backward", "full"], Wanted("off, backward or full")] = "off"
    cache_prefix: Annotated[bool, _FLAG] = True
    context_gradients: Annotated[bool, _FLAG] = True
    engine: Annotated[Literal["auto", "fast", "general"], Wanted("auto, fast or general")] = "auto"
    attention: Annotated[Literal["auto", "sdpa", "matmul"], Wanted("auto, sdpa or matmul")] = "auto"
    focus_on: Texts = ()

    @property
    def requested_precision(self) -> Literal["auto", "fp32", "bf16", "fp16"]:
        """`precision`, or fp16 where the guide's `fp16: true` asks for it."""
        return "fp16" if self.fp16 else self.precision


class DatasetSection(Section):
    """`dataset:` where the examples come from: a file of them, a repository, or folders of source code."""

    train_file: Annotated[FilePath | None, _PATH] = None
    eval_file: Annotated[FilePath | None, _PATH] = None
    from_git: Annotated[AnyPath | None, _PATH] = None
    sources: Annotated[tuple[AnyPath, ...], BeforeValidator(_listed), Wanted("a list of paths")] = ()
    patterns: Texts = ()
    language: Annotated[Line | None, _TEXT] = None
    features: Texts = ()
    max_length: Annotated[Whole, Field(ge=8), Wanted("a whole number ≥ 8")] = 256
    eval_fraction: Annotated[Number, Field(ge=0, lt=1), Wanted("a number from 0 to below 1")] = 0.1
    max_samples: Annotated[Whole | None, Field(ge=1), _FROM_1] = None
    max_eval_samples: Annotated[Whole | None, Field(ge=1), _FROM_1] = 100


class OptimizationSection(Section):
    """`optimization:` what keeps old knowledge."""

    ewc_lambda: Annotated[Number, Field(ge=0), _NUMBER_FROM_0] = 0.5
    replay_buffer_size: Annotated[Whole, Field(ge=0), _FROM_0] = 1000


class OutputSection(Section):
    """`output:` where results go."""

    directory: Annotated[AnyPath, _PATH] = Path()
    checkpoint_dir: Annotated[AnyPath | None, _PATH] = None
    tensorboard: Annotated[AnyPath | None, _PATH] = None
    resume: Annotated[Literal["never", "auto"], Wanted("never or auto")] = "never"


class TrainConfig(Section):
    """Everything that a training run can be told; `TrainConfig()` is a run with all defaults."""

    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    dataset: DatasetSection = DatasetSection()
    optimization: OptimizationSection = OptimizationSection()
    output: OutputSection = OutputSection()

    @property
    def adapter_path(self) -> Path:
        """Where the trained adapter goes: `<output.directory>/<model.adapter_name>.lora`."""
        return self.output.directory / f"{self.model.adapter_name}.lora"


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "lora": LoraSection,
    "training": TrainingSection,
    "dataset": DatasetSection,
    "optimization": OptimizationSection,
    "output": OutputSection,
}

KEYS: tuple[str, ...] = tuple(f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields)
"""Every known key, dotted, in the order of the schema."""


def wanted(key: str) -> str:
    """What a known dotted key takes, in words."""
    section, _, name = key.partition(".")
    words = (item.words for item in SECTIONS[section].model_fields[name].metadata if isinstance(item, Wanted))
    return next(words, "another value")


def is_optional(key: str) -> bool:
    """Whether a known dotted key can be switched off with none."""
    section, _, name = key.partition(".")
    field = SECTIONS[section].model_fields[name]
    return type(None) in getattr(field.annotation, "__args__", ())
