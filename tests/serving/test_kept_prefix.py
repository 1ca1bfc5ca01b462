"""What two prompts have in common is read once, and nobody can tell by the answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import MODELS, VOCABULARY, tiny_model

from neuralforge.models.base import BaseModel
from neuralforge.serving.kept_prefix import KeptPrefix
from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.writer import Writer

CAUSAL = sorted(set(MODELS) - {"t5"})
Whole = Callable[..., tuple[str, list[Piece], Finish]]


def prompts(count: int = 12) -> list[list[int]]:
    """Prompts of an editor's session: one grows, is cut back, grows otherwise, is left for another and taken up."""
    generator = random.Random(5)
    ids = [generator.randrange(1, VOCABULARY) for _ in range(60)]
    answer = []
    for _ in range(count):
        ids = ids[: generator.randrange(30, len(ids) + 1)]
        ids = ids + [generator.randrange(1, VOCABULARY) for _ in range(generator.randrange(1, 6))]
        answer.append(list(ids))
    return [*answer, answer[3], answer[3], [7, 8, 9]]


def greedy(kept: KeptPrefix, ids: Sequence[int], count: int = 4) -> tuple[list[int], torch.Tensor, int]:
    logits, reused = kept.read(ids, lambda: False)
    assert logits is not None
    first, tokens = logits, []
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = kept.push(tokens[-1])
    return tokens, first, reused


@pytest.mark.parametrize("family", CAUSAL)
def test_with_and_without_reuse_the_same_tokens_come_and_logprobs_agree(family: str) -> None:
    model = tiny_model(family)
    kept, anew = KeptPrefix(model), KeptPrefix(model, reuse=False)
    shared = 0
    for ids in prompts():
        tokens, logits, reused = greedy(kept, ids)
        wanted, reference, none = greedy(anew, ids)
        assert tokens == wanted
        torch.testing.assert_close(logits.log_softmax(-1), reference.log_softmax(-1), atol=1e-4, rtol=0)
        assert none == 0
        shared += reused
    # Gemma 2's sliding windows forget what a cut would bring back.
    assert (shared > 300) == (family != "gemma2")


def test_the_very_same_prompt_is_read_but_for_its_last_token() -> None:
    kept = KeptPrefix(tiny_model("llama"))
    kept.read([5, 6, 7, 8], lambda: False)
    assert kept.read([5, 6, 7, 8], lambda: False)[1] == 3


def test_after_forgetting_everything_is_read_again() -> None:
    kept = KeptPrefix(tiny_model("llama"))
    kept.read([5, 6, 7, 8], lambda: False)
    kept.forget()
    assert kept.read([5, 6, 7, 8, 9], lambda: False)[1] == 0


def test_what_a_cancelled_request_has_read_is_used_by_the_next() -> None:
    model = tiny_model("llama")
    kept, asked = KeptPrefix(model), []
    ids = [index % 90 + 1 for index in range(700)]

    def after_one_chunk() -> bool:
        asked.append(None)
        return len(asked) > 1

    assert kept.read(ids, after_one_chunk)[0] is None
    logits, reused = kept.read(ids, lambda: False)
    fresh, _ = KeptPrefix(model).read(ids, lambda: False)
    assert reused == 512
    assert logits is not None
    assert fresh is not None
    torch.testing.assert_close(logits, fresh, atol=1e-4, rtol=0)


def test_a_failure_in_the_middle_of_a_step_leaves_nothing_half_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    kept = KeptPrefix(model)
    kept.read([5, 6, 7, 8], lambda: False)
    with monkeypatch.context() as patch:
        # The last layer fails: those before it have written to the cache already.
        patch.setattr(model.model.layers[-1], "forward", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kept.push(9)
    logits, reused = kept.read([5, 6, 7, 8, 9], lambda: False)
    assert reused == 0
    fresh, _ = KeptPrefix(model).read([5, 6, 7, 8, 9], lambda: False)
    assert logits is not None
    assert torch.equal(logits, fresh) if fresh is not None else False


def test_keystroke_by_keystroke_a_session_is_what_it_would_be_without_memory(
    tiny_base: BaseModel, code: str, whole: Whole
) -> None:
    kept, anew = Writer(tiny_base, max_context=512), Writer(tiny_base, max_context=512, reuse_prefix=False)
    reused = read = 0
    for size in range(len(code) - 24, len(code) + 1, 3):
        request = CompletionRequest(prompt=code[:size], max_tokens=8, logprobs=2)
        text, pieces, finish = whole(kept.write(request, lambda: False))
        wanted, reference, _ = whole(anew.write(request, lambda: False))
        assert text == wanted
        ours, theirs = ([t.logprob for p in each for t in p.tokens] for each in (pieces, reference))
        assert ours == pytest.approx(theirs, abs=1e-4)
        reused, read = reused + finish.reused_tokens, read + finish.prompt_tokens
    assert reused > 0.8 * read


def test_a_text_longer_than_the_room_keeps_its_beginning_over_many_keystrokes(
    tiny_base: BaseModel, code: str, whole: Whole
) -> None:
    short = Writer(tiny_base, max_context=128)
    reused = []
    for size in range(len(code) - 10, len(code) + 1):
        text = whole(short.write(CompletionRequest(prompt=3 * code + code[:size], max_tokens=4), lambda: False))
        assert text[2].truncated
        assert text[2].prompt_tokens <= 124
        reused.append(text[2].reused_tokens)
    assert sum(count > 60 for count in reused[1:]) >= 8
