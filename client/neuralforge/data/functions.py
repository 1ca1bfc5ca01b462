"""Where the bodies of functions are, by tree-sitter's grammars; Python's by Python's own parser (see `extract`).

A language without a grammar here is cut by lines alone; `has_functions` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from neuralforge.data.grammars import grammar, parser

_C = "(function_definition body: (compound_statement) @body)"
_SCRIPT = (
    "(function_declaration body: (statement_block) @body) (method_definition body: (statement_block) @body)"
    " (arrow_function body: (statement_block) @body) (function_expression body: (statement_block) @body)"
    " (generator_function_declaration body: (statement_block) @body)"
)
_METHOD = "(method_declaration body: (block) @body)"


_QUERIES: Mapping[str, str] = MappingProxyType(
    {
        "java": f"{_METHOD} (constructor_declaration body: (constructor_body) @body)",
        "javascript": _SCRIPT,
        "typescript": _SCRIPT,
        "go": f"(function_declaration body: (block) @body) {_METHOD}",
        "rust": "(function_item body: (block) @body)",
        "c": _C,
        "c++": _C,
        "c#": f"{_METHOD} (constructor_declaration body: (block) @body)",
        "ruby": "(method body: (body_statement) @body) (singleton_method body: (body_statement) @body)",
        "php": f"{_C} (method_declaration body: (compound_statement) @body)",
        "shell": _C,
        "kotlin": "(function_body (block) @body)",
        "scala": "(function_definition body: (block) @body)",
        "swift": "(function_declaration body: (function_body) @body)",
    }
)
"""What a body is in each language but Python."""


def has_functions(language: str) -> bool:
    """Whether functions of this language can be told from the rest."""
    return language == "python" or language in _QUERIES


def function_bodies(text: str, language: str) -> list[tuple[int, int]]:
    """Ranges of lines between the braces of functions that stand in no other one; none where there is no grammar.

    A body that shares a line with its signature or its closing brace is left out. Files with faults are read as far as
    the grammar makes sense of them.
    """
    if language not in _QUERIES:
        return []
    tree = parser(language).parse(text.encode("utf-8", "surrogatepass"))
    nodes = _cursor(language).captures(tree.root_node).get("body", [])
    lines = text.split("\n")
    bodies: list[tuple[int, int]] = []
    end_of_last = -1
    for node in sorted(nodes, key=lambda node: (node.start_byte, -node.end_byte)):
        if node.start_byte < end_of_last:
            continue
        end_of_last = node.end_byte
        if body := _inside(lines, node.start_point, node.end_point):
            bodies.append(body)
    return bodies


def _inside(lines: list[str], start: Any, end: Any) -> tuple[int, int] | None:
    """The whole lines of a block, without the lines of its braces; None where one of them holds code, too."""
    first, last = start[0], end[0]
    opening = lines[first].encode("utf-8", "surrogatepass")[start[1] :].strip()
    if opening[:1] == b"{":
        closing = lines[last].encode("utf-8", "surrogatepass")[: max(0, end[1] - 1)].strip()
        opened = opening[1:].strip()
        if closing or (opened and not opened.startswith((b"//", b"/*", b"#"))):
            return None
        first += 1
    else:
        if lines[first].encode("utf-8", "surrogatepass")[: start[1]].strip():
            return None
        last += 1 if end[1] else 0
    return (first, last) if first < last else None


@cache
def _cursor(language: str) -> Any:
    from tree_sitter import Query, QueryCursor

    return QueryCursor(Query(grammar(language), _QUERIES[language]))


def grammar_languages() -> tuple[str, ...]:
    """Every language whose functions are told apart."""
    return ("python", *_QUERIES)
