"""A base's tokenizer does what its tokenizer.json says, and every text can end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neuralforge.models.base import end_token_id
from neuralforge.models.load import load_base_model
from neuralforge.models.tokenizer import load_tokenizer, restore_stages
from neuralforge_common.errors import ModelError

CODE = "def f(x10):\n    return x10 + 2048\n"

NORMALIZERS = (None, normalizers.NFC(), normalizers.Lowercase())
PRE_TOKENIZERS = (
    None,
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
)
DECODERS = (None, decoders.ByteLevel(), decoders.BPEDecoder())
STAGES = st.tuples(st.sampled_from(NORMALIZERS), st.sampled_from(PRE_TOKENIZERS), st.sampled_from(DECODERS))


def backend(stages: tuple[object, object, object], model: models.Model | None = None) -> Tokenizer:
    made = Tokenizer(model or models.BPE({"a": 0, "b": 1, "1": 2, "ab": 3}, [("a", "b")]))
    made.normalizer, made.pre_tokenizer, made.decoder = stages  # type: ignore[assignment]
    return made


@given(found=STAGES, wanted=STAGES)
def test_after_restoring_every_stage_is_the_published_one(
    found: tuple[object, object, object], wanted: tuple[object, object, object]
) -> None:
    ours, published = backend(found), json.loads(backend(wanted).to_str())
    restored = restore_stages(ours, published)
    names = ("normalizer", "pre-tokenizer", "decoder")
    assert json.loads(ours.to_str()) == published
    assert restored == tuple(
        name for name, old, new in zip(names, found, wanted, strict=True) if repr(old) != repr(new)
    )
    assert restore_stages(ours, published) == ()


def test_only_byte_pairs_are_touched() -> None:
    words = models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    ours = backend((None, None, None), words)
    before = ours.to_str()
    assert restore_stages(ours, json.loads(backend((normalizers.NFC(), None, None), words).to_str())) == ()
    assert ours.to_str() == before


@pytest.fixture
def published(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved("llama"), tmp_path / "tiny"))


def named(folder: Path, tokenizer_class: str) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": tokenizer_class}
    del config["backend"]
    file.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    "tokenizer_class", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"]
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "starcoder2"])
def test_the_ids_are_the_files_whatever_class_it_names(
    tokenizer_class: str, family: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(family), tmp_path / "tiny"))
    named(folder, tokenizer_class)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    base = load_base_model(folder, device="cpu")
    found = base.tokenizer(CODE, add_special_tokens=False).input_ids
    assert found == file.encode(CODE, add_special_tokens=False).ids
    assert base.tokenizer.decode(found) == CODE


def test_a_stage_that_transformers_drops_is_put_back_and_a_notice_says_so(published: Path) -> None:
    named(published, "GPT2Tokenizer")
    tokenizer, notices = load_tokenizer(str(published), revision=None, trust_remote_code=False)
    assert [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x10")] == ["x", "1", "0"]
    assert notices == ("tokenizer: pre-tokenizer taken from tokenizer.json, transformers had dropped it",)


def test_codet5s_files_which_have_no_tokenizer_json_are_read(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """vocab.json and merges.txt of a RobertaTokenizer beside a T5, as in Salesforce's repositories."""
    folder = Path(shutil.copytree(saved("t5"), tmp_path / "codet5"))
    letters = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    words = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *(word for word in letters if word[:2] != "<|"), "re"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n", encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>", **special}), encoding="utf-8"
    )
    base = load_base_model(folder, device="cpu")
    found = base.tokenizer(CODE, add_special_tokens=False).input_ids
    assert base.tokenizer.decode(found) == CODE
    assert base.tokenizer.tokenize("return") == ["re", "t", "u", "r", "n"]
    assert base.end_token_id == words.index("</s>")
    assert base.tokenizer.pad_token_id == 0
    assert base.is_encoder_decoder


def test_a_tokenizer_without_padding_pads_with_an_id_that_exists(published: Path) -> None:
    tokenizer, _ = load_tokenizer(str(published), revision=None, trust_remote_code=False)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert len(tokenizer) == 97, "a new token would need a new row of the embeddings"


def with_tokens(*special: str, **roles: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(["a", *special])}, [], unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def test_endoftext_ends_a_text_even_where_the_chats_turn_ends_otherwise() -> None:
    tokenizer = with_tokens("<|im_end|>", "<|endoftext|>", eos_token="<|im_end|>", unk_token="a")
    assert end_token_id(tokenizer) == 2


def test_else_the_eos_token_ends_it_also_where_unknown_tokens_have_an_id() -> None:
    assert end_token_id(with_tokens("</s>", eos_token="</s>", unk_token="a")) == 1
    assert end_token_id(with_tokens("</s>", eos_token="</s>")) == 1


def test_a_tokenizer_with_neither_is_refused() -> None:
    with pytest.raises(ModelError, match="no token that ends a text"):
        end_token_id(with_tokens(unk_token="a"))
