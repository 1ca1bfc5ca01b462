"""Where a fault can be put into a function of another language, by tree-sitter's tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neuralforge.tasks.function import Function, parse_other
from neuralforge.tasks.mutation import Edit

_SWAPPED = {b"+": b"-", b"-": b"+", b"*": b"+", b"%": b"/", b"&&": b"||", b"||": b"&&"}
_BOUNDS = {b"<": b"<=", b"<=": b"<", b">": b">=", b">=": b">"}
_NEGATIONS = {b"==": b"!=", b"!=": b"==", b"===": b"!==", b"!==": b"==="}
_NUMBERS = frozenset(
    {"number", "integer", "integer_literal", "decimal_integer_literal", "int_literal", "number_literal"}
)
_CONDITIONED = frozenset({"if_statement", "if_expression", "while_statement", "while_expression"})
_RETURNS = frozenset({"return_statement", "return_expression"})
# Elsewhere a value alone is no statement, and no compiler would let it pass.
_VALUE_STATEMENTS = frozenset(
    {"javascript", "typescript", "php", "c", "c++", "rust", "ruby", "kotlin", "scala", "swift"}
)
_ARGUMENTS = frozenset({"arguments", "argument_list"})
_NAMES = frozenset({"identifier", "simple_identifier", "variable_name"})
_PARAMETERS = frozenset({"formal_parameters", "parameters", "parameter_list", "method_parameters"})


def code_edits(function: Function) -> Iterator[Edit]:
    """Every single fault that this function can be given; some may not parse."""
    root = parse_other(function.text, function.language)
    if root is None:
        return
    nodes = list(_walk(root))
    parameters = _parameters(nodes)
    for node in nodes:
        operator = node.child_by_field_name("operator")
        if node.type.startswith("binary") and operator is not None:
            yield from _operator(operator)
        elif node.type in _NUMBERS and node.text.isdigit() and node.parent is not None:
            if node.parent.type.startswith(("binary", "subscript", "index", "element_access", "array_access")):
                yield Edit(
                    kind="off_by_one", start=node.start_byte, end=node.end_byte, by=str(int(node.text) + 1).encode()
                )
        elif node.type in _CONDITIONED:
            yield from _negated(node.child_by_field_name("condition"), function.language)
        elif node.type in _RETURNS and node.named_child_count == 1 and function.language in _VALUE_STATEMENTS:
            value = node.named_children[0]
            yield Edit(kind="missing_return", start=node.start_byte, end=value.start_byte, by=b"")
        elif node.type in _ARGUMENTS and node.named_child_count >= 2:
            a, b = node.named_children[:2]
            between = node.text[a.end_byte - node.start_byte : b.start_byte - node.start_byte]
            yield Edit(kind="swapped_arguments", start=a.start_byte, end=b.end_byte, by=b.text + between + a.text)
        elif node.type in _NAMES and node.text in parameters and _used(node):
            for other in sorted(parameters - {node.text}):
                yield Edit(kind="wrong_variable", start=node.start_byte, end=node.end_byte, by=other)


def _walk(root: Any) -> Iterator[Any]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))


def _operator(node: Any) -> Iterator[Edit]:
    if (by := _SWAPPED.get(node.text)) is not None:
        yield Edit(kind="swapped_operator", start=node.start_byte, end=node.end_byte, by=by)
    elif (by := _BOUNDS.get(node.text)) is not None:
        yield Edit(kind="off_by_one", start=node.start_byte, end=node.end_byte, by=by)
    elif (by := _NEGATIONS.get(node.text)) is not None:
        yield Edit(kind="negated_condition", start=node.start_byte, end=node.end_byte, by=by)


def _negated(condition: Any | None, language: str) -> Iterator[Edit]:
    if condition is None or language == "shell" or condition.type.startswith("let"):
        return
    start, end, text = condition.start_byte, condition.end_byte, condition.text
    if text.startswith(b"(") and text.endswith(b")"):
        start, end, text = start + 1, end - 1, text[1:-1]
    yield Edit(kind="negated_condition", start=start, end=end, by=b"!(" + text + b")")


def _parameters(nodes: list[Any]) -> set[bytes]:
    """Names of the parameters of the outermost function."""
    lists = [node for node in nodes if node.type in _PARAMETERS]
    if not lists:
        return set()
    found = set()
    for parameter in lists[0].named_children:
        # The name is the field, or the last name where the type stands before it.
        named = parameter.child_by_field_name("name") or parameter.child_by_field_name("pattern")
        names = [named] if named is not None else [node for node in _walk(parameter) if node.type in _NAMES]
        if names and names[-1].type in _NAMES:
            found.add(names[-1].text)
    return found


def _used(node: Any) -> bool:
    """Whether a name stands for its value: it is no parameter, not called, and no member of something else."""
    parent = node.parent
    while parent is not None and parent.type not in _PARAMETERS:
        parent = parent.parent
    if parent is not None or node.parent is None:
        return False
    if any(
        node.parent.child_by_field_name(field) == node for field in ("function", "name", "field", "property", "left")
    ):
        return False
    return not node.parent.type.endswith(("_declarator", "_declaration"))
