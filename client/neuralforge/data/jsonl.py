"""Examples as JSON Lines: one object per line, `{"context": …, "completion": …, "language": …}`.

The other fields of an `Example` (`repo`, `path`, `commit`, `suffix`, …) may stand beside them; other keys are ignored,
so that files of other tools can be read. A file is believed whole or not at all: the first fault raises, named by its
line.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from neuralforge.data.example import Example
from neuralforge_common.atomic import open_atomically
from neuralforge_common.errors import DataError

MAX_LINE_BYTES = 1 << 20
"""A line longer than this is refused before it is read to its end."""

_FORMAT_HINT = 'one JSON object per line: {"context": "def area(r):\\n", "completion": "    return 3 * r * r"}'
_REQUIRED = ("context", "completion")
_OPTIONAL = ("language", "repo", "path", "commit", "suffix", "time", "license", "author", "kind")
_JSON = json.JSONEncoder(ensure_ascii=False)
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def read_examples(path: Path) -> Iterator[Example]:
    """Stream the examples of a JSONL file, in order; blank lines and a leading byte order mark are passed over.

    Take them all before using any: a fault in the last line raises only when the last line is reached.

    Raises:
        DataError: `file:line: what, got, wanted`, at the first fault.
    """
    try:
        with path.open("rb") as stream:
            yield from _examples(stream, path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="wanted a JSONL file of examples") from error
    except IsADirectoryError as error:
        hint = "wanted a JSONL file; to learn from a folder of source code use create-dataset --source or --from-git"
        raise DataError(f"{path}: this is a folder", hint=hint) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples so that `read_examples` gives the same back, and return how many; the file appears whole.

    Raises:
        DataError: an example that could not be read back (an empty completion, over 1 MiB, half a character).
        StorageError: the place cannot be written.
    """
    count = 0
    with open_atomically(path) as stream:
        for count, example in enumerate(examples, start=1):
            stream.write(encode_example(example, f"{path}:{count}"))
    return count


def _examples(stream: BinaryIO, path: Path) -> Iterator[Example]:
    found = 0
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 2):
        number += 1
        where = f"{path}:{number}"
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
            raise DataError(f"{where}: the line is too long: got over {MAX_LINE_BYTES:,} bytes, wanted fewer")
        if not line.strip():
            continue
        found += 1
        yield decode_example(line, where, complete=line.endswith(b"\n"))
    if not found:
        got = "an empty file" if number == 0 else "blank lines only"
        raise DataError(f"{path}: no examples: got {got}, wanted at least one line", hint=_FORMAT_HINT)


def decode_example(line: bytes, where: str, *, complete: bool) -> Example:
    """One line as an example; `where` names it in the DataError that is raised for any other."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"the byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        raise DataError(f"{where}: not UTF-8 text: got {got}", hint="save the file as UTF-8") from error
    try:
        row = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where}: not JSON that can be read: got deeply nested brackets") from error
    except ValueError as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        cut = "" if complete else "; the file ends inside this line, so it may have been cut short"
        raise DataError(f"{where}: not valid JSON: {what}{at}{cut}", hint=_FORMAT_HINT) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: got {_kind(row)}, wanted an object", hint=_FORMAT_HINT)
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        raise DataError(f"{where}: {_missing_key(missing[0], row)}", hint=_FORMAT_HINT)
    fields = {key: row[key] for key in (*_REQUIRED, *_OPTIONAL) if key in row}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} has the wrong type: got {_kind(value)}, wanted text")
    return _checked(Example(**fields), where)


def encode_example(example: Example, where: str) -> bytes:
    """An example as one line; raises DataError for one that could not be read back."""
    row = {"context": example.context, "completion": example.completion}
    row |= {key: value for key in _OPTIONAL if (value := getattr(example, key))}
    try:
        line = _JSON.encode(row).encode("utf-8")
    except UnicodeEncodeError:
        line = b""
    if not line or not example.completion.strip():
        _checked(example, where)
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: the example is too long: got {len(line):,} bytes, wanted at most {MAX_LINE_BYTES:,}")
    return line + b"\n"


def _checked(example: Example, where: str) -> Example:
    if not example.completion.strip():
        raise DataError(f"{where}: 'completion' is empty: got {example.completion!r}, wanted the text to learn")
    for key in (*_REQUIRED, *_OPTIONAL):
        try:
            getattr(example, key).encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON can spell half of a surrogate pair ("\ud83d"); no tokenizer and no file can hold it.
            raise DataError(f"{where}: {key!r} holds half a character: got {error.object[error.start]!r}") from error
    return example


def _missing_key(key: str, row: dict[str, Any]) -> str:
    if not row:
        return f"missing key {key!r}: got an empty object"
    got = ", ".join(repr(name[:40]) for name in list(row)[:8])
    near = difflib.get_close_matches(key, [name for name in row if name not in _REQUIRED], n=1)
    guess = f"; is {near[0]!r} meant to be {key!r}?" if near else ""
    return f"missing key {key!r}: got the keys {got}{guess}"


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)
