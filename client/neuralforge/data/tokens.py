"""Text to token ids: what the model is shown and which of it counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuralforge.data.boundary import CLOSED, open_ends
from neuralforge.data.example import Example
from neuralforge.data.fim import fim_marks, fim_prompt
from neuralforge_common.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedExample:
    """One example as token ids.

    `tokens` holds context then completion for a causal model; for an encoder-decoder `context` feeds the encoder
    and `tokens` only the completion. The loss counts `tokens[start:]`, each predicted from what stands before it.
    `ended` tells whether the last token is the end mark: it is learnt, but no code, so evaluation leaves it out.
    """

    index: int
    tokens: tuple[int, ...]
    start: int
    context: tuple[int, ...] = ()
    language: str = ""
    ended: bool = True

    @property
    def targets(self) -> int:
        """How many tokens the loss counts."""
        return len(self.tokens) - self.start

    @property
    def length(self) -> int:
        """All tokens that the model reads, padding aside."""
        return len(self.tokens) + len(self.context)


def tokenize(
    examples: Iterable[Example],
    tokenizer: Any,
    *,
    max_length: int,
    end_token_id: int,
    is_encoder_decoder: bool = False,
) -> list[TokenizedExample]:
    """Tokenize context and completion as one text, see `boundary`; a token that both have a part in counts.

    Apart are those of an encoder-decoder, and those with marks for the cursor between them. A completion may always
    fill half of `max_length` tokens, and more where the context leaves room; it is cut at its end, the context at its
    beginning. What stands after the cursor is shown to a causal base that has marks for it (`fim_marks`), and to no
    other. Raises DataError where nothing is left to learn from.
    """
    examples = list(examples)
    contexts = encode(tokenizer, [e.context for e in examples], special=True)
    marks = fim_marks(tokenizer) if not is_encoder_decoder and any(e.suffix for e in examples) else None
    ends = [CLOSED] * len(examples)
    if not is_encoder_decoder:
        ends = open_ends(tokenizer, [e.context for e in examples], contexts)
    if marks is not None:
        ends = [CLOSED if example.suffix else end for example, end in zip(examples, ends, strict=True)]
    joined = [end.text + example.completion for end, example in zip(ends, examples, strict=True)]
    completions = encode(tokenizer, joined, special=False)
    suffixes = encode(tokenizer, [e.suffix for e in examples], special=False) if marks else [[]] * len(examples)
    tokenized = []
    rows = zip(examples, contexts, ends, completions, suffixes, strict=True)
    for index, (example, context, end, completion, suffix) in enumerate(rows):
        if is_encoder_decoder:
            body, ended = _ended(completion, max_length, end_token_id)
            tokens, start, encoder = body, 0, _tail(context, max_length)
        else:
            context = context[: len(context) - len(end.tokens)]
            known = end.known(completion)
            room = max(max_length - len(context) - len(suffix), max_length // 2 + known)
            body, ended = _ended(completion, min(room, max_length), end_token_id)
            first, left = tokenizer.bos_token_id, max_length - len(body)
            shown = marks is not None and example.suffix
            head = (
                fim_prompt(context, suffix, marks, room=left, first=first)
                if shown and marks
                else _tail(context, left, first=first)
            )
            # A causal model without a beginning mark predicts nothing at position 0.
            tokens, start, encoder = head + body, max(len(head) + known, 1), []
        if len(tokens) > start:
            tokenized.append(
                TokenizedExample(
                    index=index,
                    tokens=tuple(tokens),
                    start=start,
                    context=tuple(encoder),
                    language=example.language,
                    ended=ended,
                )
            )
    if not tokenized:
        raise DataError(f"no completion holds a token to learn from (examples: {len(examples)})")
    return tokenized


def with_context_counted(examples: Iterable[TokenizedExample]) -> list[TokenizedExample]:
    """The same, every token counted that a causal model predicts: all but the first. An encoder's context never is."""
    return [example if example.context else replace(example, start=1) for example in examples]


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Token ids of texts; `special` adds the marks that the tokenizer puts around a text.

    A special token that is spelt out in a text, as `<|endoftext|>` may be in code about models, is read as the
    characters that it is spelt with: only the trainer ends a text.
    """
    if not texts:
        return []
    # verbose=False: a long text is cut by the caller, so the tokenizer's own warning about its length would mislead.
    encoded = tokenizer(
        list(texts),
        add_special_tokens=special,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _ended(completion: list[int], room: int, end_token_id: int) -> tuple[list[int], bool]:
    if len(completion) < room:
        return [*completion, end_token_id], True
    return completion[:room], False


def _tail(tokens: list[int], room: int, *, first: int | None = None) -> list[int]:
    """The last tokens that fit; the mark `first` stays in front: a model that has one never saw text without it."""
    if len(tokens) <= room:
        return tokens
    if first is not None and room > 0 and tokens[0] == first:
        return [first, *tokens[len(tokens) - room + 1 :]]
    return tokens[len(tokens) - room :]
