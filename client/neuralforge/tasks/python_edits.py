"""Where a fault can be put into a Python function, by its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from neuralforge.tasks.function import parse_python
from neuralforge.tasks.mutation import Edit, Kind

_ARITHMETIC: dict[type[ast.operator], tuple[bytes, bytes]] = {
    ast.Add: (b"+", b"-"),
    ast.Sub: (b"-", b"+"),
    ast.Mult: (b"*", b"+"),
    ast.FloorDiv: (b"//", b"%"),
    ast.Mod: (b"%", b"//"),
}
_BOUNDS: dict[type[ast.cmpop], tuple[bytes, bytes]] = {
    ast.Lt: (b"<", b"<="),
    ast.LtE: (b"<=", b"<"),
    ast.Gt: (b">", b">="),
    ast.GtE: (b">=", b">"),
}
_NEGATIONS: dict[type[ast.cmpop], tuple[bytes, bytes]] = {
    ast.Eq: (b"==", b"!="),
    ast.NotEq: (b"!=", b"=="),
    ast.Is: (b"is", b"is not"),
    ast.IsNot: (b"is not", b"is"),
    ast.In: (b"in", b"not in"),
    ast.NotIn: (b"not in", b"in"),
}


def python_edits(text: str) -> Iterator[Edit]:
    """Every single fault that this text of one function can be given; some may not parse or not differ."""
    tree = parse_python(text)
    if tree is not None:
        yield from _Edits(text, tree).all()


class _Edits:
    def __init__(self, text: str, tree: ast.Module) -> None:
        self._raw = text.encode("utf-8", "surrogatepass")
        self._lines = [0]
        for line in self._raw.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._tree = tree
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def all(self) -> Iterator[Edit]:
        names = self._names()
        for node in ast.walk(self._tree):
            match node:
                case ast.Constant(value=int(value)) if type(value) is int and self._counts(node):
                    yield from self._of("off_by_one", node, str(value + 1).encode())
                case ast.BinOp() if type(node.op) in _ARITHMETIC:
                    yield from self._between("swapped_operator", node.left, node.right, _ARITHMETIC[type(node.op)])
                case ast.BoolOp():
                    pair = (b"and", b"or") if isinstance(node.op, ast.And) else (b"or", b"and")
                    yield from self._between("swapped_operator", node.values[0], node.values[1], pair)
                case ast.Compare(ops=[op], comparators=[right]) if type(op) in _BOUNDS:
                    yield from self._between("off_by_one", node.left, right, _BOUNDS[type(op)])
                case ast.Compare(ops=[op], comparators=[right]) if type(op) in _NEGATIONS:
                    yield from self._between("negated_condition", node.left, right, _NEGATIONS[type(op)])
                case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                    yield from self._negated(test)
                case ast.Name(ctx=ast.Load(), id=name) if name in names and not self._called(node):
                    for other in names:
                        if other != name:
                            yield from self._of("wrong_variable", node, other.encode())
                case ast.Return(value=ast.expr() as value):
                    start = self._at(node.lineno, node.col_offset)
                    yield Edit(kind="missing_return", start=start, end=self._start(value), by=b"")
                case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred):
                    if not isinstance(second, ast.Starred):
                        yield from self._swapped(first, second)

    def _names(self) -> list[str]:
        """Parameters, and what is assigned to, in the outermost function."""
        function = self._tree.body[0]
        found = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        found |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        return sorted(found - {"self", "cls", "_"})

    def _counts(self, node: ast.AST) -> bool:
        """Whether a number stands where one too many is a likely slip: a bound, an index, a sum."""
        parent = self._parents.get(node)
        return isinstance(parent, ast.Compare | ast.BinOp | ast.Subscript | ast.Slice) or (
            isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "range"
        )

    def _called(self, node: ast.AST) -> bool:
        parent = self._parents.get(node)
        return isinstance(parent, ast.Call) and parent.func is node

    def _negated(self, test: ast.expr) -> Iterator[Edit]:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield Edit(kind="negated_condition", start=self._start(test), end=self._start(test.operand), by=b"")
        elif not isinstance(test, ast.Compare):
            bare = isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript)
            text = self._raw[self._start(test) : self._end(test)]
            yield from self._of("negated_condition", test, b"not " + (text if bare else b"(" + text + b")"))

    def _between(self, kind: Kind, left: ast.expr, right: ast.expr, pair: tuple[bytes, bytes]) -> Iterator[Edit]:
        old, new = pair
        start, end = self._end(left), self._start(right)
        at = self._raw.find(old, start, end)
        if at >= 0:
            yield Edit(kind=kind, start=at, end=at + len(old), by=new)

    def _swapped(self, first: ast.expr, second: ast.expr) -> Iterator[Edit]:
        a, b = (self._raw[self._start(node) : self._end(node)] for node in (first, second))
        between = self._raw[self._end(first) : self._start(second)]
        yield Edit(kind="swapped_arguments", start=self._start(first), end=self._end(second), by=b + between + a)

    def _of(self, kind: Kind, node: ast.expr, by: bytes) -> Iterator[Edit]:
        yield Edit(kind=kind, start=self._start(node), end=self._end(node), by=by)

    def _start(self, node: ast.expr) -> int:
        return self._at(node.lineno, node.col_offset)

    def _end(self, node: ast.expr) -> int:
        return self._at(node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)

    def _at(self, line: int, column: int) -> int:
        return self._lines[line - 1] + column
