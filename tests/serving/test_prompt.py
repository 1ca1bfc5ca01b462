"""What a model is shown of the text around a cursor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.fim import fim_marks
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.serving.prompt import anchored_tail, make_prompt, spelt_fim, suffix_mark
from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.writer import Writer

Whole = Callable[..., tuple[str, list[Piece], Finish]]


@pytest.fixture(scope="module")
def fim_base() -> BaseModel:
    """nf-tiny with three tokens more, which are StarCoder's marks."""
    base = load_base_model("nf-tiny", device="cpu", dtype="float32")
    tokenizer: Any = base.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]})
    base.model.resize_token_embeddings(len(tokenizer))
    return base


@given(st.integers(1, 50), st.integers(0, 300))
def test_a_tail_fits_and_is_no_shorter_than_three_quarters_of_the_room(room: int, size: int) -> None:
    tail = anchored_tail(list(range(size)), room)
    assert len(tail) <= room
    assert tail == list(range(size))[size - len(tail) :]
    assert len(tail) == size or len(tail) > room - max(1, room // 4) - 1


def test_as_a_text_grows_the_beginning_of_its_tail_moves_seldom() -> None:
    beginnings = [anchored_tail(list(range(size)), 100)[0] for size in range(100, 300)]
    assert len(set(beginnings)) == 9


@pytest.mark.parametrize(
    ("suffix", "mark"),
    [
        ("", ""),
        (")", ""),
        ("\n\n", ""),
        ("):\n    return total\n", "):\n    return total"),
        ("\n    return total\n", "\n    return total"),
        ("\n\n\n    return total  \nmore", "\n    return total"),
        (" + offset)\n", " + offset)"),
        ("a\nb\nc\n", ""),
    ],
)
def test_the_mark_of_a_suffix_is_its_first_line_that_says_anything(suffix: str, mark: str) -> None:
    assert suffix_mark(suffix) == mark


@pytest.mark.parametrize(
    "prompt",
    [
        "<fim_prefix>before<fim_suffix>after<fim_middle>",
        "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>",
        "<｜fim▁begin｜>before<｜fim▁hole｜>after<｜fim▁end｜>",
        "<PRE>before<SUF>after<MID>",
    ],
)
def test_marks_that_an_editor_has_spelt_out_are_understood(prompt: str) -> None:
    assert spelt_fim(prompt) == ("before", "after")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "def f():",
        "before<fim_suffix>after<fim_middle>",
        "<fim_prefix>before<fim_suffix>after",
        "<fim_prefix>a<fim_suffix>b<fim_suffix>c<fim_middle>",
        "<fim_prefix>a<fim_middle>",
    ],
)
def test_text_that_only_holds_marks_is_text(prompt: str) -> None:
    assert spelt_fim(prompt) is None


def test_a_base_with_marks_is_shown_what_stands_after_the_cursor(fim_base: BaseModel) -> None:
    tokenizer: Any = fim_base.tokenizer
    marks = fim_marks(tokenizer)
    assert marks is not None
    prompt = make_prompt(tokenizer, marks, "def f(a", "):\n    return a\n", room=100, end=0)
    assert prompt.suffix_use == "fim"
    assert tokenizer.decode(prompt.tokens) == "<fim_prefix>def f(a<fim_suffix>):\n    return a\n<fim_middle>"
    assert not prompt.truncated
    long = make_prompt(tokenizer, marks, 200 * "x = 1\n", 200 * "y = 2\n", room=100, end=0)
    assert 75 < len(long.tokens) <= 100
    assert long.truncated
    assert long.tokens.index(marks.middle) == len(long.tokens) - 1


def test_a_mark_that_is_spelt_in_the_code_itself_is_no_mark(fim_base: BaseModel) -> None:
    marks = fim_marks(fim_base.tokenizer)
    assert marks is not None
    prompt = make_prompt(fim_base.tokenizer, marks, 'MARK = "<fim_middle>"', "\n# <fim_prefix>\n", room=100, end=0)
    assert [prompt.tokens.count(mark) for mark in (marks.prefix, marks.suffix, marks.middle)] == [1, 1, 1]


def test_before_a_suffix_the_prefix_is_still_read_once(fim_base: BaseModel, code: str, whole: Whole) -> None:
    writer = Writer(fim_base, max_context=512)
    assert writer.has_fim
    finishes = [
        whole(writer.write(CompletionRequest(prompt=code[:size], suffix="\n# end\n", max_tokens=4), lambda: False))[2]
        for size in (300, 302, 304)
    ]
    assert finishes[0].reused_tokens == 0
    assert all(finish.reused_tokens > 0.8 * finish.prompt_tokens for finish in finishes[1:])


def test_without_marks_a_completion_is_cut_where_it_begins_to_repeat_the_suffix(
    writer: Writer, code: str, complete: Callable[..., str]
) -> None:
    free = complete(writer, code, max_tokens=40)
    lines = free.split("\n")
    assert len(lines) > 1
    repeated = "\n" + "\n".join(lines[1:])
    assert complete(writer, code, suffix=repeated, max_tokens=40) == lines[0]


def test_an_empty_text_is_completed_too(writer: Writer, complete: Callable[..., str]) -> None:
    assert complete(writer, "", max_tokens=4)
