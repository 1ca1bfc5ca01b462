"""Exports that other programs open with nothing of ours: a merged model, a stock PEFT folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model, tiny_spec, with_adapter
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from neuralforge.evaluation.opened import open_adapter
from neuralforge.export.merged import export_merged, merge_into
from neuralforge.export.stock_peft import export_peft
from neuralforge.models.load import load_base_model
from neuralforge.models.lora import attach_lora, read_state
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import AdapterError, StorageError
from neuralforge_common.folder import AdapterFolder, AdapterMetadata, read_adapter_folder, write_adapter_folder

IDS = torch.arange(1, 21).reshape(2, 10)
# It ends where plain transformers and we read the same tokens: not in the middle of one.
CODE = "class Parser:\n\tdef __init__("

# Run where our package cannot be imported.
WITHOUT_US = """
import sys

class NoNeuralForge:
    def find_spec(self, name, *_):
        if name.partition(".")[0].startswith("neuralforge"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoNeuralForge())
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[3], return_tensors="pt")
new = model.generate(**ids, max_new_tokens=24, do_sample=False)[0][ids["input_ids"].shape[1]:]
print(repr(tokenizer.decode(new, skip_special_tokens=True)))
"""


LOGITS_WITHOUT_US = (
    WITHOUT_US.partition("from transformers")[0]
    + """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.arange(1, 21).reshape(2, 10)
for folder in sys.argv[2].split(":"):
    model = PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        torch.save(model(input_ids=ids).logits, folder + ".logits")
    base = model.unload()
"""
)


@pytest.fixture(scope="module")
def on_nf_tiny(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolder:
    """An adapter of random numbers on nf-tiny, large enough to change what it writes."""
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    spec = AdapterSpec(
        base=base.name,
        base_fingerprint=base.fingerprint,
        rank=4,
        alpha=2.0,
        target_modules=("down_proj", "k_proj", "o_proj", "q_proj", "v_proj"),
    )
    path = tmp_path_factory.mktemp("adapter") / "mine.lora"
    state = read_state(with_adapter(base.model, spec))
    write_adapter_folder(path, spec=spec, state=state, metadata=AdapterMetadata(name="mine"))
    return read_adapter_folder(path)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_a_merged_model_has_the_adapters_logits_and_completions(on_nf_tiny: AdapterFolder, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    export_merged(on_nf_tiny, load_base_model("nf-tiny", dtype="float32", device="cpu"), merged)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in merged.iterdir()}
    weights = on_nf_tiny.path / "lora_weights.bin"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in (merged / "README.md").read_text()

    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    before = logits(base.model)
    from neuralforge.evaluation.opened import OpenedAdapter

    opened = OpenedAdapter(on_nf_tiny, base, max_length=128)
    wanted = logits(opened.peft)
    plain: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert torch.allclose(logits(plain), wanted, atol=1e-4)
    assert not torch.allclose(before, wanted, atol=0.1)

    ours = opened.complete(CODE, adapter=True, max_new_tokens=24)
    assert ours.text != opened.complete(CODE, adapter=False, max_new_tokens=24).text
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(merged), "float32", CODE],
        env=environment | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == f"{ours.text!r}\n", done.stderr


def test_a_merged_model_is_kept_in_the_bases_own_format_rounded_once(on_nf_tiny: AdapterFolder, tmp_path: Path) -> None:
    exact = load_base_model("nf-tiny", dtype="float32", device="cpu").model
    merge_into(exact, on_nf_tiny.spec, on_nf_tiny.state)
    base = load_base_model("nf-tiny", dtype="bfloat16", device="cpu")
    export_merged(on_nf_tiny, base, tmp_path / "merged")
    kept: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert kept.dtype == torch.bfloat16
    for (name, one), (_, other) in zip(exact.named_parameters(), kept.named_parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other), name


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "t5"])
def test_merging_is_what_peft_merges(family: str) -> None:
    model = tiny_model(family)
    spec = tiny_spec(family)
    state = read_state(with_adapter(model, spec))
    expected: Any = with_adapter(tiny_model(family), spec)
    wanted = expected.merge_and_unload().state_dict()
    fresh = tiny_model(family)
    merge_into(fresh, spec, state)
    found = fresh.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_matrices_that_stand_the_other_way_round_are_merged_that_way() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=6, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    spec = AdapterSpec(base="gpt2", rank=4, alpha=6.0, target_modules=("c_attn", "mlp.c_proj"))
    before = logits(model)
    wrapped = with_adapter(model, spec)
    state, wanted = read_state(wrapped), logits(wrapped)
    wrapped.unload()
    merge_into(model, spec, state)
    assert torch.allclose(logits(model), wanted, atol=1e-4)
    assert not torch.allclose(before, wanted, atol=1e-2)


def test_a_head_that_shares_the_embeddings_is_not_merged() -> None:
    spec = tiny_spec("llama", target_modules=("lm_head",))
    model = tiny_model("llama")
    state = read_state(attach_lora(model, spec, seed=0))
    fresh = tiny_model("llama")
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(AdapterError, match="lm_head shares its weights with another module"):
        merge_into(fresh, spec, state)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_the_wrong_base_is_refused(on_nf_tiny: AdapterFolder, tmp_path: Path) -> None:
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    other = type(base)(**{name: getattr(base, name) for name in base.__slots__} | {"fingerprint": "sha256:0"})
    with pytest.raises(AdapterError, match="this adapter was made for nf-tiny"):
        export_merged(on_nf_tiny, other, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_stock_peft_folder_has_pefts_files_and_the_same_logits(on_nf_tiny: AdapterFolder, tmp_path: Path) -> None:
    export_peft(on_nf_tiny, tmp_path / "plain", base="acme/base")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    again = read_adapter_folder(tmp_path / "plain")
    assert again.state == on_nf_tiny.state
    assert (again.spec.base, again.spec.base_revision, again.spec.base_fingerprint) == ("acme/base", None, "")
    base = load_base_model("nf-tiny", dtype="float32", device="cpu").model
    peft = PeftModel.from_pretrained(base, str(tmp_path / "plain"))
    opened = open_adapter(on_nf_tiny.path, device="cpu")
    opened.base.model.float()
    assert torch.allclose(logits(peft), logits(opened.peft), atol=1e-4)


def test_plain_peft_alone_computes_the_same_logits_from_our_folder_and_from_the_exported_one(
    on_nf_tiny: AdapterFolder, tmp_path: Path
) -> None:
    from neuralforge.evaluation.opened import OpenedAdapter

    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    before = logits(base.model)
    base.model.save_pretrained(tmp_path / "base")
    shutil.copytree(on_nf_tiny.path, tmp_path / "ours.lora")
    export_peft(on_nf_tiny, tmp_path / "plain", base="acme/base")
    wanted = logits(OpenedAdapter(on_nf_tiny, base, max_length=128).peft)
    assert not torch.allclose(before, wanted, atol=0.1)
    folders = [str(tmp_path / name) for name in ("ours.lora", "plain")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOGITS_WITHOUT_US, str(tmp_path / "base"), ":".join(folders)],
        env=environment | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert torch.allclose(torch.load(folder + ".logits", weights_only=True), wanted, atol=1e-4)


def test_what_peft_itself_has_saved_can_be_exported_too(tmp_path: Path) -> None:
    model = tiny_model("llama")
    config: Any = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    wanted = logits(wrapped)
    wrapped.save_pretrained(tmp_path / "stock")
    folder = read_adapter_folder(tmp_path / "stock")
    assert folder.notices
    fresh = tiny_model("llama")
    merge_into(fresh, folder.spec, folder.state)
    assert torch.allclose(logits(fresh), wanted, atol=1e-4)


@pytest.mark.parametrize("make", [Path.touch, lambda path: (path.mkdir(), (path / "theirs").touch())])
def test_nothing_of_anybodys_is_replaced(
    make: Callable[[Path], object], on_nf_tiny: AdapterFolder, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    with pytest.raises(StorageError, match="something is there already"):
        export_peft(on_nf_tiny, tmp_path / "x")
    (tmp_path / "empty").mkdir()
    export_peft(on_nf_tiny, tmp_path / "empty")
    assert read_adapter_folder(tmp_path / "empty").state == on_nf_tiny.state
