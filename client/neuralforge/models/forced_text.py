"""Holding a model to a text that is there already, in whatever tokens it likes: the other half of `data.boundary`."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessor


class Spellings:
    """What each token of a vocabulary adds to a text."""

    def __init__(self, tokenizer: Any) -> None:
        (mark, *_) = tokenizer("a", add_special_tokens=False)["input_ids"]
        size, special = len(tokenizer), set(tokenizer.all_special_ids)
        # Behind another token: alone, some tokenizers show no space in front.
        both = tokenizer.batch_decode([[mark, token] for token in range(size)], clean_up_tokenization_spaces=False)
        alone = str(tokenizer.decode([mark], clean_up_tokenization_spaces=False))
        self.of = [
            text[len(alone) :] if token not in special and text.startswith(alone) else ""
            for token, text in enumerate(both)
        ]
        in_order = sorted((text, token) for token, text in enumerate(self.of) if text)
        self._texts, self._tokens = [text for text, _ in in_order], [token for _, token in in_order]

    def fitting(self, text: str) -> list[int]:
        """The tokens that a text can begin with which begins with this one: those within it, and those beyond."""
        within = []
        for size in range(1, len(text)):
            within += self._same(text[:size], whole=True)
        return within + self._same(text, whole=False)

    def _same(self, text: str, *, whole: bool) -> list[int]:
        found = []
        for at in range(bisect_left(self._texts, text), len(self._texts)):
            if not (self._texts[at] == text if whole else self._texts[at].startswith(text)):
                break
            found.append(self._tokens[at])
        return found


@lru_cache(maxsize=4)
def spellings_of(tokenizer: Any) -> Spellings:
    """The spellings of a tokenizer's tokens; made once, in less than a second for a hundred thousand."""
    return Spellings(tokenizer)


class ForcedText:
    """A text that what is written has to begin with; `rest` of it is still to come."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._tokenizer, self.rest = tokenizer, text

    def hold(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits, the vocabulary last, of which only tokens that go on with the text are possible."""
        if not self.rest:
            return logits
        fitting = spellings_of(self._tokenizer).fitting(self.rest)
        if not fitting:  # a vocabulary without the single characters of this text: nothing can be held to it
            self.rest = ""
            return logits
        held = torch.full_like(logits, float("-inf"))
        held[..., fitting] = logits[..., fitting]
        return held

    def push(self, token: int) -> bool:
        """Go on behind a token; tells whether it was within the text."""
        if not self.rest:
            return False
        spelt = spellings_of(self._tokenizer).of[token]
        within = self.rest.startswith(spelt)
        self.rest = self.rest[len(spelt) :] if within else ""
        return within


class HeldTo(LogitsProcessor):
    """The same for `generate`, which asks before each token; whoever sees the tokens pushes them."""

    def __init__(self, forced: ForcedText) -> None:
        self._forced = forced

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits of shape (1, vocabulary)."""
        return self._forced.hold(scores)
