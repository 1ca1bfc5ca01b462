"""Where a context ends and its completion begins: what may be joined is tokenized as one, and what counts is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from neuralforge.data.boundary import CLOSED, open_ends
from neuralforge.data.example import Example
from neuralforge.data.tokens import encode, tokenize
from neuralforge.models.load import load_base_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_base_model("nf-tiny").tokenizer


def text_of(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("def f():\n", "\n"),
        ("def f():\n    ", "\n    "),
        ("x = 1\n\n        ", "\n\n        "),
        ("return ", " "),
        ("x = foo(", "("),
        ("x", ""),  # a causal model starts from one token at least
        ("", ""),
        ("x = 'é", ""),
    ],
)
def test_an_end_is_the_last_token_and_more_of_white_space(tokenizer: Any, text: str, end: str) -> None:
    ids = encode(tokenizer, [text], special=True)
    (found,) = open_ends(tokenizer, [text], ids)
    assert found.text == end
    assert text_of(tokenizer, ids[0][: len(ids[0]) - len(found.tokens)]) + end == text


def test_a_mark_is_never_given_back(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    assert open_ends(tokenizer, [f"x{tokenizer.eos_token}"], [[50, end]]) == [CLOSED]


def test_what_a_tokenizer_would_read_otherwise_is_left_as_it_is() -> None:
    # As of Llama 2: every text gets a space in front, so that one cut in two is never the one that it was.
    words = {"<unk>": 0, "▁x": 1, "y": 2, "▁": 3, "▁y": 4, "x": 5}
    inner = Tokenizer(models.BPE(vocab=words, merges=[("▁", "x"), ("▁", "y")]))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    for text in ("xy", "x y"):
        ids = encode(tokenizer, [text], special=True)
        assert open_ends(tokenizer, [text], ids) == [CLOSED]


code = st.text(st.sampled_from("ab_ \n\t(.:=x1é"), max_size=24)


@given(context=code, completion=code.filter(bool))
def test_the_tokens_spell_the_text_and_what_is_not_counted_is_the_contexts(
    tokenizer: Any, context: str, completion: str
) -> None:
    (made,) = tokenize(
        [Example(context=context, completion=completion)],
        tokenizer,
        max_length=400,
        end_token_id=tokenizer.eos_token_id,
    )
    assert made.ended
    if context:
        assert text_of(tokenizer, made.tokens[:-1]) == context + completion
        assert context.startswith(text_of(tokenizer, made.tokens[: made.start]).rstrip("\ufffd"))


def test_an_indentation_is_one_token_with_its_line_break_and_counts(tokenizer: Any) -> None:
    example = Example(context="def f():\n", completion="        return 1\n")
    (made,) = tokenize([example], tokenizer, max_length=64, end_token_id=tokenizer.eos_token_id)
    whole = encode(tokenizer, [example.context + example.completion], special=True)[0]
    assert list(made.tokens[:-1]) == whole
    assert text_of(tokenizer, made.tokens[: made.start]) == "def f():"


def test_what_the_completion_does_not_touch_is_not_counted(tokenizer: Any) -> None:
    example = Example(context="x = foo(", completion="\n    1)\n")
    (made,) = tokenize([example], tokenizer, max_length=64, end_token_id=tokenizer.eos_token_id)
    assert text_of(tokenizer, made.tokens[: made.start]) == example.context


@pytest.mark.parametrize("max_length", [2, 3, 8, 15])
def test_no_example_is_longer_than_allowed(tokenizer: Any, max_length: int) -> None:
    example = Example(context="def f(x):\n\n\n        ", completion="return x + 1\n" * 3)
    (made,) = tokenize([example], tokenizer, max_length=max_length, end_token_id=tokenizer.eos_token_id)
    assert 1 <= made.start < len(made.tokens) <= max_length
