"""Fill-in-the-middle: the marks by which a base is shown what stands after the cursor.

Bavarian et al. 2022, "Efficient training of language models to fill in the middle": prefix, suffix, middle (PSM), each
behind a mark of its own. Only a base that was trained with such marks knows what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# StarCoder and SantaCoder; Qwen2.5-Coder and CodeGemma; DeepSeek-Coder; Code Llama (its marks begin with a space).
SPELT = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FimMarks:
    """Token ids of the three marks."""

    prefix: int
    suffix: int
    middle: int


def fim_marks(tokenizer: Any) -> FimMarks | None:
    """The marks of a base's tokenizer, or None where it has none."""
    vocabulary = tokenizer.get_vocab()
    for names in SPELT:
        if all(name in vocabulary for name in names):
            prefix, suffix, middle = (int(vocabulary[name]) for name in names)
            return FimMarks(prefix=prefix, suffix=suffix, middle=middle)
    return None


def fim_prompt(
    context: Sequence[int], suffix: Sequence[int], marks: FimMarks, *, room: int, first: int | None = None
) -> list[int]:
    """Prefix, suffix, middle in at most `room` tokens; `first` is the mark that a text begins with, where it has one.

    The suffix gets at most a third of the room: what stands before the cursor says more (same paper, section 4).
    """
    begun = [first] if first is not None and context and context[0] == first else []
    context = context[len(begun) :]
    left = max(0, room - len(begun) - 3)
    after = suffix[: left // 3]
    before = context[max(0, len(context) - (left - len(after))) :]
    return [*begun, marks.prefix, *before, marks.suffix, *after, marks.middle]
