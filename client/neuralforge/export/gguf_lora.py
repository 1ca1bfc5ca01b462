"""A GGUF LoRA file as llama.cpp loads one (`--lora FILE`, on the GGUF of the same base).

The names are those of llama.cpp's tensors with `.lora_a` (rank, d_in) and `.lora_b` (d_out, rank), the metadata
`general.type` adapter, `adapter.type` lora and `adapter.lora.alpha`, as its own converter writes them and its loader
(src/llama-adapter.cpp) checks. llama.cpp interleaves the rows of Llama's queries and keys for its rotary embedding, so
the rows of their B are put in that order here; A, which meets the input, stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from neuralforge.export.place import check_free
from neuralforge.models.gguf import GgufFile
from neuralforge_common.adapter import AdapterSpec, AdapterState, FloatArray, module_of
from neuralforge_common.atomic import open_atomically
from neuralforge_common.errors import AdapterError, ModelError
from neuralforge_common.folder import AdapterFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """llama.cpp's name of the architecture, and whether it interleaves queries and keys."""

    architecture: str
    interleaved: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(architecture="llama", interleaved=True),
    "mistral": _Family(architecture="llama", interleaved=True),
    "qwen2": _Family(architecture="qwen2"),
    "qwen3": _Family(architecture="qwen3"),
    "starcoder2": _Family(architecture="starcoder2"),
}
"""transformers' model types whose matrices llama.cpp keeps one to one; fused or reordered ones are not here."""


def export_gguf(folder: AdapterFolder, config: PreTrainedConfig, path: Path) -> None:
    """Write the adapter for llama.cpp, in float32; `config` is that of its base.

    Raises:
        AdapterError: a module has no counterpart in llama.cpp.
        ModelError: the base's family is not written, or the package `gguf` is not installed.
        StorageError: something is at `path`, or it cannot be written.
    """
    check_free(path)
    gguf = _gguf()
    tensors = gguf_tensors(folder.spec, folder.state, config, gguf)
    # The writer wants a file of its own; what it has written is read back before it gets its place.
    with TemporaryDirectory() as place:
        written = Path(place) / "adapter.gguf"
        writer = gguf.GGUFWriter(written, _family(config).architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, folder.spec.alpha)
        writer.add_name(folder.metadata.name)
        writer.add_version(folder.metadata.version)
        if folder.metadata.license:
            writer.add_license(folder.metadata.license)
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        check_gguf_lora(written, tensors, folder.spec)
        with written.open("rb") as source, open_atomically(path) as target:
            shutil.copyfileobj(source, target)


def gguf_tensors(spec: AdapterSpec, state: AdapterState, config: PreTrainedConfig, gguf: Any) -> dict[str, FloatArray]:
    """llama.cpp's names -> matrices in llama.cpp's order of rows.

    Raises:
        AdapterError: a module has no counterpart in llama.cpp.
        ModelError: the base's family is not written.
    """
    family = _family(config)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors: dict[str, FloatArray] = {}
    for module in sorted({module_of(key)[0] for key in state}):
        name = names.get_name(module)
        if name is None or (name == "output" and config.tie_word_embeddings):
            raise AdapterError(
                f"{module} has no counterpart in llama.cpp's {family.architecture}",
                hint="--to merged, then llama.cpp's convert_hf_to_gguf.py",
            )
        a, b = (state[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        if family.interleaved and module.endswith(("q_proj", "k_proj")):
            queries = module.endswith("q_proj")
            b = interleave(b, config.num_attention_heads if queries else config.num_key_value_heads)
        tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"] = a, b
    return tensors


def interleave(rows: FloatArray, heads: int) -> FloatArray:
    """The two halves of each head's rows, which transformers rotates together, as neighbours."""
    if rows.shape[0] % (2 * heads):
        raise AdapterError(f"{rows.shape[0]} rows are not {heads} heads of pairs", hint="is this the adapter's base?")
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def check_gguf_lora(path: Path, tensors: Mapping[str, FloatArray], spec: AdapterSpec) -> None:
    """Read a written file back and compare: what llama.cpp's loader asks for, and every value.

    Raises:
        ModelError: it is not what was to be written.
    """
    with GgufFile(path) as file:
        wanted = {
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": float(np.float32(spec.alpha)),
        }
        for key, value in wanted.items():
            if file.metadata.get(key) != value:
                raise ModelError(f"{path}: {key} is {file.metadata.get(key)!r} in the written file, wanted {value!r}")
        if file.tensors.keys() != tensors.keys():
            raise ModelError(f"{path}: the written file holds other tensors than the adapter")
        for name, array in tensors.items():
            if not np.array_equal(file.read(name), array):
                raise ModelError(f"{path}: {name} was not written as it is")


def _family(config: PreTrainedConfig) -> _Family:
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"adapters of {config.model_type} are not written as GGUF; those of {', '.join(_FAMILIES)} are",
            hint="--to peft, then llama.cpp's convert_lora_to_gguf.py",
        )
    return family


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "GGUF files are written with the package gguf, which is not installed", hint="pip install 'gguf>=0.19'"
        ) from error
    return gguf
