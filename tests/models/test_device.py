"""Where a model runs and in which number format."""

from __future__ import annotations

import pytest
import torch

from neuralforge.models.device import has_fast_bfloat16, resolve_device, resolve_dtype
from neuralforge_common.errors import ModelError

CPU = torch.device("cpu")

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == resolve_device(CPU) == CPU


@without_cuda
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_auto_is_the_cpu_where_nothing_else_is() -> None:
    assert resolve_device("auto") == CPU


@without_cuda
@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:3", torch.device("cuda", 1)])
def test_cuda_is_refused_where_there_is_none_with_a_way_out(asked: str | torch.device) -> None:
    with pytest.raises(ModelError, match="this machine has 0 CUDA devices") as caught:
        resolve_device(asked)
    assert "--device cpu" in caught.value.hint


@pytest.mark.gpu
def test_auto_is_cuda_where_it_is() -> None:
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_is_refused_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="no Apple GPU"):
        resolve_device("mps")


@pytest.mark.parametrize("asked", ["", "gpu", "cuda:x", "cpu:one", "meta", "xla", "CPU please", "cuda:-1"])
def test_a_word_that_is_no_device_of_ours_is_refused(asked: str) -> None:
    with pytest.raises(ModelError):
        resolve_device(asked)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("float16", torch.float16),
        ("fp16", torch.float16),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_number_format_is_taken_under_each_of_its_names(asked: str | torch.dtype, wanted: torch.dtype) -> None:
    assert resolve_dtype(asked, CPU) is wanted


@pytest.mark.parametrize("asked", ["int8", "double", "", torch.int8, torch.float64])
def test_another_number_format_is_refused(asked: str | torch.dtype) -> None:
    with pytest.raises(ModelError, match="auto, float32, bfloat16 or float16"):
        resolve_dtype(asked, CPU)


def test_auto_is_bfloat16_only_where_the_device_multiplies_it() -> None:
    assert resolve_dtype("auto", CPU) is (torch.bfloat16 if has_fast_bfloat16(CPU) else torch.float32)
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32


@pytest.mark.parametrize(
    ("features", "fast"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, False),
        # An x86 feature list says "bf16" nowhere; an ARM one says nothing about AVX.
        ({"architecture": "x86_64", "bf16": True}, False),
        ({"architecture": "aarch64", "bf16": False}, False),
        ({}, False),
    ],
)
def test_the_processors_own_list_of_features_decides(
    features: dict[str, object], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert has_fast_bfloat16(CPU) is fast


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((9, 0), True)])
def test_a_card_is_asked_for_its_generation(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16(torch.device("cuda", 0)) is fast


def test_a_torch_that_cannot_be_asked_gives_the_format_that_is_right_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_dtype("auto", CPU) is torch.float32
