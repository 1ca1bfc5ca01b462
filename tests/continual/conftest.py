"""Examples and fresh bases for tests of learning in sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model


@pytest.fixture(scope="session")
def dataset(team_code: Path) -> Dataset:
    """Examples of `team_code`, a tenth held out by file."""
    return gather(sources=[team_code], max_samples=48, max_eval_samples=12, seed=0)


@pytest.fixture
def fresh_base() -> Callable[..., BaseModel]:
    """Load nf-tiny anew: an adapter changes the modules of the base that it is put on."""

    def load(dtype: str = "float32") -> BaseModel:
        return load_base_model("nf-tiny", dtype=dtype, device="cpu")

    return load
