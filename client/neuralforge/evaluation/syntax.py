"""Whether code still parses with a completion in its place: Python by its own compiler, others by tree-sitter.

Samples are windows of files: many begin inside a class or end inside a block, and would not parse with the very text
that a person wrote. So a completion is held to what the wanted text does in the same place.
"""

from __future__ import annotations

import ast
import warnings
from typing import Any

from neuralforge.data.example import Example
from neuralforge.data.grammars import GRAMMARS, parser

MAX_BYTES = 256 * 1024
"""Longer texts are not parsed."""


def syntax_valid(example: Example, written: str, *, cut: bool = False) -> bool | None:
    """Whether `written` in the example's place is no worse for the parser than the wanted text.

    Python that compiles with the wanted text must compile; else there may be no more error nodes than with the wanted
    text. `cut` says that the writer was stopped: its last, unfinished line is left out where there are others.
    None where the language has no grammar here, or the text is over `MAX_BYTES`.
    """
    if example.language not in GRAMMARS:
        return None
    body = written.rpartition("\n")[0] if cut and "\n" in written else written
    wanted = example.context + example.completion + example.suffix
    made = example.context + body + example.suffix
    if max(len(wanted.encode("utf-8", "replace")), len(made.encode("utf-8", "replace"))) > MAX_BYTES:
        return None
    if example.language == "python" and _compiles(wanted):
        return _compiles(made) or (cut and _only_unfinished(made, example.language))
    return _errors(made, example.language) <= _errors(wanted, example.language)


def root_of(text: str, language: str) -> Any | None:
    """tree-sitter's root node; None where the language has no grammar here, or the text is over `MAX_BYTES`."""
    raw = text.encode("utf-8", "replace")
    return parser(language).parse(raw).root_node if language in GRAMMARS and len(raw) <= MAX_BYTES else None


def _compiles(text: str) -> bool:
    # Code of strangers is parsed, never run; its warnings are its author's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _only_unfinished(text: str, language: str) -> bool:
    """Whether a grammar that mends what is open finds nothing else wrong: a stopped writer is not to blame for that."""
    return _errors(text, language) == 0


def _errors(text: str, language: str) -> int:
    """Nodes that the parser could not read or had to invent."""
    root = parser(language).parse(text.encode("utf-8", "replace")).root_node
    if not root.has_error:
        return 0
    count = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        count += node.is_error or node.is_missing
        waiting.extend(child for child in node.children if child.has_error or child.is_missing)
    return count
