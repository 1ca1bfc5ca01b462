"""The .lora folder: what is written comes back, in one piece, and stays readable for plain PEFT."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from neuralforge_common.adapter import AdapterSpec, AdapterState, FloatArray
from neuralforge_common.codec import encode_tensors
from neuralforge_common.errors import AdapterError, StorageError
from neuralforge_common.folder import (
    AdapterMetadata,
    Evaluation,
    Scores,
    is_adapter_folder,
    read_adapter_folder,
    write_adapter_folder,
)

GUIDES_FILES = {"metadata.json", "lora_weights.bin", "README.md"}
PEFTS_FILES = {"adapter_config.json", "adapter_model.safetensors"}

METADATA = AdapterMetadata(
    name="my-adapter",
    description="Ours",
    created="2026-01-31T09:30:00Z",
    training_samples=240,
    evaluation=Evaluation(base=Scores(perplexity=9.17, accuracy=0.578), adapter=Scores(perplexity=5.72)),
)


@pytest.fixture
def folder(tmp_path: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]) -> Path:
    path = tmp_path / "my-adapter.lora"
    write_adapter_folder(path, spec=make_spec(), state=make_state(), metadata=METADATA)
    return path


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_the_folder_holds_the_guides_files_and_pefts(folder: Path) -> None:
    assert names_in(folder) == GUIDES_FILES | PEFTS_FILES
    assert is_adapter_folder(folder)
    assert names_in(folder.parent) == {folder.name}


def test_the_two_names_of_the_weights_are_one_file(folder: Path) -> None:
    assert (folder / "lora_weights.bin").samefile(folder / "adapter_model.safetensors")


def test_the_weights_are_safetensors_that_the_stock_library_reads(
    folder: Path, make_state: Callable[..., AdapterState]
) -> None:
    assert AdapterState(load_file(folder / "lora_weights.bin")) == make_state()


def test_a_folder_reads_back_as_it_was_written(
    folder: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    read = read_adapter_folder(folder)
    assert read.spec == make_spec()
    assert read.state == make_state()
    assert read.notices == ()
    assert read.metadata.description == "Ours"
    assert read.metadata.evaluation == METADATA.evaluation


def test_writing_returns_the_metadata_that_reading_finds(
    tmp_path: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    written = write_adapter_folder(tmp_path / "x.lora", spec=make_spec(), state=make_state(), metadata=METADATA)
    assert written == read_adapter_folder(tmp_path / "x.lora").metadata
    assert (written.rank, written.alpha, written.base_fingerprint) == (4, 8.0, "f" * 64)
    size = (tmp_path / "x.lora" / "lora_weights.bin").stat().st_size
    assert written.size_mb == round(size / 1e6, 3)
    assert (
        written.digests["lora_weights.bin"]
        == hashlib.sha256((tmp_path / "x.lora/lora_weights.bin").read_bytes()).hexdigest()
    )


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 6),
    alpha=st.floats(0.125, 64, width=32),
    dropout=st.floats(0, 0.9),
    task=st.sampled_from(["causal", "seq2seq"]),
    layers=st.none() | st.sets(st.integers(0, 30), min_size=1, max_size=3),
    targets=st.sets(st.sampled_from(["q", "v_proj", "mlp.up", "wi_0"]), min_size=1),
    revision=st.none() | st.just("main"),
    fingerprint=st.sampled_from(["", "a" * 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_reading_undoes_writing_for_every_adapter(
    rank: int,
    alpha: float,
    dropout: float,
    task: str,
    layers: set[int] | None,
    targets: set[str],
    revision: str | None,
    fingerprint: str,
    seed: int,
) -> None:
    spec = AdapterSpec(
        base="acme/base",
        base_revision=revision,
        base_fingerprint=fingerprint,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target_modules=tuple(targets),
        task=task,  # type: ignore[arg-type]
        layers=None if layers is None else tuple(layers),
    )
    rng = np.random.default_rng(seed)
    extremes = np.array([0.0, -0.0, 1e-45, -3.4e38, 3.4e38, 1.0, 1 / 3], np.float32)
    arrays = {}
    for layer in layers or {0, 1}:
        for target in targets:
            for side, shape in (("A", (rank, 5)), ("B", (3, rank))):
                arrays[f"base_model.model.model.layers.{layer}.{target}.lora_{side}.weight"] = rng.choice(
                    extremes, shape
                )
    state = AdapterState(arrays)
    with tempfile.TemporaryDirectory() as place:
        write_adapter_folder(Path(place) / "x.lora", spec=spec, state=state, metadata=AdapterMetadata(name="x"))
        read = read_adapter_folder(Path(place) / "x.lora")
    assert (read.spec, read.state) == (spec, state)


def test_equal_adapters_are_equal_folders_byte_by_byte(
    tmp_path: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    for name in ("a", "b"):
        shuffled = AdapterState(dict(sorted(make_state().items(), reverse=name == "b")))
        write_adapter_folder(tmp_path / name, spec=make_spec(), state=shuffled, metadata=METADATA)
    for file in GUIDES_FILES | PEFTS_FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_tokenizer_travels_along(
    tmp_path: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    path = tmp_path / "x.lora"
    write_adapter_folder(
        path, spec=make_spec(), state=make_state(), metadata=METADATA, tokenizer_json=b'{"version": "1.0"}'
    )
    assert read_adapter_folder(path).tokenizer_path == path / "tokenizer.json"
    (path / "tokenizer.json").write_text('{"version": "2.0"}')
    with pytest.raises(AdapterError, match=r"tokenizer\.json was changed"):
        read_adapter_folder(path)


def test_an_older_adapter_is_replaced_whole(
    folder: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    (folder / "tokenizer.json").write_text("{}")
    write_adapter_folder(folder, spec=make_spec(rank=2), state=make_state(rank=2), metadata=METADATA)
    assert read_adapter_folder(folder).spec.rank == 2
    assert names_in(folder) == GUIDES_FILES | PEFTS_FILES


@pytest.mark.parametrize("other", ["file", "project", "adapter with more in it", "link"])
def test_what_is_not_just_an_adapter_is_never_replaced(
    folder: Path, other: str, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    path = folder.parent / "mine"
    match other:
        case "file":
            path.write_text("mine")
        case "project":
            path.mkdir()
            (path / "main.py").touch()
        case "adapter with more in it":
            shutil.copytree(folder, path)
            (path / "checkpoint-100").mkdir()
        case "link":
            path.symlink_to(folder)
    before = path.lstat().st_ino
    with pytest.raises(StorageError):
        write_adapter_folder(path, spec=make_spec(), state=make_state(), metadata=METADATA)
    assert path.lstat().st_ino == before


def test_an_empty_folder_may_become_an_adapter(
    tmp_path: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    (tmp_path / "x.lora").mkdir()
    write_adapter_folder(tmp_path / "x.lora", spec=make_spec(), state=make_state(), metadata=METADATA)
    assert read_adapter_folder(tmp_path / "x.lora").state == make_state()


def test_weights_that_are_not_finite_are_never_written(
    tmp_path: Path, make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    arrays = {name: array.copy() for name, array in make_state().items()}
    next(iter(arrays.values()))[0, 0] = np.nan
    with pytest.raises(AdapterError, match="not finite"):
        write_adapter_folder(tmp_path / "x.lora", spec=make_spec(), state=AdapterState(arrays), metadata=METADATA)
    assert names_in(tmp_path) == set()


def test_the_readme_may_be_edited_and_the_description_cleaned(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine")
    document = json.loads((folder / "metadata.json").read_text())
    document |= {"description": "Better words", "author": "Me"}
    (folder / "metadata.json").write_text(json.dumps(document))
    assert read_adapter_folder(folder).metadata.author == "Me"


def test_a_copy_without_hard_links_reads_the_same(folder: Path) -> None:
    copy = folder.parent / "copy.lora"
    shutil.copytree(folder, copy)
    assert not (copy / "lora_weights.bin").samefile(copy / "adapter_model.safetensors")
    assert read_adapter_folder(copy).state == read_adapter_folder(folder).state


def test_where_links_fail_the_two_names_of_the_weights_are_copies(
    tmp_path: Path,
    make_spec: Callable[..., AdapterSpec],
    make_state: Callable[..., AdapterState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_here(*_: object, **__: object) -> None:  # as on exFAT, and on many mounted shares
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none_here)
    path = tmp_path / "x.lora"
    write_adapter_folder(path, spec=make_spec(), state=make_state(), metadata=METADATA)
    one, other = path / "lora_weights.bin", path / "adapter_model.safetensors"
    assert not one.samefile(other)
    assert one.read_bytes() == other.read_bytes()
    assert read_adapter_folder(path).state == make_state()


@pytest.mark.parametrize("gone", ["lora_weights.bin", "adapter_model.safetensors", "README.md"])
def test_one_name_of_the_weights_is_enough_and_the_readme_is_not_needed(folder: Path, gone: str) -> None:
    expected = read_adapter_folder(folder).state
    (folder / gone).unlink()
    assert read_adapter_folder(folder).state == expected


def test_foreign_files_are_left_alone(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80\x04never opened")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    assert read_adapter_folder(folder).notices == ()


def test_a_write_that_died_between_its_renames_is_brought_back_by_reading(folder: Path) -> None:
    folder.rename(folder.with_name(f".{folder.name}.0123456789abcdef.old"))
    assert read_adapter_folder(folder).spec.rank == 4


# A folder as PEFT 0.21.2 saves it.
STOCK_CONFIG = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "acme/tiny-llama", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": ["v_proj", "q_proj", "c_attn"], "target_parameters": None,
    "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
    "use_qalora": False, "use_rslora": False, "velora_config": None,
}  # fmt: skip


def stock_folder(path: Path, weights: bytes, **changes: object) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(STOCK_CONFIG | changes))
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def test_a_stock_peft_folder_opens_with_a_notice_that_its_base_is_unknown(
    tmp_path: Path, make_state: Callable[..., AdapterState]
) -> None:
    read = read_adapter_folder(stock_folder(tmp_path / "stock.lora", encode_tensors(make_state())))
    assert read.state == make_state()
    assert read.spec.base_fingerprint == ""
    assert read.metadata.name == "stock"
    # PEFT was told c_attn as well, which this base does not have.
    assert read.spec.target_modules == ("q_proj", "v_proj")
    assert len(read.notices) == 1
    assert "cannot be checked" in read.notices[0]


def half_precision(state: AdapterState, kind: str) -> tuple[bytes, dict[str, FloatArray]]:
    header: dict[str, object] = {}
    data, expected = b"", {}
    for name, array in state.items():
        if kind == "F16":
            half = array.astype(np.float16)
            expected[name] = half.astype(np.float32)
            raw = half.tobytes()
        else:
            upper = (array.view(np.uint32) >> 16).astype(np.uint16)
            expected[name] = (upper.astype(np.uint32) << 16).view(np.float32)
            raw = upper.tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data, expected


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_weights_are_read_exactly(
    tmp_path: Path, make_state: Callable[..., AdapterState], kind: str
) -> None:
    weights, expected = half_precision(make_state(), kind)
    assert read_adapter_folder(stock_folder(tmp_path / "stock", weights)).state == AdapterState(expected)


LOAD_WITH_PLAIN_PEFT = """
import sys, importlib.abc, warnings

class NoNeuralForge(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("neuralforge"):
            raise ImportError(name)

sys.meta_path.insert(0, NoNeuralForge())
warnings.simplefilter("error", UserWarning)  # PEFT warns of keys it misses or does not know

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=2)
base = LlamaForCausalLM(config).eval()
tokens = torch.arange(12).reshape(1, 12)
with torch.no_grad():
    before = base(tokens).logits
    by_hand = LlamaForCausalLM(config).eval()
    by_hand.load_state_dict(base.state_dict())
    weights, scaling = load_file(sys.argv[1] + "/adapter_model.safetensors"), float(sys.argv[2])
    for name, a in weights.items():
        if ".lora_A." in name:
            module = by_hand.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += scaling * weights[name.replace("lora_A", "lora_B")] @ a
    adapted = PeftModel.from_pretrained(base, sys.argv[1])
    trained = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    error = (adapted(tokens).logits - by_hand(tokens).logits).abs().max().item()
    moved = (adapted(tokens).logits - before).abs().max().item()
print(len(trained) == len(weights), error < 1e-4, moved > 1e-1, [error, moved])
"""


@pytest.mark.parametrize("layers", [None, (1,)], ids=["all layers", "one layer"])
def test_plain_peft_loads_the_folder_and_computes_w_plus_scaling_b_a(
    tmp_path: Path,
    make_spec: Callable[..., AdapterSpec],
    make_state: Callable[..., AdapterState],
    layers: tuple[int] | None,
) -> None:
    modules = [f"model.layers.{i}.self_attn.{name}" for i in layers or (0, 1) for name in ("q_proj", "v_proj")]
    spec, state = make_spec(alpha=6, layers=layers), make_state(d_in=16, d_out=16, modules=tuple(modules))
    write_adapter_folder(tmp_path / "x.lora", spec=spec, state=state, metadata=METADATA)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_PLAIN_PEFT, str(tmp_path / "x.lora"), str(spec.scaling)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert re.match("True True True", result.stdout), result.stdout + result.stderr
