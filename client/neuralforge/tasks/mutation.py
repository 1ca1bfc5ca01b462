"""One small fault put into a function that parses: what a mutant is, and which one is taken.

The kinds are the classical ones (Jia & Harman 2011, "An analysis and survey of the development of mutation testing",
section II; swapped arguments and wrong variables after Allamanis et al. 2021, "Self-supervised bug detection and
repair", section 4). Whether a mutant behaves otherwise cannot be decided; a few are equivalent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from neuralforge.tasks.function import Function, lines_of

Kind = Literal[
    "off_by_one", "swapped_operator", "negated_condition", "wrong_variable", "missing_return", "swapped_arguments"
]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Edit:
    """Bytes `start` to `end` of a function's text replaced, all on one line."""

    kind: Kind
    start: int
    end: int
    by: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A function with a fault: its text, which line holds the fault, from 0, and that line as it was."""

    kind: Kind
    text: str
    line: int
    fixed: str


@lru_cache(maxsize=8192)  # windows of a file overlap: a function comes several times
def mutants(function: Function, count: int, *, seed: int) -> tuple[Mutant, ...]:
    """At most `count` mutants that parse and differ, of as many kinds as there are; a function of text and seed."""
    from neuralforge.tasks.code_edits import code_edits
    from neuralforge.tasks.python_edits import python_edits

    raw = function.text.encode("utf-8", "surrogatepass")
    edits = python_edits(function.text) if function.language == "python" else code_edits(function)
    chosen: list[Mutant] = []
    for edit in _order(edits, raw, seed):
        if len(chosen) == count:
            break
        mutant = _mutant(function, raw, edit)
        if mutant is not None:
            chosen.append(mutant)
    return tuple(chosen)


def _order(edits: Iterable[Edit], raw: bytes, seed: int) -> Sequence[Edit]:
    """One of each kind first, kinds and edits of a kind in an order drawn from text and seed."""

    def draw(edit: Edit) -> bytes:
        told = f"{seed} {edit.kind} {edit.start} {edit.end} ".encode() + edit.by + b" " + raw
        return hashlib.blake2b(told, digest_size=8).digest()

    ranks: dict[Kind, int] = {}
    ranked = []
    for edit in sorted(set(edits), key=draw):
        ranks[edit.kind] = ranks.get(edit.kind, -1) + 1
        ranked.append((ranks[edit.kind], draw(edit), edit))
    return [edit for _, _, edit in sorted(ranked)]


def _mutant(function: Function, raw: bytes, edit: Edit) -> Mutant | None:
    if b"\n" in raw[edit.start : edit.end] or b"\n" in edit.by or raw[edit.start : edit.end] == edit.by:
        return None
    text = (raw[: edit.start] + edit.by + raw[edit.end :]).decode("utf-8", "surrogatepass")
    if not _parses_otherwise(function, text):
        return None
    line = raw[: edit.start].count(b"\n")
    return Mutant(kind=edit.kind, text=text, line=line, fixed=lines_of(function.text)[line])


def _parses_otherwise(function: Function, text: str) -> bool:
    import ast

    from neuralforge.tasks.function import parse_other, parse_python

    if function.language != "python":
        return parse_other(text, function.language) is not None
    made, original = parse_python(text), parse_python(function.text)
    return made is not None and original is not None and ast.dump(made) != ast.dump(original)
