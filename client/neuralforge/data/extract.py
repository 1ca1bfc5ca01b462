"""A source file cut into examples: what stood before the cursor, and the lines that came next.

A language with a grammar (`functions`) gives the body of each function after its signature, Python's after its
docstring. What lies between the bodies (imports, classes, signatures, module code), and every line of any other
language, gives windows of a few lines that end where a person would pause. No line is the completion of two examples.
Context is the text right before the completion, so context + completion is always a piece of the file, to the
character.
"""

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from neuralforge.data.example import Example
from neuralforge.data.functions import function_bodies
from neuralforge.data.source import SourceFile

MAX_CONTEXT = 1200
"""Characters before the cursor, cut at a line start; the trainer cuts further, by tokens."""

MAX_COMPLETION = 600
"""Characters of a completion, cut at a line end."""

MAX_SUFFIX = 400
"""Characters shown of what stands behind a completion, cut at a line end."""

# Characters that are not space. Less in a body is `pass` or `return self.x`, less in a window is a brace or a bare
# signature, whose name nothing foretells.
_LEAST_BODY = 16
_LEAST_WINDOW = 40


def extract_examples(
    file: SourceFile,
    *,
    max_context: int = MAX_CONTEXT,
    max_completion: int = MAX_COMPLETION,
    written: Sequence[tuple[int, int]] | None = None,
    suffix_share: float = 0.0,
    time: str = "",
    author: str = "",
) -> Iterator[Example]:
    """The examples of one file, in the order of its text; whether the file is worth it `quality` decides.

    `written` are ranges of lines, in order: only what lies in them is learnt, in the context of the whole file, and
    each example says how it was cut. `suffix_share` of the examples say what stands behind them, `time` and `author`
    stand in all.
    """
    text = file.text
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    bodies = _python_bodies(text, lines) if file.language == "python" else function_bodies(text, file.language)
    for first, end, kind in _segments(lines, bodies, max_completion, written):
        begin, behind = starts[first], starts[end] - 1
        example = Example(
            context=_context(text, begin, max_context),
            completion=text[begin:behind],
            language=file.language,
            repo=file.repo,
            path=file.path,
            commit=file.commit,
            time=time,
            license=file.license,
            author=author,
            kind=kind if written is not None else "",
        )
        # Drawn by what the example says, not by its place: the same example is always cut alike.
        if suffix_share and int(example.id[:8], 16) < suffix_share * 2**32:
            suffix = _behind(text, behind, MAX_SUFFIX)
            example = replace(example, suffix=suffix) if suffix.strip() else example
        yield example


def _segments(
    lines: list[str], bodies: list[tuple[int, int]], room: int, written: Sequence[tuple[int, int]] | None
) -> Iterator[tuple[int, int, str]]:
    """Ranges of lines to complete: the bodies, as far as there is room, and windows over what lies between them."""
    # The first line that says something is never a completion: there is nothing before it to go by.
    begin = next((number + 1 for number, line in enumerate(lines) if line.strip()), len(lines))
    for from_line, to_line in ((0, len(lines)),) if written is None else written:
        at = max(begin, from_line)
        for first, last in bodies:
            first = _skip_blank(lines, first, last)
            if first < at or last > to_line or not _has_substance(lines, first, last, _LEAST_BODY):
                continue  # nothing to predict: leave these lines to the window around them
            end = _end_of_window(lines, first, last, room, pause=False)
            if end == first:
                continue
            yield from _windows(lines, at, first, room)
            yield first, end, "function"
            at = end
        yield from _windows(lines, at, to_line, room)


def _windows(lines: list[str], first: int, last: int, room: int) -> Iterator[tuple[int, int, str]]:
    while (first := _skip_blank(lines, first, last)) < last:
        end = _end_of_window(lines, first, last, room, pause=True)
        if end > first and _has_substance(lines, first, end, _LEAST_WINDOW):
            yield first, end, "commit"
        first = max(end, first + 1)  # a line that is longer than the room is nobody's completion


def _end_of_window(lines: list[str], first: int, last: int, room: int, *, pause: bool) -> int:
    """Where to stop: at the end, else at the last good place that the room allows; `first` where there is none.

    A blank line ahead is the best place, a line that is indented no deeper than the first the next best. With `pause`
    a blank line past half of the room is taken at once.
    """
    indent = _indent(lines[first])
    used, blank, sibling, any_line = -1, first, first, first
    is_blank = False
    for number in range(first, last):
        used += len(lines[number]) + 1
        if used > room:
            break
        any_line = number + 1
        if any_line == last:
            return _without_blank_end(lines, first, last)
        was_blank, following = is_blank, lines[any_line].lstrip()
        is_blank = not following
        if used < room // 4:
            continue
        if is_blank:
            if not was_blank:
                blank = any_line
                if pause and used >= room // 2:
                    return blank
        elif len(lines[any_line]) - len(following) <= indent and following[0] not in ")]}":
            sibling = any_line
    return next((end for end in (blank, sibling) if end > first), _without_blank_end(lines, first, any_line))


def _context(text: str, end: int, room: int) -> str:
    begin = end - room
    if begin <= 0:
        return text[:end]
    line = text.find("\n", begin - 1) + 1  # (begin itself where a line starts there)
    return text[line:end] if 0 < line < end else text[begin:end]


def _behind(text: str, begin: int, room: int) -> str:
    if len(text) - begin <= room:
        return text[begin:]
    line = text.rfind("\n", begin, begin + room)
    return text[begin : line + 1] if line > begin else text[begin : begin + room]


def _python_bodies(text: str, lines: list[str]) -> list[tuple[int, int]]:
    """Ranges of lines of the bodies of functions that stand in no other function; none where Python cannot parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old escape in somebody's string is no concern of ours
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # another dialect, half a file, or brackets nested to break parsers: windows do
    bodies: list[tuple[int, int]] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if body := _body(node, lines):
                bodies.append(body)
        else:
            for block in _BLOCKS:
                waiting += getattr(node, block, ())
    return sorted(bodies)


# What of a statement holds other ones; expressions hold none.
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")


def _body(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[int, int] | None:
    statements = function.body
    documented = ast.get_docstring(function, clean=False) is not None
    if documented:
        first = statements[0].end_lineno or 0  # the line behind it: ast counts from 1
        statements = statements[1:]
    if not statements:
        return None
    start = min([statements[0].lineno, *(d.lineno for d in getattr(statements[0], "decorator_list", []))]) - 1
    if not documented:
        # Comments above the first statement belong to the body; ast does not say where the signature ends.
        first = start
        while first - 1 > function.lineno - 1 and _is_comment_or_blank(lines[first - 1]):
            first -= 1
    if first > start or start <= function.lineno - 1 or _before(lines[start], statements[0]):
        return None  # all in one line, or behind the docstring on its line
    return first, function.end_lineno or start


def _before(line: str, statement: ast.stmt) -> str:
    """What stands in the first line of a statement in front of it, such as the end of a signature."""
    if getattr(statement, "decorator_list", None):
        return ""
    return line.encode()[: statement.col_offset].decode("utf-8", "replace").strip()


def _is_comment_or_blank(line: str) -> bool:
    stripped = line.lstrip()
    return not stripped or stripped.startswith("#")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _has_substance(lines: list[str], first: int, last: int, least: int) -> bool:
    for number in range(first, last):
        least -= len("".join(lines[number].split()))
        if least <= 0:
            return True
    return False


def _skip_blank(lines: list[str], first: int, last: int) -> int:
    while first < last and not lines[first].strip():
        first += 1
    return first


def _without_blank_end(lines: list[str], first: int, last: int) -> int:
    while last > first and not lines[last - 1].strip():
        last -= 1
    return last
