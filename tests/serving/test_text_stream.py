"""Tokens become text while they come, and a stop string is found wherever it lies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.models.base import BaseModel
from neuralforge.serving.text_stream import StopStrings, TextStream

_STATE: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _tokenizer(tiny_base: BaseModel) -> None:
    _STATE["tokenizer"] = tiny_base.tokenizer


@settings(max_examples=60, deadline=None)
@given(before=st.text(max_size=10), text=st.text(max_size=30))
def test_pieces_put_together_are_the_text_and_no_piece_has_half_a_character(before: str, text: str) -> None:
    tokenizer = _STATE["tokenizer"]
    stream = TextStream(tokenizer, tokenizer(before)["input_ids"] if before else [])
    pieces = [stream.push(token) for token in (tokenizer(text)["input_ids"] if text else [])]
    whole = "".join([*pieces, stream.flush()])
    assert whole == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_an_emoji_comes_whole_though_its_bytes_are_tokens_of_their_own() -> None:
    tokenizer = _STATE["tokenizer"]
    ids = tokenizer("a🦀b")["input_ids"]
    assert len(ids) > 4
    stream = TextStream(tokenizer, [])
    assert [piece for piece in map(stream.push, ids) if piece] == ["a", "🦀", "b"]


def test_a_character_that_never_ends_is_not_waited_for() -> None:
    tokenizer = _STATE["tokenizer"]
    first = tokenizer("🦀")["input_ids"][0]
    stream = TextStream(tokenizer, [])
    pieces = [stream.push(first) for _ in range(9)]
    assert "".join(pieces)
    assert set("".join([*pieces, stream.flush()])) == {"\ufffd"}


@settings(max_examples=200)
@given(
    parts=st.lists(st.text("ab\n", max_size=4), max_size=8),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_whatever_the_borders_the_text_ends_before_its_first_stop_string(parts: list[str], stops: list[str]) -> None:
    text = "".join(parts)
    # The one that is complete first counts: a reader of the stream cannot wait for a longer one.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    cutter = StopStrings(stops)
    shown = "".join([cutter.push(part) for part in parts] + [cutter.flush()])
    assert cutter.found == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert shown in {text[:begin] for _, begin in ends}
        assert not any(stop in shown for stop in stops)


def test_what_may_become_a_stop_string_is_held_back_and_nothing_more() -> None:
    cutter = StopStrings(["\ndef"])
    assert cutter.push("x = 1\nd") == "x = 1"
    assert cutter.push("o") == "\ndo"
    assert cutter.push("\nde") == ""
    assert cutter.push("f") == ""
    assert cutter.found
    assert cutter.flush() == ""
