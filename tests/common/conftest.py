"""Small adapters for the tests of the common room."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.config.load import load_train_config
from neuralforge_common.errors import ConfigError

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


ConfigFaults = Callable[..., tuple[str, ...]]


@pytest.fixture
def config_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFaults:
    """Load a text or bytes as `c.yaml` of the current folder and return what is wrong with it, line by line."""
    monkeypatch.chdir(tmp_path)

    def faults(
        content: str | bytes,
        overrides: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        file = Path("c.yaml")
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            load_train_config(file, overrides or {}, environ or {})
        except ConfigError as error:
            return error.faults
        return ()

    return faults
