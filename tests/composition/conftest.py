"""Small adapters as parts of a composition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from neuralforge.composition.parents import Part
from neuralforge_common.adapter import AdapterSpec, AdapterState

SHAPES = {"q_proj": (12, 16), "v_proj": (8, 16)}


def part(
    seed: int,
    *,
    rank: int = 3,
    weight: float = 1.0,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    layers: Sequence[int] = (0, 1),
    **spec: Any,
) -> Part:
    """An adapter of random numbers on a base that is not there."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for layer in layers:
        for target in targets:
            d_out, d_in = SHAPES[target]
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            arrays[f"{name}.lora_A.weight"] = generator.standard_normal((rank, d_in))
            arrays[f"{name}.lora_B.weight"] = generator.standard_normal((d_out, rank))
    facts = {
        "base": "tiny",
        "base_fingerprint": "sha256:" + "f" * 64,
        "rank": rank,
        "alpha": 2.0 * rank,
        "target_modules": tuple(targets),
    }
    return Part(label=f"part {seed}", spec=AdapterSpec(**facts | spec), state=AdapterState(arrays), weight=weight)


def deltas(spec: AdapterSpec, state: AdapterState) -> dict[str, np.ndarray]:
    """Every module's ΔW = (alpha / rank) · B·A, whole."""
    found = {}
    for key, a in state.items():
        if ".lora_A." in key:
            b = state[key.replace(".lora_A.", ".lora_B.")]
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[module] = spec.scaling * (b.astype(np.float64) @ a.astype(np.float64))
    return found


@pytest.fixture(scope="session")
def make_part() -> Callable[..., Part]:
    return part


@pytest.fixture(scope="session")
def delta_of() -> Callable[..., dict[str, np.ndarray]]:
    return deltas
