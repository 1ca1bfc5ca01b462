"""The writer keeps to what was asked: as greedy as transformers, as random as a seed, as long as allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuralforge.data.example import Example
from neuralforge.data.tokens import tokenize
from neuralforge.evaluation.opened import open_adapter
from neuralforge.models.base import BaseModel
from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.sampling import choose, most_likely
from neuralforge.serving.served import open_served
from neuralforge.serving.writer import Writer

Whole = Callable[..., tuple[str, list[Piece], Finish]]


def test_greedy_text_is_what_test_adapter_shows(adapter: Path, code: str, complete: Callable[..., str]) -> None:
    opened = open_adapter(adapter, device="cpu", max_length=512)
    served = open_served([adapter], device="cpu")
    for size in (0, 40, 200, len(code)):
        for model, on in (("", True), ("nf-tiny", False)):
            wanted = opened.complete(code[:size], adapter=on, max_new_tokens=24).text
            served.writer.forget()  # as the other starts anew each time, to the last bit
            assert complete(served, code[:size], model=model, max_tokens=24) == wanted


def test_logprobs_are_the_models_own_and_belong_to_the_text(tiny_base: BaseModel, code: str, whole: Whole) -> None:
    writer = Writer(tiny_base, max_context=512)
    text, pieces, finish = whole(writer.write(CompletionRequest(prompt=code, max_tokens=12, logprobs=3), lambda: False))
    tokens = [token for piece in pieces for token in piece.tokens]
    assert len(tokens) == finish.completion_tokens == 12
    assert "".join(token.text for token in tokens) == text
    assert [text[t.offset : t.offset + len(t.text)] for t in tokens] == [t.text for t in tokens]
    # What training reads of the same text.
    (read,) = tokenize(
        [Example(context=code, completion=text)],
        tiny_base.tokenizer,
        max_length=512,
        end_token_id=tiny_base.end_token_id,
    )
    with torch.no_grad():
        logits = tiny_base.model(input_ids=torch.tensor([read.tokens])).logits[0, read.start - 1 : -1]
    written = torch.tensor(read.tokens[read.start :])
    reference = logits.log_softmax(-1).gather(-1, written[:, None])[:, 0]
    assert [t.logprob for t in tokens] == pytest.approx(reference.tolist()[: len(tokens)], abs=1e-4)
    assert all(t.alternatives[0][1] == t.logprob and len(t.alternatives) == 3 for t in tokens)


def test_behind_an_indentation_a_line_goes_on_as_if_it_had_not_been_typed(tiny_base: BaseModel, whole: Whole) -> None:
    writer = Writer(tiny_base, max_context=512)
    code = "def total(values):\n    result = 0\n    for value in values:"
    free, _, _ = whole(writer.write(CompletionRequest(prompt=code, max_tokens=24), lambda: False))
    typed = free[: len(free) - len(free.lstrip())]
    assert typed.startswith("\n")
    for end in range(1, len(typed) + 1):
        text, _, finish = whole(
            writer.write(CompletionRequest(prompt=code + typed[:end], max_tokens=24), lambda: False)
        )
        assert (typed[:end] + text).startswith(free[:40])
        assert finish.completion_tokens == 24


def test_a_stop_string_across_tokens_ends_text_and_tokens(writer: Writer, code: str, whole: Whole) -> None:
    free, pieces, _ = whole(writer.write(CompletionRequest(prompt=code, max_tokens=30, logprobs=0), lambda: False))
    tokens = [token for piece in pieces for token in piece.tokens]
    border = tokens[5].offset
    stop = free[border - 1 : border + 1]
    text, cut, finish = whole(
        writer.write(CompletionRequest(prompt=code, max_tokens=30, logprobs=0, stop=(stop,)), lambda: False)
    )
    assert text == free[: free.index(stop)]
    assert finish.reason == "stop"
    kept = [token for piece in cut for token in piece.tokens]
    assert kept
    assert [(t.text, t.offset) for t in kept] == [(t.text, t.offset) for t in tokens[: len(kept)]]
    assert all(token.offset < len(text) for token in kept)


def test_no_more_tokens_come_than_were_asked_for_nor_than_the_context_holds(tiny_base: BaseModel, whole: Whole) -> None:
    finish = whole(Writer(tiny_base, max_context=512).write(CompletionRequest(prompt="a", max_tokens=1), lambda: False))
    assert (finish[2].completion_tokens, finish[2].reason) == (1, "length")
    small = Writer(tiny_base, max_context=32)
    finish = whole(small.write(CompletionRequest(prompt=100 * "a = b\n", max_tokens=999), lambda: False))
    assert finish[2].completion_tokens <= 16
    assert finish[2].prompt_tokens <= 16


def test_a_cancelled_completion_stops_at_the_next_token(writer: Writer, code: str, whole: Whole) -> None:
    asked: list[None] = []

    def after_five() -> bool:
        asked.append(None)
        return len(asked) > 5

    _, _, finish = whole(writer.write(CompletionRequest(prompt=code, max_tokens=400), after_five))
    assert finish.reason == "cancelled"
    assert finish.completion_tokens == 4  # it is asked once before the prompt is read


def test_time_for_writing_is_bounded(tiny_base: BaseModel, code: str, whole: Whole) -> None:
    ticks = iter(range(10_000))
    writer = Writer(tiny_base, max_context=512, clock=lambda: float(next(ticks)))
    _, _, finish = whole(writer.write(CompletionRequest(prompt=code, max_tokens=100, seconds=7.5), lambda: False))
    assert finish.reason == "length"
    assert finish.completion_tokens == 8


def test_a_seed_repeats_itself_and_another_one_differs(writer: Writer, code: str, complete: Callable[..., str]) -> None:
    drawn = [complete(writer, code, max_tokens=24, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_tiny_nucleus_is_greedy(writer: Writer, code: str, complete: Callable[..., str]) -> None:
    assert complete(writer, code, max_tokens=16, temperature=1.0, top_p=1e-6, seed=3) == complete(
        writer, code, max_tokens=16
    )


def test_tokens_are_drawn_as_often_as_they_are_likely_and_only_from_the_nucleus() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.3, 0.1])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(4)
    for _ in range(3000):
        drawn[choose(probabilities.log(), temperature=1.0, top_p=0.7, generator=generator)] += 1
    assert drawn[[0, 3]].sum() == 0
    torch.testing.assert_close(drawn / 3000, torch.tensor([0.0, 0.625, 0.375, 0.0]), atol=0.03, rtol=0)
    logprob, likeliest = most_likely(probabilities.log(), 2, 2)
    assert logprob == pytest.approx(float(torch.tensor(0.3).log()))
    assert [token for token, _ in likeliest] == [1, 2]
