"""The spectra of an adapter: those of the whole matrices, without the whole matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuralforge.inspection.found import find_adapters
from neuralforge.inspection.spectrum import by_kind, by_layer, spectra
from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import AdapterMetadata, write_adapter_folder

SPEC = AdapterSpec(base="tiny", rank=4, alpha=6.0, target_modules=("q_proj", "up_proj"))


def state_of(seed: int = 0) -> AdapterState:
    generator = np.random.default_rng(seed)
    arrays = {}
    for layer in (0, 1, 10):
        for target, d_out in (("q_proj", 12), ("up_proj", 20)):
            name = f"base_model.model.model.layers.{layer}.x.{target}"
            arrays[f"{name}.lora_A.weight"] = generator.standard_normal((4, 16))
            arrays[f"{name}.lora_B.weight"] = generator.standard_normal((d_out, 4))
    return AdapterState(arrays)


def test_singular_values_are_those_of_the_whole_matrix() -> None:
    state = state_of()
    for module in spectra(SPEC, state):
        key = f"base_model.model.{module.name}.lora_{{}}.weight"
        whole = SPEC.scaling * state[key.format("B")] @ state[key.format("A")]
        values = np.linalg.svd(whole, compute_uv=False)[:4]
        assert module.singular_values == pytest.approx(values, rel=1e-5)
        assert module.norm == pytest.approx(np.linalg.norm(whole), rel=1e-5)
        assert (module.d_out, module.d_in, module.rank) == (*whole.shape, 4)
        share = np.cumsum(values**2) / (values**2).sum()
        assert share[module.components - 1] >= 0.9 - 1e-9
        assert module.components == 1 or share[module.components - 2] < 0.9


def test_the_effective_rank_is_one_for_one_component_and_the_rank_for_equal_ones() -> None:
    spec = AdapterSpec(base="tiny", rank=4, alpha=4.0, target_modules=("q_proj",))
    eye, name = np.eye(4, 16), "base_model.model.model.layers.0.q_proj"
    equal = AdapterState({f"{name}.lora_A.weight": eye, f"{name}.lora_B.weight": eye.T})
    (module,) = spectra(spec, equal)
    assert (module.rank, module.effective_rank, module.components) == (4, pytest.approx(4), 4)
    one = np.zeros((16, 4))
    one[0, 0] = 3.0
    (module,) = spectra(spec, AdapterState({f"{name}.lora_A.weight": eye, f"{name}.lora_B.weight": one}))
    assert (module.rank, module.effective_rank, module.components, module.norm) == (1, pytest.approx(1), 1, 3.0)


def test_an_adapter_that_changes_nothing_has_no_spectrum() -> None:
    state = state_of()
    zero = AdapterState({key: 0 * array if "lora_B" in key else array for key, array in state.items()})
    assert {(m.rank, m.effective_rank, m.norm) for m in spectra(SPEC, zero)} == {(0, 0.0, 0.0)}
    assert {group.share for group in by_kind(spectra(SPEC, zero))} == {0.0}


def test_groups_divide_the_whole_among_them_and_layers_stand_in_their_order() -> None:
    modules = spectra(SPEC, state_of())
    whole = sum(module.norm**2 for module in modules)
    for groups in (by_kind(modules), by_layer(modules)):
        assert sum(group.share for group in groups) == pytest.approx(1)
        assert sum(group.norm**2 for group in groups) == pytest.approx(whole)
        assert sum(group.modules for group in groups) == 6
    assert [group.name for group in by_kind(modules)] == ["q_proj", "up_proj"]
    assert [group.name for group in by_layer(modules)] == ["model.layers.0", "model.layers.1", "model.layers.10"]


def write(path: Path) -> None:
    write_adapter_folder(path, spec=SPEC, state=state_of(), metadata=AdapterMetadata(name=path.name))


def test_adapters_are_found_below_folders_once_each_and_not_behind_links_or_dots(tmp_path: Path) -> None:
    for name in ("b.lora", "deep/er/a.lora", ".hidden/c.lora", "node_modules/d.lora"):
        write(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "no-adapter").mkdir()
    found = [item.path for item in find_adapters([tmp_path, tmp_path / "deep"])]
    assert found == [tmp_path / "b.lora", tmp_path / "deep/er/a.lora"]
    assert [item.path for item in find_adapters([tmp_path / ".hidden/c.lora"])] == [tmp_path / ".hidden/c.lora"]


def test_a_damaged_adapter_is_listed_with_its_fault_beside_the_others(tmp_path: Path) -> None:
    write(tmp_path / "good.lora")
    write(tmp_path / "torn.lora")
    (tmp_path / "torn.lora/metadata.json").write_text("{")
    good, torn = find_adapters([tmp_path])
    assert good.claims is not None
    assert good.claims.weights_bytes == (tmp_path / "good.lora/lora_weights.bin").stat().st_size
    assert torn.claims is None
    assert torn.fault.startswith("metadata.json: not valid JSON")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        list(find_adapters([tmp_path / "nowhere"]))
