"""One thing wrong with a configuration: where it stands and what to write instead."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuralforge_common.config.document import Document

_NUMBER = re.compile(r"[-+]?[0-9][0-9.eE+-]*")
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One line for a person: `<place>: <message>`; `order` sorts faults as a reader meets them."""

    place: str
    message: str
    order: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def lines(faults: Iterable[Fault]) -> list[str]:
    """Faults as lines: the file's from top to bottom, then the environment's, then the command line's."""
    return list(dict.fromkeys(str(fault) for fault in sorted(faults, key=lambda fault: fault.order)))


def unknown_key(document: Document[Any], key: str) -> str:
    """The message for a dotted key that no section has."""
    section, _, name = key.partition(".")
    known = list(document.sections[section].model_fields)
    near = nearest(name, known)
    if near:
        return f"{shown(key)}: unknown key, did you mean '{near}'?"
    elsewhere = _in_other_section(document, name)
    if elsewhere:
        return f"{shown(key)}: unknown key, did you mean '{elsewhere}'?"
    return f"{shown(key)}: unknown key, {section} has {', '.join(known)}"


def unknown_section(document: Document[Any], name: str) -> str:
    """The message for a section that does not exist, or for a key outside of all sections."""
    guess = nearest(name, document.sections) or _in_other_section(document, name)
    if guess:
        return f"{shown(name)}: unknown section, did you mean '{guess}'?"
    return f"{shown(name)}: unknown section, there are {', '.join(document.sections)}"


def wrong_value(document: Document[Any], key: str, value: object) -> str:
    """The message for a value that its key does not take."""
    return f"{key}: wanted {document.wanted(key)}, got {got(value)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    known = list(known)
    plain = name.lower().replace("-", "_")
    return plain if plain in known else next(iter(difflib.get_close_matches(plain[:100], known, n=1, cutoff=0.6)), None)


def got(value: object) -> str:
    """A given value for a message: numbers bare, text quoted, collections by their kind."""
    match value:
        case None:
            return "nothing"
        case str():
            return value if _NUMBER.fullmatch(value) and len(value) <= _MAX_SHOWN else _clipped(repr(value))
        case dict():
            return "a mapping"
        case list() | tuple():
            return "an empty list" if not value else "a list"
        case _:
            return _clipped(str(value))


def shown(name: str) -> str:
    """A foreign name for a message: as it is where it is harmless, else quoted."""
    return name if re.fullmatch(r"[\w.<>-]{1,60}", name) else _clipped(repr(name))


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _in_other_section(document: Document[Any], name: str) -> str | None:
    plain = name.lower().replace("-", "_")
    return next((key for key in document.keys if key.partition(".")[2] == plain), None)
