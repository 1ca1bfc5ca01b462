"""A kind of configuration: its schema, its environment variables and the rules between its keys.

There is one for every file that a person writes: a training run, a site's policy, a server, a simulation. All are read
by `resolve.py` in the same way.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from neuralforge_common.config.fields import Section, Wanted

T = TypeVar("T", bound=Section)

# A broken rule: the keys that take part, the one to blame first, and what is wrong with it.
Conflict: TypeAlias = tuple[tuple[str, ...], str]


def sections_of(root: type[Section]) -> dict[str, type[Section]]:
    """The sections of a schema by name, in its order."""
    sections = {name: entry.annotation for name, entry in root.model_fields.items()}
    return {name: kind for name, kind in sections.items() if isinstance(kind, type) and issubclass(kind, Section)}


def keys_of(root: type[Section]) -> tuple[str, ...]:
    """Every key of a schema, dotted, in its order."""
    return tuple(f"{name}.{key}" for name, section in sections_of(root).items() for key in section.model_fields)


def _no_rules(*_: object) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(Generic[T]):
    """A kind of configuration with everything that its reader has to know.

    `prefix` begins its environment variables; None keeps the environment out. A layer that sets a key of `alternatives`
    silences the keys on the right in the layers below it. `conflicts` yields every broken rule between keys, `notices`
    a line for each setting without effect, given the keys that somebody set. `command_line_only` maps keys to the flag
    that alone may switch them on.
    """

    root: type[T]
    prefix: str | None = None
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conflicts: Callable[[T], Iterable[Conflict]] = _no_rules
    notices: Callable[[T, Container[str]], Iterable[str]] = _no_rules
    command_line_only: Mapping[str, str] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, type[Section]]:
        """The sections by name, in the order of the schema."""
        return sections_of(self.root)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every known key, dotted, in the order of the schema."""
        return keys_of(self.root)

    def wanted(self, key: str) -> str:
        """What a known dotted key takes, in words."""
        # The last ones are the field's own, after those of the type that it builds on.
        words = (item.words for item in reversed(self._field(key).metadata) if isinstance(item, Wanted))
        return next(words, "another value")

    def is_optional(self, key: str) -> bool:
        """Whether a known dotted key can be switched off with none."""
        return type(None) in getattr(self._field(key).annotation, "__args__", ())

    def variable_of(self, key: str) -> str:
        """The environment variable of a dotted key."""
        return f"{self.prefix}{key.replace('.', '_').upper()}"

    def _field(self, key: str) -> Any:
        section, _, name = key.partition(".")
        return self.sections[section].model_fields[name]
