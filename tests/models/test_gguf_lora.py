"""An adapter as a GGUF LoRA file: what llama.cpp would compute with it is what PEFT computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_spec, with_adapter
from transformers import PreTrainedModel

from neuralforge.export.gguf_lora import check_gguf_lora, export_gguf, gguf_tensors, interleave
from neuralforge.models.gguf import GgufFile
from neuralforge.models.load import load_base_model
from neuralforge.models.lora import read_state
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import AdapterError, ModelError, StorageError
from neuralforge_common.folder import AdapterFolder, AdapterMetadata, read_adapter_folder, write_adapter_folder

Write = Callable[..., Path]
Make = Callable[..., PreTrainedModel]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 41).reshape(2, 20)).logits
    return found


def trained(model: PreTrainedModel, place: Path, **changes: object) -> tuple[AdapterFolder, torch.Tensor]:
    """An adapter on the model, its folder, and the logits with it; the model is left as it was."""
    spec = tiny_spec("llama", **changes)
    wrapped = with_adapter(model, spec)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            # So large that attention looks elsewhere: small changes of queries and keys hardly show in logits.
            if ".lora_B." in name and ("q_proj" in name or "k_proj" in name):
                parameter.mul_(20)
    found = logits(wrapped)
    write_adapter_folder(
        place, spec=spec, state=read_state(wrapped), metadata=AdapterMetadata(name="mine", license="MIT")
    )
    wrapped.unload()
    return read_adapter_folder(place), found


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_bases_file_and_the_adapters_file_make_what_peft_makes(
    family: str, gguf_model: Make, write_gguf: Write, tmp_path: Path
) -> None:
    model = gguf_model(family)
    before = logits(model)
    folder, wanted = trained(model, tmp_path / "mine.lora")
    export_gguf(folder, model.config, tmp_path / "mine.gguf")
    base = write_gguf(tmp_path / "base.gguf", model)
    with GgufFile(tmp_path / "mine.gguf") as file:
        alpha = file.metadata["adapter.lora.alpha"]
        tensors = {name: file.read(name) for name in file.tensors}
    assert isinstance(alpha, float)
    assert len(tensors) == 2 * 2 * 7

    def served(tensors: dict[str, np.ndarray], name: str) -> torch.Tensor:
        # llama.cpp: W + alpha / rank · b·a, tensor by tensor, the rank being b's width.
        changed = {}
        with GgufFile(base) as weights:
            for key in {key.rpartition(".")[0] for key in tensors}:
                a, b = tensors[f"{key}.lora_a"], tensors[f"{key}.lora_b"]
                changed[key] = weights.read(key) + alpha / b.shape[1] * b @ a
        both = write_gguf(tmp_path / name, model, leave_out=tuple(changed), add=changed)
        return logits(load_base_model(both, dtype="float32", device="cpu").model)

    def alike(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))

    found = served(tensors, "both.gguf")
    # The sums are rounded to bfloat16 when a GGUF base is read.
    assert alike(found, wanted) > 0.9999
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))
    assert alike(before, wanted) < 0.97
    # The other family's names are the same, its order of rows is not.
    other = gguf_model("qwen2" if family == "llama" else "llama").config
    turned = gguf_tensors(folder.spec, folder.state, other, gguf)
    assert turned.keys() == tensors.keys()
    assert alike(served(turned, "turned.gguf"), wanted) < 0.999


def test_only_llamas_queries_and_keys_change_the_order_of_their_rows(gguf_model: Make, tmp_path: Path) -> None:
    for family in ("llama", "qwen2"):
        model = gguf_model(family)
        folder, _ = trained(model, tmp_path / f"{family}.lora")
        tensors = gguf_tensors(folder.spec, folder.state, model.config, gguf)
        moved = set()
        for key, array in folder.state.items():
            side = "a" if ".lora_A." in key else "b"
            name = key.split(".")[-3]
            block = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}.get(
                name, "ffn_" + name.removesuffix("_proj")
            )
            layer = key.split(".")[4]
            if not np.array_equal(tensors[f"blk.{layer}.{block}.weight.lora_{side}"], array):
                moved.add((name, side))
        assert moved == ({("q_proj", "b"), ("k_proj", "b")} if family == "llama" else set())


def test_rows_of_a_head_stand_in_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    with pytest.raises(AdapterError, match="8 rows are not 3 heads of pairs"):
        interleave(rows, 3)


def test_the_file_says_what_llama_cpps_loader_asks_for(gguf_model: Make, tmp_path: Path) -> None:
    model = gguf_model("llama")
    folder, _ = trained(model, tmp_path / "mine.lora", alpha=6.5)
    export_gguf(folder, model.config, tmp_path / "mine.gguf")
    # By the package of llama.cpp's authors, not by our reader.
    reader = gguf.GGUFReader(tmp_path / "mine.gguf")
    facts = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF.")}
    assert facts == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "mine",
        "general.version": "1.0.0",
        "general.license": "MIT",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.5,
    }
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    # ggml names the fastest dimension first: a is (d_in, rank), b is (rank, d_out).
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (96, 4)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (4, 64)
    assert len(shapes) == 2 * 2 * 7


def test_a_file_that_is_not_what_was_to_be_written_is_noticed(gguf_model: Make, tmp_path: Path) -> None:
    model = gguf_model("llama")
    folder, _ = trained(model, tmp_path / "mine.lora")
    export_gguf(folder, model.config, tmp_path / "mine.gguf")
    tensors = gguf_tensors(folder.spec, folder.state, model.config, gguf)
    data = bytearray((tmp_path / "mine.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "mine.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="was not written as it is"):
        check_gguf_lora(tmp_path / "mine.gguf", tensors, folder.spec)


def test_what_llama_cpp_has_no_place_for_is_refused(gguf_model: Make, tmp_path: Path) -> None:
    model = gguf_model("llama")
    folder, _ = trained(model, tmp_path / "mine.lora")
    with pytest.raises(ModelError, match="adapters of gpt_neox are not written as GGUF; those of llama, mistral"):
        export_gguf(folder, tiny_model("gpt_neox").config, tmp_path / "x.gguf")
    head = {f"base_model.model.lm_head.{key.partition('q_proj.')[2]}": array for key, array in folder.state.items()
            if "layers.0.self_attn.q_proj" in key}  # fmt: skip
    spec = AdapterSpec(base="x", rank=4, alpha=4.0, target_modules=("lm_head",))
    with pytest.raises(AdapterError, match=r"lm_head has no counterpart in llama\.cpp's llama"):
        gguf_tensors(spec, type(folder.state)(head), model.config, gguf)
    (tmp_path / "taken.gguf").touch()
    with pytest.raises(StorageError, match="something is there already"):
        export_gguf(folder, model.config, tmp_path / "taken.gguf")


def test_without_the_package_the_way_out_is_named(
    gguf_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_model("llama")
    folder, _ = trained(model, tmp_path / "mine.lora")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"gguf, which is not installed\n  hint: pip install 'gguf>=0\.19'"):
        export_gguf(folder, model.config, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
