"""From the text around a cursor to the tokens that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from neuralforge.data.boundary import open_ends
from neuralforge.data.fim import SPELT, FimMarks, fim_prompt
from neuralforge.data.tokens import encode
from neuralforge.serving.request import SuffixUse

_CHARACTERS_A_TOKEN = 16
"""Longer than code's tokens are on average by far: text beyond that many a token of room is not even tokenized."""

_LEAST_MARK = 4
"""Characters, white space aside, by which the beginning of a suffix is told from a mere bracket."""

_Part = TypeVar("_Part", bound=Sequence[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids, how the suffix is used, and the text at which a completion that repeats the suffix is cut.

    `forced` is the end of what stands before the cursor: it is not in the tokens, and what is written begins with it,
    see `data.boundary`.
    """

    tokens: tuple[int, ...]
    forced: str = ""
    suffix_use: SuffixUse
    stop: str = ""
    truncated: bool = False


def make_prompt(tokenizer: Any, marks: FimMarks | None, prefix: str, suffix: str, *, room: int, end: int) -> Prompt:
    """A prompt of at most `room` tokens.

    With `marks` the model is shown the suffix. Without them it is not; the completion is then cut where it begins to
    repeat it. A text that is too long loses its beginning in steps, so that the next keystroke mostly finds the same
    beginning again. An empty text is `end`, the token between texts.
    """
    shown = anchored_tail(prefix, room * _CHARACTERS_A_TOKEN)
    context = encode(tokenizer, [shown], special=True)[0]
    first = tokenizer.bos_token_id if context and context[0] == tokenizer.bos_token_id else None
    begun = [] if first is None else [first]
    body = context[len(begun) :]
    if suffix and marks is not None:
        after = encode(tokenizer, [suffix[: room * _CHARACTERS_A_TOKEN]], special=False)[0]
        left = max(0, room - len(begun) - 3)  # as in fim_prompt, which cuts without steps
        after = after[: left // 3]
        kept = anchored_tail(body, left - len(after))
        tokens = fim_prompt([*begun, *kept], after, marks, room=room, first=first)
        return Prompt(
            tokens=tuple(tokens), suffix_use="fim", truncated=len(kept) < len(body) or len(shown) < len(prefix)
        )
    open_end = open_ends(tokenizer, [shown], [context])[0]
    body = body[: len(body) - len(open_end.tokens)]
    kept = anchored_tail(body, max(1, room - len(begun) - len(open_end.tokens)))
    mark = suffix_mark(suffix)
    return Prompt(
        tokens=tuple([*begun, *kept] or [end]),
        forced=open_end.text,
        suffix_use="cut" if mark else "none",
        stop=mark,
        truncated=len(kept) < len(body) or len(shown) < len(prefix),
    )


def anchored_tail(sequence: _Part, room: int) -> _Part:
    """The end of a sequence in at most `room` items, its beginning a multiple of a quarter of the room.

    While a text grows by less than that, what is left of it keeps its beginning.
    """
    if len(sequence) <= room:
        return sequence
    step = max(1, room // 4)
    begin = -(-(len(sequence) - room) // step) * step
    return sequence[begin:]  # type: ignore[return-value]  # a slice of a text is a text, of a list a list


def suffix_mark(suffix: str) -> str:
    """The first line of a suffix that says anything, with the line break before it; empty where it says too little."""
    if len("".join(suffix.split())) < _LEAST_MARK:
        return ""
    lines = suffix.split("\n")
    first = next(index for index, line in enumerate(lines) if line.strip())
    last = first
    while len("".join("".join(lines[first : last + 1]).split())) < _LEAST_MARK:
        last += 1
    return ("\n" if first else "") + "\n".join(lines[first : last + 1]).rstrip()


def spelt_fim(prompt: str) -> tuple[str, str] | None:
    """Prefix and suffix of a prompt in which an editor has spelt the marks out, as Continue and Zed do; else None.

    The spelling may be that of another base: what counts is what stands before and after the cursor.
    """
    for marks in SPELT:
        begin, hole, end = (mark.lstrip("▁") for mark in marks)
        if prompt.startswith(begin) and prompt.endswith(end) and prompt.count(hole) == 1:
            before, _, after = prompt.removeprefix(begin).removesuffix(end).partition(hole)
            return before, after
    return None
