"""Where a context ends and its completion begins, in tokens.

A tokenizer joins what stands together: a line break and the indentation behind it, a space and its word, both halves of
an identifier. Text that is cut between the two and tokenized apart ends in a token that a base has hardly ever seen
there, and what it then writes is poor. So the last token of a context is given back to the completion and both are
tokenized as one; a model that writes is held to the text of that token, not to the token ("token healing").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MOST = 8  # tokens of white space that are given back; a longer run is a text's own matter


@dataclass(frozen=True, slots=True)
class OpenEnd:
    """What of a context its completion may join: its last `tokens`, and the `text` that they spell."""

    tokens: tuple[int, ...] = ()
    text: str = ""

    def known(self, joined: Sequence[int]) -> int:
        """How many tokens of `text` and completion as one are the context's own."""
        pairs = zip(self.tokens, joined, strict=False)
        return next((place for place, (one, other) in enumerate(pairs) if one != other), len(self.tokens))


CLOSED = OpenEnd()
"""Of a context that is left as it is."""


def open_ends(tokenizer: Any, texts: Sequence[str], contexts: Sequence[Sequence[int]]) -> list[OpenEnd]:
    """The open end of each of `texts`, which are `contexts` in tokens: its last token, and more of white space.

    An end is closed where it is not ASCII (it may be a part of a character), or does not read back as the same tokens:
    then nothing behind it would be joined to it either, as with tokenizers that put a space in front of every text.
    """
    special = set(tokenizer.all_special_ids)
    found = [_last(tokenizer, text, ids, special) for text, ids in zip(texts, contexts, strict=True)]
    spelt = [end.text for end in found if end.text]
    again = iter(tokenizer(spelt, add_special_tokens=False, split_special_tokens=True)["input_ids"] if spelt else [])
    return [end if end.text and tuple(next(again)) == end.tokens else CLOSED for end in found]


def _last(tokenizer: Any, text: str, ids: Sequence[int], special: set[int]) -> OpenEnd:
    end = CLOSED
    for count in range(1, min(_MOST, len(ids) - 1) + 1):  # a causal model starts from one token at least
        if ids[-count] in special:
            break
        # Behind the token before them: alone, some tokenizers show no space in front.
        before, both = (_spelt(tokenizer, ids[-count - 1 : stop]) for stop in (len(ids) - count, len(ids)))
        spelt = both[len(before) :]
        if not (spelt and spelt.isascii() and both.startswith(before) and text.endswith(spelt)):
            break
        if count > 1 and not spelt.isspace():
            break
        end = OpenEnd(tuple(ids[-count:]), spelt)
        if not spelt.isspace():
            break
    return end


def _spelt(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
