"""Defaults < YAML file < environment < command line → one configuration of a document's kind, or every fault at once.

A key has one name everywhere: a training run's `lora.rank` stands in the file under `lora:`, in the environment as
`NF_LORA_RANK`, on the command line as the override `lora.rank`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal

import yaml
from pydantic import ValidationError

from neuralforge_common.config import faults as words
from neuralforge_common.config.document import Document, T, keys_of
from neuralforge_common.config.faults import Fault
from neuralforge_common.config.fields import Section
from neuralforge_common.config.marks import read_marked_file
from neuralforge_common.errors import ConfigError

_ORDER = {"file": 0, "environment": 1, "command line": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value comes from; `where` is `c.yaml:3`, `NF_LORA_RANK`, or the kind itself."""

    kind: Literal["default", "file", "environment", "command line"]
    where: str

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Generic[T]):
    """A configuration, where the value of each dotted key comes from, and lines that the user should see."""

    config: T
    origins: Mapping[str, Origin]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    value: object
    origin: Origin
    line: int = 0

    def fault(self, message: str) -> Fault:
        return Fault(place=self.origin.where, message=message, order=(_ORDER[self.origin.kind], self.line))


def resolve(
    document: Document[T], file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> Resolved[T]:
    """The configuration, with the origin of each value and notices.

    `overrides` maps dotted keys of the command line to values, as text or typed. Keys that are alternatives of each
    other count from the highest layer that names one: `--from-git` on the command line replaces the file's
    `train_file`, `--precision bf16` its `fp16: true`.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    faults: list[Fault] = []
    layers = [
        dict(_from_file(document, file, faults)) if file is not None else {},
        dict(_from_environment(document, environ, faults)),
        dict(_from_overrides(document, overrides, faults)),
    ]
    _settle_alternatives(document, layers)
    given = {key: value for layer in layers for key, value in layer.items()}
    config, wrong = _validated(document, given)
    faults += wrong.values()
    # Rules between keys are checked even so, with defaults in the place of wrong values, to name everything at once.
    sound = {key: value for key, value in given.items() if key not in wrong}
    for keys, message in document.conflicts(config):
        if not wrong.keys() & {*keys}:
            blamed = next((key for key in keys if key in sound), keys[0])
            faults.append(_place(sound, blamed).fault(f"{keys[0]}: {message}"))
    for key, flag in document.command_line_only.items():
        if key in sound and sound[key].origin.kind != "command line" and _value(config, key):
            faults.append(sound[key].fault(f"{key}: can be switched on by {flag} alone"))
    if faults:
        raise ConfigError(words.lines(faults))
    default = Origin(kind="default", where="default")
    origins = {key: given[key].origin if key in given else default for key in document.keys}
    return Resolved(config=config, origins=origins, notices=tuple(document.notices(config, given)))


def flatten(config: Section) -> dict[str, object]:
    """Every dotted key with its value as JSON knows it (text, numbers, truth values, None, lists), in schema order."""
    plain = config.model_dump(mode="json")
    return {key: plain[section][name] for key in keys_of(type(config)) for section, _, name in [key.partition(".")]}


def to_yaml(config: Section) -> str:
    """A configuration file that loads as this configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _from_file(document: Document[Any], file: Path, faults: list[Fault]) -> Iterator[tuple[str, _Given]]:
    marked = read_marked_file(file, such_as=next(iter(document.sections)))
    faults += marked.faults
    for section in marked.sections:
        place = f"{file}:{section.line}"
        at = (_ORDER["file"], section.line)
        if section.name not in document.sections:
            faults.append(Fault(place=place, message=words.unknown_section(document, section.name), order=at))
        elif not section.is_mapping:
            message = f"{section.name}: wanted a mapping of keys, got {words.got(section.value)}"
            faults.append(Fault(place=place, message=message, order=at))
        else:
            for name, entry in section.entries.items():
                key = f"{section.name}.{name}"
                origin = Origin(kind="file", where=f"{file}:{entry.line}")
                given = _Given(value=entry.value, origin=origin, line=entry.line)
                if key in document.keys:
                    yield key, given
                else:
                    faults.append(given.fault(words.unknown_key(document, key)))


def _from_environment(
    document: Document[Any], environ: Mapping[str, str], faults: list[Fault]
) -> Iterator[tuple[str, _Given]]:
    if document.prefix is None:
        return
    variables = {document.variable_of(key): key for key in document.keys}
    prefixes = {f"{document.prefix}{section.upper()}_": section for section in document.sections}
    for variable in sorted(environ):
        if not variable.startswith(tuple(prefixes)) or environ[variable] == "":
            continue
        given = _Given(value=environ[variable], origin=Origin(kind="environment", where=variable))
        if variable in variables:
            key = variables[variable]
            yield key, replace(given, value=_none_or(document, environ[variable], key))
        else:
            # By key within the section: whole names are all alike through their prefix.
            prefix, section = next(entry for entry in prefixes.items() if variable.startswith(entry[0]))
            near = words.nearest(variable.removeprefix(prefix).lower(), document.sections[section].model_fields)
            guess = f"did you mean {prefix}{near.upper()}?" if near else f"{section} has no such key"
            faults.append(given.fault(f"unknown variable, {guess}"))


def _from_overrides(
    document: Document[Any], overrides: Mapping[str, object], faults: list[Fault]
) -> Iterator[tuple[str, _Given]]:
    for key, value in overrides.items():
        given = _Given(value=_none_or(document, value, key), origin=Origin(kind="command line", where="command line"))
        if key in document.keys:
            yield key, given
        else:
            unknown = words.unknown_key if key.partition(".")[0] in document.sections else words.unknown_section
            faults.append(given.fault(unknown(document, key)))


def _none_or(document: Document[Any], value: object, key: str) -> object:
    """Lets a person say none where a variable or a flag can hold only text."""
    is_none = isinstance(value, str) and value.strip().lower() in ("none", "null")
    return None if is_none and key in document.keys and document.is_optional(key) else value


def _settle_alternatives(document: Document[Any], layers: list[dict[str, _Given]]) -> None:
    """Drops from lower layers what a higher one has replaced by an alternative under another key."""
    for position, layer in enumerate(layers):
        named = {key for key in document.alternatives if key in layer and not _is_off(layer[key].value)}
        replaced = {other for key in named for other in document.alternatives[key]}
        for lower in layers[:position]:
            for key in replaced:
                lower.pop(key, None)


def _is_off(value: object) -> bool:
    return value in (None, False, [], ()) or str(value).strip().lower() in ("", "false", "off", "no", "n", "f", "0")


def _validated(document: Document[T], given: Mapping[str, _Given]) -> tuple[T, dict[str, Fault]]:
    """The configuration with defaults in the place of wrong values, and the fault of each of those."""
    values: dict[str, dict[str, object]] = {name: {} for name in document.sections}
    for key, entry in given.items():
        section, _, name = key.partition(".")
        values[section][name] = entry.value
    try:
        return document.root.model_validate(values), {}
    except ValidationError as error:
        deepest: dict[str, tuple[int, object]] = {}
        for detail in error.errors(include_url=False):
            key = ".".join(map(str, detail["loc"][:2]))
            found = (len(detail["loc"]), detail["input"])
            if key not in deepest or found[0] > deepest[key][0]:
                deepest[key] = found
    wrong = {key: given[key].fault(words.wrong_value(document, key, value)) for key, (_, value) in deepest.items()}
    config, _ = _validated(document, {key: entry for key, entry in given.items() if key not in wrong})
    return config, wrong


def _place(given: Mapping[str, _Given], key: str) -> _Given:
    return given.get(key) or _Given(value=None, origin=Origin(kind="command line", where="configuration"))


def _value(config: Section, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
