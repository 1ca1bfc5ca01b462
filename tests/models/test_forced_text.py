"""Holding a model to a text: whatever tokens it takes, what is written begins with that text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.models.forced_text import ForcedText, spellings_of
from neuralforge.models.load import load_base_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_base_model("nf-tiny").tokenizer


@given(text=st.text(st.sampled_from(" \nreturn(_.x"), min_size=1, max_size=8), seed=st.integers(0, 2**16))
def test_what_is_written_begins_with_the_text(tokenizer: Any, text: str, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    forced, written, within = ForcedText(tokenizer, text), [], 0
    while forced.rest:
        logits = torch.randn(len(tokenizer), generator=draws)
        token = int(forced.hold(logits).argmax())
        within += forced.push(token)
        written.append(token)
    spelt = tokenizer.decode(written, clean_up_tokenization_spaces=False)
    assert spelt.startswith(text)
    assert within == len(written) - (spelt != text)


def test_behind_the_text_nothing_is_held(tokenizer: Any) -> None:
    logits = torch.randn(len(tokenizer))
    assert ForcedText(tokenizer, "").hold(logits) is logits


def test_tokens_that_begin_with_the_text_and_those_within_it_fit(tokenizer: Any) -> None:
    spellings = spellings_of(tokenizer)
    fitting = {spellings.of[token] for token in spellings.fitting("\n    ")}
    everything = {text for text in spellings.of if text and ("\n    ".startswith(text) or text.startswith("\n    "))}
    assert fitting == everything
    assert {"\n", "\n    "} <= fitting


def test_a_mark_never_fits(tokenizer: Any) -> None:
    spellings = spellings_of(tokenizer)
    assert all(spellings.of[token] == "" for token in tokenizer.all_special_ids)
