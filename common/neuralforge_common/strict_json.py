"""JSON that came from somebody else: bounded, one meaning only, and an `AdapterError` for everything else."""

import json
import re
from typing import NoReturn

from neuralforge_common.errors import AdapterError

# Control characters, line and paragraph separators, direction overrides, surrogates.
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_UNPRINTABLE_LINES = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def parse_json_object(data: bytes | memoryview, *, what: str, limit: int) -> dict[str, object]:
    """Parses UTF-8 JSON that must be one object; `what` names it in errors, `limit` is its greatest size in bytes.

    Refused: duplicate keys (readers disagree on which one counts), NaN and Infinity, and nesting that overflows.

    Raises:
        AdapterError: `data` is larger than `limit` or not such an object.
    """
    if len(data) > limit:
        raise AdapterError(f"{what} holds {len(data):,} bytes, at most {limit:,} are allowed")

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            for twice, _ in items:
                if twice in seen:
                    break
                seen.add(twice)
            raise AdapterError(f"{what}: the key {shortened(twice)} is given twice")
        return result

    def constant(name: str) -> NoReturn:
        raise AdapterError(f"{what}: {name} is not a number that JSON knows")

    try:
        value = json.loads(bytes(data).decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError as error:
        raise AdapterError(f"{what}: nested too deeply") from error
    except ValueError as error:  # bad UTF-8, bad JSON, a whole number of more digits than Python converts
        raise AdapterError(f"{what}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{what}: wanted a JSON object, got {kind_of(value)}")
    return value


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def shortened(value: object, limit: int = 60) -> str:
    """A foreign value as one short line without control characters."""
    text = repr(value) if not isinstance(value, list | dict) else kind_of(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_plain_text(text: str, *, multiline: bool = False) -> bool:
    """Whether a text is free of lone surrogates and of what could drive a terminal or turn a line around."""
    return not (_UNPRINTABLE_LINES if multiline else _UNPRINTABLE).search(text)
