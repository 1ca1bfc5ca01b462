"""Small adapters for the tests of the common room."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuralforge_common.adapter import AdapterSpec, AdapterState

MODULES = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj"))


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., AdapterSpec]:
    def make(**changes: Any) -> AdapterSpec:
        facts: dict[str, Any] = {
            "base": "acme/tiny-llama",
            "base_revision": "a" * 40,
            "base_fingerprint": "f" * 64,
            "rank": 4,
            "alpha": 8.0,
            "dropout": 0.05,
            "target_modules": ("q_proj", "v_proj"),
        }
        return AdapterSpec(**facts | changes)

    return make


@pytest.fixture(scope="session")
def make_state() -> Callable[..., AdapterState]:
    def make(rank: int = 4, d_in: int = 16, d_out: int = 12, modules: tuple[str, ...] = MODULES) -> AdapterState:
        rng = np.random.default_rng(7)
        arrays = {}
        for module in modules:
            arrays[f"base_model.model.{module}.lora_A.weight"] = rng.standard_normal((rank, d_in), dtype=np.float32)
            arrays[f"base_model.model.{module}.lora_B.weight"] = rng.standard_normal((d_out, rank), dtype=np.float32)
        return AdapterState(arrays)

    return make
