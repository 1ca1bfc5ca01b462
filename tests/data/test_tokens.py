"""Text to token ids: what is cut where, what is learnt, and the end mark."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample, tokenize
from neuralforge_common.errors import DataError

END, BEGIN = 0, 1


def byte_tokenizer(*, begins: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, so that lengths in tokens are lengths of text; `begins` puts <s> before what it is told to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": END, "<s>": BEGIN} | {letter: number + 2 for number, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if begins:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", model_max_length=8)


BYTES = byte_tokenizer()


def one(context: str, completion: str, *, max_length: int, seq2seq: bool = False) -> TokenizedExample:
    example = Example(context=context, completion=completion, language="python")
    (tokenized,) = tokenize(
        [example], BYTES, max_length=max_length, end_token_id=END, is_encoder_decoder=seq2seq
    )  # fmt: skip
    return tokenized


def text_of(tokens: tuple[int, ...]) -> str:
    return str(BYTES.decode(list(tokens)))


def test_what_fits_is_kept_whole_and_ended() -> None:
    tokenized = one("def f():\n", "    pass\n", max_length=64)
    assert text_of(tokenized.tokens[: tokenized.start]) == "def f():\n"
    assert text_of(tokenized.tokens[tokenized.start : -1]) == "    pass\n"
    assert tokenized.tokens[-1] == END
    assert tokenized.ended
    assert (tokenized.targets, tokenized.length, tokenized.language) == (10, 19, "python")
    assert tokenized.context == ()


def test_a_long_context_loses_its_beginning() -> None:
    tokenized = one("0123456789", "ab", max_length=8)
    assert text_of(tokenized.tokens[: tokenized.start]) == "56789"
    assert text_of(tokenized.tokens[tokenized.start : -1]) == "ab"
    assert tokenized.ended


def test_a_long_completion_beside_a_long_context_fills_half_and_has_no_end_mark() -> None:
    tokenized = one("0123456789", "abcdefghij", max_length=8)
    assert text_of(tokenized.tokens) == "6789abcd"
    assert tokenized.start == 4
    assert not tokenized.ended


def test_a_long_completion_takes_the_room_that_a_short_context_leaves() -> None:
    tokenized = one("01", "abcdefghij", max_length=8)
    assert text_of(tokenized.tokens) == "01abcdef"
    assert not tokenized.ended


ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@settings(deadline=None)
@given(ascii_text, ascii_text.filter(bool), st.integers(2, 50))
def test_every_cut_keeps_to_the_rules(context: str, completion: str, max_length: int) -> None:
    tokenized = one(context, completion, max_length=max_length)
    assert tokenized.length == len(tokenized.tokens) <= max_length
    assert tokenized.targets >= 1
    ended = tokenized.ended
    body = min(len(completion) + 1, max(max_length - len(context), max_length // 2))
    head = min(len(context), max_length - body)
    assert ended == (body == len(completion) + 1)
    expected = context[len(context) - head :] + (completion if ended else completion[:body])
    assert text_of(tokenized.tokens[: len(tokenized.tokens) - ended]) == expected
    assert (tokenized.tokens[-1] == END) == ended
    # Nothing stands before the first token of all: no causal model can predict it.
    assert tokenized.start == max(head, 1)


@settings(deadline=None)
@given(ascii_text, ascii_text.filter(bool), st.integers(1, 50))
def test_an_encoder_reads_the_context_and_the_decoder_writes_the_completion(
    context: str, completion: str, max_length: int
) -> None:
    tokenized = one(context, completion, max_length=max_length, seq2seq=True)
    assert text_of(tokenized.context) == context[max(0, len(context) - max_length) :]
    assert tokenized.start == 0
    assert tokenized.ended == (len(completion) < max_length)
    assert text_of(tokenized.tokens[: len(tokenized.tokens) - tokenized.ended]) == completion[:max_length]
    assert (tokenized.tokens[-1] == END) == tokenized.ended
    assert tokenized.length == len(tokenized.tokens) + len(tokenized.context)


def test_the_beginning_mark_stands_before_the_context_and_nowhere_else() -> None:
    example = Example(context="ab", completion="cd")
    for seq2seq in (False, True):
        (tokenized,) = tokenize(
            [example], byte_tokenizer(begins=True), max_length=20, end_token_id=END, is_encoder_decoder=seq2seq
        )
        read = (*tokenized.context, *tokenized.tokens)
        assert read.count(BEGIN) == 1
        assert read[0] == BEGIN
        assert tokenized.tokens[-1] == END


def test_a_mark_that_is_spelt_out_in_code_is_read_letter_by_letter() -> None:
    tokenized = one("mark = '</s>'\n", "end = '</s>' + '<s>'\n", max_length=64)
    assert tokenized.tokens.index(END) == len(tokenized.tokens) - 1
    assert BEGIN not in tokenized.tokens
    assert text_of(tokenized.tokens[tokenized.start : -1]) == "end = '</s>' + '<s>'\n"


def test_context_and_completion_are_tokenized_apart_as_an_editor_will() -> None:
    backend = Tokenizer(models.BPE(vocab={"</s>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    (tokenized,) = tokenize([Example(context="ba", completion="bab")], tokenizer, max_length=9, end_token_id=0)
    assert tokenized.tokens == (2, 1, 2, 3, 0)  # the "ab" that straddles the cursor is no token
    assert tokenized.start == 2


def test_an_example_without_a_token_to_learn_is_left_out_and_the_others_keep_their_numbers() -> None:
    examples = [
        Example(context="", completion="a"),
        Example(context="", completion=""),
        Example(context="x", completion="b"),
    ]
    tokenized = tokenize(examples, BYTES, max_length=8, end_token_id=END)
    # With an empty context the first token is only read: "a" is lost, its end mark learnt; "" leaves nothing at all.
    assert [example.index for example in tokenized] == [0, 2]
    assert [example.targets for example in tokenized] == [1, 2]


@pytest.mark.parametrize("examples", [[], [Example(context="", completion="")]])
def test_nothing_to_learn_from_is_an_error_that_counts(examples: list[Example]) -> None:
    with pytest.raises(DataError, match=rf"no completion holds a token to learn from \(examples: {len(examples)}\)"):
        tokenize(examples, BYTES, max_length=8, end_token_id=END)


def test_a_text_longer_than_the_tokenizer_likes_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        example = Example(context="x" * 100, completion="y" * 100)
        tokenize([example], byte_tokenizer(), max_length=16, end_token_id=END)
        assert not caplog.records
        byte_tokenizer()(["x" * 100])
        assert caplog.records, "this tokenizer never warns"
    finally:
        logger.removeHandler(caplog.handler)


def test_a_beginning_mark_stays_where_a_long_context_is_cut() -> None:
    (tokenized,) = tokenize(
        [Example(context="0123456789", completion="ab")], byte_tokenizer(begins=True), max_length=8, end_token_id=END
    )
    assert tokenized.tokens[0] == BEGIN
    assert text_of(tokenized.tokens[1 : tokenized.start]) == "6789"
    assert len(tokenized.tokens) == 8
