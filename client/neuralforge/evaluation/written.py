"""What an adapter writes, compared with what a person wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuralforge.data.example import Example
from neuralforge.data.grammars import GRAMMARS
from neuralforge.evaluation.generation import Generation
from neuralforge.evaluation.opened import OpenedAdapter
from neuralforge.evaluation.syntax import syntax_valid
from neuralforge.evaluation.text import edit_similarity, exact_match, line_match

WRITTEN_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One completion and what it is worth; `syntax` is None where the language has no grammar here."""

    index: int
    text: str
    exact: bool
    line: bool
    similarity: float
    syntax: bool | None


def write_all(
    opened: OpenedAdapter,
    examples: Sequence[Example],
    *,
    adapter: bool,
    max_new_tokens: int = WRITTEN_TOKENS,
) -> list[Written]:
    """Greedy completions of all examples, in order, compared with as much of the wanted text as fits the tokens."""
    found = []
    for index, example in enumerate(examples):
        made = opened.complete(example.context, suffix=example.suffix, adapter=adapter, max_new_tokens=max_new_tokens)
        found.append(compared(index, example, made, wanted=opened.first_tokens(example.completion, max_new_tokens)))
    return found


def compared(index: int, example: Example, made: Generation, *, wanted: str) -> Written:
    """One generation beside the wanted text."""
    return Written(
        index=index,
        text=made.text,
        exact=exact_match(made.text, wanted),
        line=line_match(made.text, wanted),
        similarity=edit_similarity(made.text, wanted),
        syntax=syntax_valid(example, made.text, cut=made.cut),
    )


def without_grammar(examples: Sequence[Example]) -> dict[str, int]:
    """Language -> samples of it whose syntax cannot be judged here."""
    found: dict[str, int] = {}
    for example in examples:
        if example.language not in GRAMMARS:
            found[example.language or "unknown"] = found.get(example.language or "unknown", 0) + 1
    return dict(sorted(found.items()))
