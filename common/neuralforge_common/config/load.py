"""Defaults < YAML file < `NF_…` environment < command line → one `TrainConfig`, or every fault at once.

A key has one name everywhere: `lora.rank` stands in the file under `lora:`, in the environment as `NF_LORA_RANK`, on
the command line as the override `lora.rank`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from neuralforge_common.config import faults as words
from neuralforge_common.config.faults import Fault
from neuralforge_common.config.marks import read_marked_file
from neuralforge_common.config.rules import ALTERNATIVES, conflicts, notices
from neuralforge_common.config.schema import KEYS, SECTIONS, TrainConfig, is_optional
from neuralforge_common.errors import ConfigError

_ORDER = {"file": 0, "environment": 1, "command line": 2}
_VARIABLES = {f"NF_{key.replace('.', '_').upper()}": key for key in KEYS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value comes from; `where` is `c.yaml:3`, `NF_LORA_RANK`, or the kind itself."""

    kind: Literal["default", "file", "environment", "command line"]
    where: str

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A configuration, where the value of each dotted key comes from, and lines that the user should see."""

    config: TrainConfig
    origins: Mapping[str, Origin]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    value: object
    origin: Origin
    line: int = 0

    def fault(self, message: str) -> Fault:
        return Fault(place=self.origin.where, message=message, order=(_ORDER[self.origin.kind], self.line))


def load_train_config(file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]) -> TrainConfig:
    """The configuration of a run; `overrides` maps dotted keys of the command line to values, as text or typed.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    return resolve_train_config(file, overrides, environ).config


def resolve_train_config(
    file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> ResolvedConfig:
    """As `load_train_config`, with the origin of each value and notices.

    Keys that are alternatives of each other count from the highest layer that names one: `--from-git` on the command
    line replaces the file's `train_file`, `--precision bf16` its `fp16: true`.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    faults: list[Fault] = []
    layers = [
        dict(_from_file(file, faults)) if file is not None else {},
        dict(_from_environment(environ, faults)),
        dict(_from_overrides(overrides, faults)),
    ]
    _settle_alternatives(layers)
    given = {key: value for layer in layers for key, value in layer.items()}
    config, wrong = _validated(given)
    faults += wrong.values()
    # Rules between keys are checked even so, with defaults in the place of wrong values, to name everything at once.
    sound = {key: value for key, value in given.items() if key not in wrong}
    for keys, message in conflicts(config):
        if not wrong.keys() & {*keys}:
            blamed = next((key for key in keys if key in sound), keys[0])
            faults.append(_place(sound, blamed).fault(f"{keys[0]}: {message}"))
    remote = sound.get("model.trust_remote_code")
    if remote is not None and remote.origin.kind != "command line" and config.model.trust_remote_code:
        # A file comes along with somebody else's repository; running their code is for a person to say.
        faults.append(remote.fault("model.trust_remote_code: can be switched on by --trust-remote-code alone"))
    if faults:
        raise ConfigError(words.lines(faults))
    default = Origin(kind="default", where="default")
    origins = {key: given[key].origin if key in given else default for key in KEYS}
    return ResolvedConfig(config=config, origins=origins, notices=tuple(notices(config, given)))


def flatten(config: TrainConfig) -> dict[str, object]:
    """Every dotted key with its value as JSON knows it (text, numbers, truth values, None, lists), in schema order."""
    document = config.model_dump(mode="json")
    return {key: document[section][name] for key in KEYS for section, _, name in [key.partition(".")]}


def to_yaml(config: TrainConfig) -> str:
    """A configuration file that loads as this configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def variable_of(key: str) -> str:
    """The environment variable of a dotted key."""
    return f"NF_{key.replace('.', '_').upper()}"


def _from_file(file: Path, faults: list[Fault]) -> Iterator[tuple[str, _Given]]:
    marked = read_marked_file(file)
    faults += marked.faults
    for section in marked.sections:
        place = f"{file}:{section.line}"
        at = (_ORDER["file"], section.line)
        if section.name not in SECTIONS:
            faults.append(Fault(place=place, message=words.unknown_section(section.name), order=at))
        elif not section.is_mapping:
            message = f"{section.name}: wanted a mapping of keys, got {words.got(section.value)}"
            faults.append(Fault(place=place, message=message, order=at))
        else:
            for name, entry in section.entries.items():
                key = f"{section.name}.{name}"
                origin = Origin(kind="file", where=f"{file}:{entry.line}")
                given = _Given(value=entry.value, origin=origin, line=entry.line)
                if key in KEYS:
                    yield key, given
                else:
                    faults.append(given.fault(words.unknown_key(key)))


def _from_environment(environ: Mapping[str, str], faults: list[Fault]) -> Iterator[tuple[str, _Given]]:
    prefixes = tuple(f"NF_{section.upper()}_" for section in SECTIONS)
    for variable in sorted(environ):
        if not variable.startswith(prefixes) or environ[variable] == "":
            continue
        given = _Given(value=environ[variable], origin=Origin(kind="environment", where=variable))
        if variable in _VARIABLES:
            key = _VARIABLES[variable]
            yield key, replace(given, value=_none_or(environ[variable], key))
        else:
            # By key within the section: whole names are all alike through their prefix.
            section = next(name for name in SECTIONS if variable.startswith(f"NF_{name.upper()}_"))
            name = variable.removeprefix(f"NF_{section.upper()}_").lower()
            near = words.nearest(name, SECTIONS[section].model_fields)
            guess = f", did you mean {variable_of(f'{section}.{near}')}?" if near else f", {section} has no such key"
            faults.append(given.fault(f"unknown variable{guess}"))


def _from_overrides(overrides: Mapping[str, object], faults: list[Fault]) -> Iterator[tuple[str, _Given]]:
    for key, value in overrides.items():
        given = _Given(value=_none_or(value, key), origin=Origin(kind="command line", where="command line"))
        if key in KEYS:
            yield key, given
        else:
            known = key.partition(".")[0] in SECTIONS
            faults.append(given.fault(words.unknown_key(key) if known else words.unknown_section(key)))


def _none_or(value: object, key: str) -> object:
    """Lets a person say none where a variable or a flag can hold only text."""
    is_none = isinstance(value, str) and value.strip().lower() in ("none", "null")
    return None if is_none and key in KEYS and is_optional(key) else value


def _settle_alternatives(layers: list[dict[str, _Given]]) -> None:
    """Drops from lower layers what a higher one has replaced by an alternative under another key."""
    for position, layer in enumerate(layers):
        named = {key for key in ALTERNATIVES if key in layer and not _is_off(layer[key].value)}
        replaced = {other for key in named for other in ALTERNATIVES[key]}
        for lower in layers[:position]:
            for key in replaced:
                lower.pop(key, None)


def _is_off(value: object) -> bool:
    return value in (None, False, [], ()) or str(value).strip().lower() in ("", "false", "off", "no", "n", "f", "0")


def _validated(given: Mapping[str, _Given]) -> tuple[TrainConfig, dict[str, Fault]]:
    """The configuration with defaults in the place of wrong values, and the fault of each of those."""
    document: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    for key, entry in given.items():
        section, _, name = key.partition(".")
        document[section][name] = entry.value
    try:
        return TrainConfig.model_validate(document), {}
    except ValidationError as error:
        deepest: dict[str, tuple[int, object]] = {}
        for detail in error.errors(include_url=False):
            key = ".".join(map(str, detail["loc"][:2]))
            found = (len(detail["loc"]), detail["input"])
            if key not in deepest or found[0] > deepest[key][0]:
                deepest[key] = found
    wrong = {key: given[key].fault(words.wrong_value(key, value)) for key, (_, value) in deepest.items()}
    config, _ = _validated({key: entry for key, entry in given.items() if key not in wrong})
    return config, wrong


def _place(given: Mapping[str, _Given], key: str) -> _Given:
    return given.get(key) or _Given(value=None, origin=Origin(kind="command line", where="configuration"))
