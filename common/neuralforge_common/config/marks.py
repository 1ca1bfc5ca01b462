"""A YAML file as sections, keys and values that remember their lines; scalars stay the text that was written.

YAML 1.1 would read `off` as false, `1e-4` as a text and `010` as eight. Which type a value has is the schema's
business, so only null is told from text here. Nothing is ever constructed from a tag, and aliases, which let a small
file unfold into a huge one, are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from neuralforge_common.config.faults import Fault, shown

MAX_FILE_BYTES = 2**20

_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedValue:
    """A value (text, None, list or dict of these) and the line, from 1, on which its key stands."""

    value: object
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedSection:
    """A top-level key: the entries below it, or the plain value in their place."""

    name: str
    line: int
    entries: dict[str, MarkedValue] = field(default_factory=dict)
    is_mapping: bool = True
    value: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedFile:
    """A whole file; `faults` are those of its form."""

    sections: tuple[MarkedSection, ...] = ()
    faults: tuple[Fault, ...] = ()


class _AliasError(yaml.MarkedYAMLError):
    pass


class _Composer(yaml.SafeLoader):
    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _AliasError(problem="aliases are not allowed here, write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def read_marked_file(file: Path, *, such_as: str = "model") -> MarkedFile:
    """Reads a YAML file of at most 1 MiB; whatever is wrong with its form comes back as faults.

    `such_as` is a section of this kind of file, to name where there are none.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return _failed(str(file), f"cannot be read: {error.strerror or error}")
    if len(data) > MAX_FILE_BYTES:
        return _failed(str(file), f"larger than {MAX_FILE_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _failed(f"{file}:{line}", f"not UTF-8 text (byte 0x{data[error.start]:02x})", line)
    return parse_marked_text(text, str(file), such_as=such_as)


def parse_marked_text(text: str, name: str, *, such_as: str = "model") -> MarkedFile:
    """Parses YAML text; `name` stands before the line in faults."""
    try:
        loader = _Composer(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        kind = "" if isinstance(error, _AliasError) else "not valid YAML: "
        problem = error.problem or error.context or "unreadable"
        if problem.startswith("but ") and error.context:
            problem = f"{error.context} {problem}"
        return _failed(f"{name}:{line}", f"{kind}{problem}", line)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return _failed(f"{name}:{line}", f"the character U+{code:04X} is not allowed in YAML", line)
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"not valid YAML: {error}"
        return _failed(name, reason)
    if root is None or (isinstance(root, ScalarNode) and root.tag.endswith(":null")):
        return MarkedFile()  # an empty file is a file without wishes
    faults: list[Fault] = []
    if not isinstance(root, MappingNode):
        return _failed(f"{name}:{root.start_mark.line + 1}", f"wanted sections such as '{such_as}:', got {_kind(root)}")
    _check_tag(root, name, faults)
    try:
        sections = tuple(_section(key, line, node, name, faults) for key, line, node in _pairs(root, "", name, faults))
    except RecursionError:
        return _failed(name, "nested too deeply")
    return MarkedFile(sections=sections, faults=tuple(faults))


def _section(key: str, line: int, node: Node, name: str, faults: list[Fault]) -> MarkedSection:
    if isinstance(node, MappingNode):
        _check_tag(node, name, faults)
        entries = {
            child: MarkedValue(value=_plain(value, name, faults), line=at)
            for child, at, value in _pairs(node, f"{key}.", name, faults)
        }
        return MarkedSection(name=key, line=line, entries=entries)
    value = _plain(node, name, faults)
    return MarkedSection(name=key, line=line, is_mapping=value is None, value=value)


def _pairs(node: MappingNode, prefix: str, name: str, faults: list[Fault]) -> Iterator[tuple[str, int, Node]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            faults.append(_fault(name, line, f"{prefix}{_kind(key)}: wanted a plain name as the key"))
        elif key.value in seen:
            faults.append(
                _fault(name, line, f"{shown(prefix + key.value)}: given twice, first in line {seen[key.value]}")
            )
        else:
            seen[key.value] = line
            yield key.value, line, value


def _plain(node: Node, name: str, faults: list[Fault]) -> object:
    _check_tag(node, name, faults)
    if isinstance(node, SequenceNode):
        return [_plain(item, name, faults) for item in node.value]
    if isinstance(node, MappingNode):
        return {key: _plain(value, name, faults) for key, _, value in _pairs(node, "", name, faults)}
    is_plain = isinstance(node, ScalarNode) and node.style is None
    return None if is_plain and node.tag.endswith(":null") else str(node.value)


def _check_tag(node: Node, name: str, faults: list[Fault]) -> None:
    if node.tag not in _TAGS:
        faults.append(_fault(name, node.start_mark.line + 1, f"the tag {shown(str(node.tag))} is not allowed"))


def _kind(node: Node) -> str:
    return (
        "a list"
        if isinstance(node, SequenceNode)
        else "a mapping"
        if isinstance(node, MappingNode)
        else "a single value"
    )


def _fault(name: str, line: int, message: str) -> Fault:
    return Fault(place=f"{name}:{line}", message=message, order=(0, line))


def _failed(place: str, message: str, line: int = 0) -> MarkedFile:
    return MarkedFile(faults=(Fault(place=place, message=message, order=(0, line)),))
