"""The task of documenting: from a function without its documentation to the text that a person wrote for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from neuralforge.data.example import Example
from neuralforge.tasks.function import Function, functions_in, lines_of, parse_python
from neuralforge.tasks.task import COMMENT

LEAST_WORDS = 3
"""Less than this says nothing."""

_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Documentation:
    """Docstrings of Python, and the comments that other languages have in their place.

    Those are `/** … */` and `///`, and of Go and Ruby each comment directly over a function. The context is the
    function without them under a comment that says what is wanted, the completion the docstring or comment as it stands
    in the code, without the function's indentation.
    """

    name = "documentation"

    def examples(self, example: Example) -> Iterator[Example]:
        """One for each documented function that is whole in the example."""
        for function in functions_in(example):
            found = _python(function.text) if function.language == "python" else _over(function)
            if found is None or len(_WORD.findall(found[1])) < LEAST_WORDS:
                continue
            code, documentation = found
            mark = COMMENT.get(function.language, "//")
            yield replace(
                example,
                context=f"{mark} Task: document this function.\n{code}{mark} Documentation:\n",
                completion=documentation,
                suffix="",
                language=function.language,
                kind=self.name,
            )


def _over(function: Function) -> tuple[str, str] | None:
    return (function.text, function.above) if function.above else None


def _python(text: str) -> tuple[str, str] | None:
    """Code without its docstring, and the docstring as it is written; None where there is none or nothing else."""
    tree = parse_python(text)
    node = tree.body[0] if tree is not None else None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or ast.get_docstring(node) is None:
        return None
    doc = node.body[0]
    lines = lines_of(text)
    first, last = doc.lineno - 1, doc.end_lineno or doc.lineno
    if len(node.body) < 2 or lines[first][: doc.col_offset].strip() or node.body[1].lineno <= last:
        return None
    indent = doc.col_offset
    written = [lines[first][indent:], *(_outdented(line, indent) for line in lines[first + 1 : last])]
    code = "".join(lines[:first] + lines[last:])
    return (code, "".join(written)) if parse_python(code) is not None else None


def _outdented(line: str, by: int) -> str:
    return line[by:] if len(line) > by and not line[:by].strip() else line.lstrip(" \t")
