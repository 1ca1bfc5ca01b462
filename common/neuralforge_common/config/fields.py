"""What the keys of every configuration are made of: types that read text, with their bounds in words.

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
MAX_WHOLE = 2**31 - 1


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
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(le=MAX_WHOLE)]
AnyPath: TypeAlias = Annotated[Path, BeforeValidator(_path)]
FilePath: TypeAlias = Annotated[Path, BeforeValidator(_path), AfterValidator(_is_named)]

TEXT = Wanted("one line of text")
FLAG = Wanted("true or false")
PATH = Wanted("a path")
FROM_0 = Wanted("a whole number ≥ 0")
FROM_1 = Wanted("a whole number ≥ 1")
ABOVE_0 = Wanted("a number above 0")
NUMBER_FROM_0 = Wanted("a number ≥ 0")
BELOW_1 = Wanted("a number from 0 to below 1")
A_RANK = Wanted("a whole number from 1 to 256")
A_NAME = Wanted("a name of letters, digits, dots, dashes and underscores (at most 100)")

Texts: TypeAlias = Annotated[tuple[Line, ...], BeforeValidator(_listed), Wanted("a list of texts")]
Paths: TypeAlias = Annotated[tuple[AnyPath, ...], BeforeValidator(_listed), Wanted("a list of paths")]
Name: TypeAlias = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z"), A_NAME]
Rank: TypeAlias = Annotated[Whole, Field(ge=1, le=256)]
Ranks: TypeAlias = Annotated[
    tuple[Rank, ...], BeforeValidator(_listed), Wanted("a list of whole numbers from 1 to 256")
]
Share: TypeAlias = Annotated[Number, Field(ge=0, lt=1), BELOW_1]
TargetModules: TypeAlias = Annotated[
    Literal["auto"] | tuple[str, ...],
    BeforeValidator(_targets),
    AfterValidator(_module_names),
    Wanted("auto or a list of module names (letters, digits, underscores, dots)"),
]


class Section(BaseModel):
    """What all sections have in common: frozen, and no key that they do not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
