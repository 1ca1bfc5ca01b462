"""Adapters are swapped on one base: each writes as if it were alone there, and a refused one changes nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model

from neuralforge.evaluation.opened import OpenedAdapter
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.serving.request import CompletionRequest, Finish
from neuralforge.serving.served import MOST_ADAPTERS, ServedModel, open_served
from neuralforge_common.errors import AdapterError, ModelError
from neuralforge_common.folder import read_adapter_folder, write_adapter_folder

Complete = Callable[..., str]


def test_each_adapter_writes_what_it_writes_alone_and_so_does_the_base(
    served: ServedModel, adapter: Path, variants: dict[str, Path], code: str, complete: Complete
) -> None:
    alone = {}
    for name, path in {"team": adapter, **variants}.items():
        base = load_base_model("nf-tiny", device="cpu", dtype="float32")
        opened = OpenedAdapter(read_adapter_folder(path), base, max_length=512)
        alone[name] = opened.complete(code, adapter=True, max_new_tokens=24).text
        alone["nf-tiny"] = opened.complete(code, adapter=False, max_new_tokens=24).text
    assert alone["team"] == alone["wide"] != alone["loud"]
    assert alone["team"] != alone["nf-tiny"]
    for path in variants.values():
        served.load(path)
    # Same shape, other shape, none, and back: every way from one to another.
    for name in ("team", "loud", "wide", "nf-tiny", "wide", "team", "nf-tiny", "team", "loud"):
        assert complete(served, code, model=name, max_tokens=24) == alone[name], name


def test_the_last_one_loaded_is_current_and_nothing_read_before_is_reused(
    served: ServedModel, variants: dict[str, Path], code: str
) -> None:
    request = CompletionRequest(prompt=code, max_tokens=4)
    list(served.write(request, lambda: False))
    finish = list(served.write(request, lambda: False))[-1]
    assert isinstance(finish, Finish)
    assert finish.reused_tokens > 0
    assert served.load(variants["loud"]) == "loud" == served.current
    finish = list(served.write(request, lambda: False))[-1]
    assert isinstance(finish, Finish)
    assert finish.reused_tokens == 0
    assert [name.id for name in served.names] == ["neuralforge", "team", "loud", "nf-tiny"]
    assert served.names[0].adapter == "loud"


def test_a_new_version_of_an_adapter_takes_the_place_of_the_old_one(
    served: ServedModel, adapter: Path, variants: dict[str, Path], code: str, complete: Complete, tmp_path: Path
) -> None:
    before = complete(served, code, model="team")
    folder = read_adapter_folder(variants["loud"])
    write_adapter_folder(
        tmp_path / "new.lora",
        spec=folder.spec,
        state=folder.state,
        metadata=dataclasses.replace(folder.metadata, name="team", version="2.0.0"),
    )
    assert served.load(tmp_path / "new.lora") == "team"
    assert [name.id for name in served.names] == ["neuralforge", "team", "nf-tiny"]
    assert complete(served, code, model="team") != before


def test_an_adapter_for_another_base_is_refused_and_the_one_before_stays(
    served: ServedModel, adapter: Path, code: str, complete: Complete, tmp_path: Path
) -> None:
    before = complete(served, code)
    folder = read_adapter_folder(adapter)
    foreign = dataclasses.replace(folder.spec, base_fingerprint="sha256:" + 64 * "0")
    write_adapter_folder(tmp_path / "f.lora", spec=foreign, state=folder.state, metadata=folder.metadata)
    with pytest.raises(AdapterError, match="was made for nf-tiny"):
        served.load(tmp_path / "f.lora")
    assert served.current == "team"
    assert complete(served, code) == before


def test_a_stock_adapter_whose_matrices_do_not_fit_is_refused_and_the_one_before_stays(
    served: ServedModel, adapter: Path, code: str, complete: Complete, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    before = complete(served, code)
    # Plain PEFT records no fingerprint: only names and shapes can tell.
    get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    get_peft_model(tiny_model("gpt_neox"), LoraConfig(r=4, target_modules=["dense"])).save_pretrained(tmp_path / "b")
    for name in ("a", "b"):
        with pytest.raises(AdapterError):
            served.load(tmp_path / name)
        assert complete(served, code) == before
    only_base = ServedModel(load_base_model("nf-tiny", device="cpu", dtype="float32"))
    alone = complete(only_base, code)
    with pytest.raises(AdapterError):
        only_base.load(tmp_path / "a")
    assert complete(only_base, code) == alone


def test_a_damaged_folder_is_refused(served: ServedModel, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "a.lora")
    weights = tmp_path / "a.lora" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    with pytest.raises(AdapterError):
        served.load(tmp_path / "a.lora")


def test_the_number_of_adapters_is_bounded(served: ServedModel, adapter: Path, tmp_path: Path) -> None:
    folder = read_adapter_folder(adapter)
    for index in range(MOST_ADAPTERS):
        metadata = dataclasses.replace(folder.metadata, name=f"a{index}")
        write_adapter_folder(tmp_path / "a.lora", spec=folder.spec, state=folder.state, metadata=metadata)
        served.load(tmp_path / "a.lora")
    names = [name.id for name in served.names]
    assert len(names) == MOST_ADAPTERS + 2
    assert "team" not in names
    assert names[-2] == f"a{MOST_ADAPTERS - 1}" == served.current


def test_a_model_that_is_not_loaded_is_named_with_those_that_are(served: ServedModel) -> None:
    with pytest.raises(ModelError, match="'gone' is not loaded") as caught:
        list(served.write(CompletionRequest(prompt="x", model="gone"), lambda: False))
    assert caught.value.hint == "loaded: neuralforge, team, nf-tiny"


def test_an_encoder_decoder_is_refused_clearly(tiny_base: BaseModel) -> None:
    with pytest.raises(ModelError, match="encoder-decoder"):
        ServedModel(dataclasses.replace(tiny_base, model=tiny_model("t5"), is_encoder_decoder=True))


def test_the_first_of_several_adapters_is_the_current_one(adapter: Path, variants: dict[str, Path]) -> None:
    served = open_served([adapter, variants["loud"]], device="cpu")
    assert served.current == "team"
    assert {name.id for name in served.names} == {"neuralforge", "team", "loud", "nf-tiny"}
