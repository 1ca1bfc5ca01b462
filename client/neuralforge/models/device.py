"""Where a model runs and in which number format, from what a person asked for and what the machine has."""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from neuralforge_common.errors import ModelError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def resolve_device(requested: str | torch.device) -> torch.device:
    """The device asked for; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ModelError: the name is no device, or this machine has no such device.
    """
    if requested == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise ModelError(f"{requested!r} is no device", hint="auto, cpu, cuda, cuda:0 or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ModelError(f"{requested} was asked for, this machine has {count} CUDA devices", hint="--device cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("mps was asked for, this machine has no Apple GPU", hint="--device cpu")
    elif device.type != "cpu":
        raise ModelError(f"{requested!r} is no device that we train on", hint="auto, cpu, cuda, cuda:0 or mps")
    return device


def resolve_dtype(requested: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number format of the weights; `auto` is bfloat16 where the device multiplies it natively, else float32."""
    if isinstance(requested, torch.dtype):
        if requested not in _DTYPES.values():
            raise ModelError(f"weights cannot be {requested}", hint="auto, float32, bfloat16 or float16")
        return requested
    if requested == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if requested not in _DTYPES:
        raise ModelError(f"{requested!r} is no number format", hint="auto, float32, bfloat16 or float16")
    return _DTYPES[requested]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # A torch too old to be asked gives float32: correct everywhere, only slower.
        features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        if features.get("architecture") == "x86_64":
            return any(features.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
        return bool(features.get("bf16", False)) and sys.platform == "linux"  # macOS's matrix library has none
    return False
