"""What stands after the cursor is shown to a base that knows the marks for it."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neuralforge.data.example import Example
from neuralforge.data.fim import FimMarks, fim_marks, fim_prompt
from neuralforge.data.tokens import tokenize

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def tokenizer(*special: str) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


EXAMPLE = Example(context="def add(a, b):\n", completion="    return a + b", suffix="\n\nprint(add(1, 2))\n")


def test_prefix_suffix_middle_in_that_order() -> None:
    known = tokenizer(*MARKS)
    (made,) = tokenize([EXAMPLE], known, max_length=128, end_token_id=known.eos_token_id)
    text = known.decode(made.tokens)
    prefix, suffix, middle = MARKS
    assert text == f"{prefix}{EXAMPLE.context}{suffix}{EXAMPLE.suffix}{middle}{EXAMPLE.completion}<end>"
    assert known.decode(made.tokens[made.start :]) == f"{EXAMPLE.completion}<end>"


def test_without_marks_or_without_a_suffix_nothing_changes() -> None:
    plain, known = tokenizer(), tokenizer(*MARKS)
    assert fim_marks(plain) is None
    bare = Example(context=EXAMPLE.context, completion=EXAMPLE.completion)
    for one, example in ((plain, EXAMPLE), (known, bare)):
        (made,) = tokenize([example], one, max_length=128, end_token_id=one.eos_token_id)
        assert one.decode(made.tokens) == f"{EXAMPLE.context}{EXAMPLE.completion}<end>"


def test_marks_that_are_spelt_in_code_are_code() -> None:
    known = tokenizer(*MARKS)
    example = Example(context=f"x = '{MARKS[1]}'\n", completion="y = 1", suffix=MARKS[2])
    (made,) = tokenize([example], known, max_length=256, end_token_id=known.eos_token_id)
    marks = fim_marks(known)
    assert marks is not None
    assert [made.tokens.count(mark) for mark in (marks.prefix, marks.suffix, marks.middle)] == [1, 1, 1]


@pytest.mark.parametrize("room", [4, 10, 40, 1000])
def test_a_prompt_fits_and_keeps_what_is_nearest_to_the_cursor(room: int) -> None:
    marks = FimMarks(prefix=1001, suffix=1002, middle=1003)
    made = fim_prompt([7, *range(100)], range(200, 300), marks, room=room, first=7)
    assert len(made) <= room
    assert made[:2] == [7, 1001]
    assert made[-1] == 1003
    if room >= 10:
        at = made.index(1002)
        assert made[at - 1] == 99
        assert made[at + 1] == 200
        assert len(made) - at - 2 <= room // 3
