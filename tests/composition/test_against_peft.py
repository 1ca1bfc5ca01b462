"""The five ways of composing against PEFT's own `add_weighted_adapter`, on one tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from tiny import tiny_model, tiny_spec, with_adapter

from neuralforge.composition.compose import compose
from neuralforge.composition.dare import Dare
from neuralforge.composition.exact import Cat, Svd
from neuralforge.composition.linear import Linear
from neuralforge.composition.parents import Part
from neuralforge.composition.ties import Ties
from neuralforge.models.lora import read_state
from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.folder import AdapterMetadata, write_adapter_folder

Deltas = Callable[..., dict[str, np.ndarray]]
WEIGHTS = (0.7, -0.3)
NAMES = ("one", "other")
METHODS = {
    "cat": (Cat(), {}),
    "svd": (Svd(rank=3), {"svd_rank": 3}),
    "linear": (Linear(), {}),
    "ties": (Ties(density=0.4), {"density": 0.4}),
}


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    specs = [tiny_spec("llama"), tiny_spec("llama", alpha=3.0, target_modules=("q_proj", "o_proj", "up_proj"))]
    return [
        Part(label=name, spec=spec, state=read_state(with_adapter(tiny_model("llama"), spec, seed=len(name))), weight=w)
        for name, spec, w in zip(NAMES, specs, WEIGHTS, strict=True)
    ]


@pytest.fixture(scope="module")
def peft(parts: list[Part], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """PEFT's model with both adapters, loaded from our folders."""
    place = tmp_path_factory.mktemp("parents")
    for part in parts:
        metadata = AdapterMetadata(name=part.label)
        write_adapter_folder(place / part.label, spec=part.spec, state=part.state, metadata=metadata)
    model = PeftModel.from_pretrained(tiny_model("llama"), str(place / NAMES[0]), adapter_name=NAMES[0])
    model.load_adapter(str(place / NAMES[1]), adapter_name=NAMES[1])
    return model


def pefts_own(peft: Any, name: str, kind: str, options: dict[str, Any]) -> tuple[AdapterSpec, AdapterState]:
    peft.add_weighted_adapter(list(NAMES), list(WEIGHTS), name, combination_type=kind, **options)
    state = {key: value.numpy() for key, value in get_peft_model_state_dict(peft, adapter_name=name).items()}
    config = peft.peft_config[name]
    return tiny_spec("llama", rank=config.r, alpha=config.lora_alpha), AdapterState(state)


@pytest.mark.parametrize("kind", METHODS)
def test_the_result_is_pefts(kind: str, parts: list[Part], peft: Any, delta_of: Deltas) -> None:
    method, options = METHODS[kind]
    spec, state = pefts_own(peft, kind, kind, options)
    composed = compose(parts, method)
    assert (composed.spec.rank, composed.spec.alpha) == (spec.rank, spec.alpha)
    wanted, found = delta_of(spec, state), delta_of(composed.spec, composed.state)
    assert found.keys() == wanted.keys()
    assert max(np.abs(delta).max() for delta in wanted.values()) > 0.1
    for module, delta in wanted.items():
        assert found[module] == pytest.approx(delta, abs=2e-6)
    if kind in ("linear", "ties"):  # the factors themselves, too
        assert all(composed.state[key] == pytest.approx(array, abs=1e-6) for key, array in state.items())


def test_dare_is_pefts_dare_linear_for_the_same_draws(
    parts: list[Part], peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Dare(drop_rate=0.3, seed=5)

    def draws() -> Iterator[np.ndarray]:
        # In PEFT's order: modules as the model has them, A of all adapters, then B.
        for name, module in peft.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                for side, factors in (("A", module.lora_A), ("B", module.lora_B)):
                    for place, adapter in enumerate(NAMES):
                        if adapter in factors:
                            yield method.kept(name, place, side, tuple(factors[adapter].weight.shape))

    drawn = draws()

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        assert float(probabilities.flatten()[0]) == pytest.approx(0.7)
        return torch.from_numpy(next(drawn)).to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    _, state = pefts_own(peft, "dare", "dare_linear", {"density": 0.7})
    assert next(drawn, None) is None
    composed = compose(parts, method)
    assert composed.state.keys() == state.keys()
    assert all(composed.state[key] == pytest.approx(array, abs=1e-6) for key, array in state.items())


def test_a_composed_adapter_opens_in_peft_and_adds_the_parents_up(parts: list[Part], tmp_path: Path) -> None:
    composed = compose(parts, Cat())
    write_adapter_folder(
        tmp_path / "both", spec=composed.spec, state=composed.state, metadata=AdapterMetadata(name="both")
    )
    ids = torch.arange(1, 13).reshape(1, 12)
    model = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "both"))
    by_hand = tiny_model("llama")
    with torch.no_grad():
        for part in parts:
            for key, a in part.state.items():
                if ".lora_A." in key:
                    b = part.state[key.replace("lora_A", "lora_B")]
                    module = by_hand.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                    module.weight += part.weight * part.spec.scaling * torch.from_numpy(b @ a)
        found, wanted, base = model(ids).logits, by_hand(ids).logits, tiny_model("llama")(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(wanted, base, atol=1e-2)


def test_modules_that_no_parent_has_are_left_alone_by_peft_too(parts: list[Part], tmp_path: Path) -> None:
    # Other targets on other layers: only whole paths name what both are on, and no more.
    halves = []
    for part, layer, target in zip(parts, (0, 2), ("q_proj", "up_proj"), strict=True):
        kept = {key: array for key, array in part.state.items() if f"layers.{layer}." in key and f".{target}." in key}
        spec = replace(part.spec, target_modules=(target,), layers=(layer,))
        halves.append(replace(part, spec=spec, state=AdapterState(kept)))
    composed = compose(halves, Cat())
    write_adapter_folder(tmp_path / "x", spec=composed.spec, state=composed.state, metadata=AdapterMetadata(name="x"))
    model = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "x"))
    assert read_state(model) == composed.state
