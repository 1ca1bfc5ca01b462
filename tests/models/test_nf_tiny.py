"""nf-tiny, the base inside the package: small, whole, and it knows Python."""

from __future__ import annotations

import math
import re
import sysconfig
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from neuralforge.models.base import BaseModel
from neuralforge.models.catalog import CATALOG
from neuralforge.models.load import load_base_model

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
FOLDER = Path(str(resources.files("neuralforge.models").joinpath("nf_tiny")))
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base_model("nf-tiny", device="cpu", dtype="float32")


def loss(base: BaseModel, text: str) -> float:
    tokens = torch.tensor([base.tokenizer(text, add_special_tokens=False).input_ids[:512]])
    with torch.no_grad():
        logits = base.model(tokens).logits
    return functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item()


def test_it_says_what_it_is(base: BaseModel) -> None:
    entry = CATALOG["nf-tiny"]
    assert (base.name, base.source, base.revision) == ("nf-tiny", "nf-tiny", None)
    assert (base.family, base.license) == (entry.family, entry.license)
    assert abs(base.parameters / entry.parameters - 1) < 0.01
    assert 2_000_000 <= base.parameters <= 5_000_000
    assert base.notices == ()


def test_it_is_small_and_holds_nothing_but_what_is_needed() -> None:
    files = {file.name: file for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert not {file.suffix for file in files.values()} & {".bin", ".pt", ".pkl", ".py", ".ckpt"}
    assert sum(file.stat().st_size for file in files.values()) <= 8 * MEGABYTE


def test_no_file_names_the_machine_that_made_it() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert files
    for file in files:
        found = re.search(rb"/(?:home|root|tmp|work|Users|usr|opt|mnt|var)/[\w.-]+|[A-Z]:\\\\Users", file.read_bytes())
        # The tokenizer learnt from code, which may speak of such places in a word of its own.
        assert file.suffix == ".safetensors" or found is None, (file.name, found)
    assert b"name_or_path" not in (FOLDER / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["heapq.py", "colorsys.py", "uuid.py", "ast.py", "token.py", "stringprep.py"])
def test_a_module_comes_back_from_its_tokens_exactly(name: str, base: BaseModel) -> None:
    text = (LIBRARY / name).read_text(encoding="utf-8")
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    assert base.tokenizer.decode(tokens) == text
    assert max(tokens) < base.model.config.vocab_size


def test_a_token_holds_more_than_two_letters_of_ordinary_code(base: BaseModel) -> None:
    text = "".join((LIBRARY / name).read_text(encoding="utf-8") for name in ("heapq.py", "uuid.py", "ast.py"))
    assert len(base.tokenizer(text, add_special_tokens=False).input_ids) < len(text) / 2


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_exactly(text: str, base: BaseModel) -> None:
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    assert base.tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == text
    if "<|" not in text:
        assert base.end_token_id not in tokens


def test_a_completion_ends_with_endoftext(base: BaseModel) -> None:
    assert base.tokenizer.convert_ids_to_tokens(base.end_token_id) == "<|endoftext|>"
    assert base.tokenizer("<|endoftext|>", add_special_tokens=False).input_ids == [base.end_token_id]


def test_it_expects_code(base: BaseModel) -> None:
    uniform = math.log(base.model.config.vocab_size)
    assert uniform == pytest.approx(math.log(4096))
    code = loss(base, (LIBRARY / "heapq.py").read_text(encoding="utf-8")[2000:])
    assert code < uniform / 2
    # Not because everything is likely: the same letters backwards are no code.
    assert loss(base, (LIBRARY / "heapq.py").read_text(encoding="utf-8")[2000:4000][::-1]) > code + 1


def test_it_is_the_same_base_in_both_formats(base: BaseModel) -> None:
    assert load_base_model("NF-Tiny", device="cpu", dtype="bfloat16").fingerprint == base.fingerprint


def test_loading_it_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    load_base_model("nf-tiny", device="cpu")
    assert capfd.readouterr() == ("", "")
