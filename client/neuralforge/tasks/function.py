"""Whole functions in a piece of a file, with the comment above them."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neuralforge.data.example import Example

MAX_LINES = 40
MAX_CHARACTERS = 1600
"""Longer functions are left out: they would not fit into what a model is shown."""

_NODES = frozenset(
    {
        *("function_definition", "function_declaration", "generator_function_declaration", "function_item"),
        *("method_definition", "method_declaration", "constructor_declaration", "method", "singleton_method"),
    }
)
_PYTHON = re.compile(r"[ \t]{0,100}(?:async +)?def +\w")


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """`text` from the first decorator or the signature to the end, without its indentation; `above`: lines before it.

    Both end in a line feed. `above` is empty or the comment that stands directly over the function.
    """

    text: str
    above: str
    language: str


def functions_in(example: Example) -> Iterator[Function]:
    """Functions that parse and are whole in the example, in order, in languages that have a grammar here."""
    text = example.context + example.completion + example.suffix
    if example.language == "python":
        yield from _python(text)
    else:
        yield from _others(text, example.language)


def parse_python(text: str) -> ast.Module | None:
    """The tree of Python code, None where it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes: the author's business
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parse_other(text: str, language: str) -> Any | None:
    """tree-sitter's root node, None where the language has no grammar here or the code has a fault."""
    from neuralforge.evaluation.syntax import root_of

    root = root_of(text, language)
    return None if root is None or root.has_error else root


def _python(text: str) -> Iterator[Function]:
    # Windows begin and end anywhere, so a whole one seldom parses: each function is cut by its indentation.
    lines = lines_of(text)
    after = -1
    for start, line in enumerate(lines):
        if start < after or _PYTHON.match(line) is None:  # inside the one before, or no function
            continue
        indent = _indent(lines[start])
        end = start + 1
        # No further than may be: in a nest of functions each is looked at.
        while end < min(len(lines), start + 2 * MAX_LINES) and (
            not lines[end].strip() or _indent(lines[end]) > indent or _closes(lines[end])
        ):
            end += 1
        while not lines[end - 1].strip():
            end -= 1
        if end - start > MAX_LINES:
            continue
        first = start
        while first > 0 and lines[first - 1].lstrip().startswith("@") and _indent(lines[first - 1]) == indent:
            first -= 1
        body = textwrap.dedent("".join(lines[first:end]))
        tree = parse_python(body) if _fits(body) else None
        if tree is None or len(tree.body) != 1:
            continue
        after = end
        yield Function(text=_ended(body), above="", language="python")


def _others(text: str, language: str) -> Iterator[Function]:
    from neuralforge.evaluation.syntax import root_of

    root = root_of(text, language)
    if root is None:
        return
    lines = lines_of(text)
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.type not in _NODES or node.has_error:
            waiting.extend(reversed(node.children))
            continue
        first, last = node.start_point[0], node.end_point[0]
        body = textwrap.dedent("".join(lines[first : last + 1]))
        if last > first and _fits(body) and parse_other(body, language) is not None:
            yield Function(text=_ended(body), above=_above(lines, first, language), language=language)


def _above(lines: list[str], first: int, language: str) -> str:
    """The comment over a line, annotations and attributes between them passed over."""
    end = first
    while end > 0 and lines[end - 1].lstrip().startswith(("@", "#[")):
        end -= 1
    begin = end
    if end and lines[end - 1].rstrip().endswith("*/"):
        while begin > 0 and end - begin < MAX_LINES:
            begin -= 1
            if lines[begin].lstrip().startswith("/*"):
                return _ended(textwrap.dedent("".join(lines[begin:end]))) if "/**" in lines[begin] else ""
        return ""
    mark = {"go": "//", "ruby": "#"}.get(language, "///")
    while begin > 0 and lines[begin - 1].lstrip().startswith(mark):
        begin -= 1
    return _ended(textwrap.dedent("".join(lines[begin:end]))) if begin < end else ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _closes(line: str) -> bool:
    """A signature over several lines closes at the function's own indentation."""
    return line.lstrip().startswith(")")


def lines_of(text: str) -> list[str]:
    """Lines as parsers count them, each with its line feed: `splitlines` would end one at a form feed, too."""
    *whole, rest = text.split("\n")
    return [line + "\n" for line in whole] + ([rest] if rest else [])


def _fits(body: str) -> bool:
    # Python's parser ends a line at a lone carriage return, which tree-sitter does not.
    return "\r" not in body and len(body) <= MAX_CHARACTERS and 1 < body.count("\n") + 1 <= MAX_LINES


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
