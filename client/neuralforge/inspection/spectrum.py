"""The singular values of ΔW = (alpha / rank) · B·A, from its factors: how large a change is and how many-sided.

The effective rank is exp of the entropy of the singular values' shares (Roy & Vetterli 2007): between 1, where one
component does everything, and the adapter's rank, where all do the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.layout import AdapterLayout

ENERGY = 0.9
"""The share of ‖ΔW‖² that `components` are counted for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpectrum:
    """ΔW of one module: Frobenius norm, singular values from the largest, numerical and effective rank.

    `components` is how many of them hold nine tenths of ‖ΔW‖².
    """

    name: str
    d_in: int
    d_out: int
    norm: float
    singular_values: tuple[float, ...]
    rank: int
    effective_rank: float
    components: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Modules that share a name or a layer: `share` is their part of ‖ΔW‖² of the adapter, the rest are means."""

    name: str
    modules: int
    norm: float
    share: float
    largest: float
    effective_rank: float
    components: float


def spectra(spec: AdapterSpec, state: AdapterState) -> tuple[ModuleSpectrum, ...]:
    """One spectrum for every module, in the order of names."""
    layout = AdapterLayout.of(state)
    vector = layout.flatten(state)
    return tuple(
        _module(module.name, b.astype(np.float64), spec.scaling * a.astype(np.float64))
        for module, a, b in layout.factors(vector)
    )


def by_kind(modules: Sequence[ModuleSpectrum]) -> tuple[Group, ...]:
    """Groups of modules of one name over all layers (`q_proj`, `mlp.up_proj` …)."""
    return _grouped(modules, {module.name: module.name.rpartition(".")[2] for module in modules})


def by_layer(modules: Sequence[ModuleSpectrum]) -> tuple[Group, ...]:
    """Groups of modules of one layer, in the order of layers; what stands in no layer is left out.

    The layer is the first number of a module's path, with what stands before it where there are several stacks.
    """
    layers = {}
    for module in modules:
        parts = module.name.split(".")
        if (place := next((i for i, part in enumerate(parts) if part.isdecimal()), None)) is not None:
            layers[module.name] = ".".join(parts[: place + 1])
    groups = _grouped(modules, layers)
    return tuple(sorted(groups, key=lambda group: (group.name.rpartition(".")[0], int(group.name.rpartition(".")[2]))))


def _module(name: str, b: npt.NDArray[np.float64], a: npt.NDArray[np.float64]) -> ModuleSpectrum:
    core_b: npt.NDArray[np.float64] = np.linalg.qr(b, mode="r")  # type: ignore[assignment]  # numpy's stub forgets this
    core_a: npt.NDArray[np.float64] = np.linalg.qr(a.T, mode="r")  # type: ignore[assignment]
    values: npt.NDArray[np.float64] = np.linalg.svd(core_b @ core_a.T, compute_uv=False).astype(np.float64)
    top = float(values[0]) if values.size else 0.0
    # Adapters are float32: below this the values are the rounding of those above.
    real = values[values > top * np.finfo(np.float32).eps * max(a.shape[1], b.shape[0])] if top > 0 else values[:0]
    energy = np.cumsum(real**2)
    return ModuleSpectrum(
        name=name,
        d_in=a.shape[1],
        d_out=b.shape[0],
        norm=float(np.linalg.norm(values)),
        singular_values=tuple(float(value) for value in values),
        rank=int(real.size),
        effective_rank=_effective_rank(real),
        components=int(np.searchsorted(energy, ENERGY * energy[-1] * (1 - 1e-12)) + 1) if real.size else 0,
    )


def _effective_rank(values: npt.NDArray[np.float64]) -> float:
    if not values.size:
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _grouped(modules: Sequence[ModuleSpectrum], group_of: Mapping[str, str]) -> tuple[Group, ...]:
    whole = sum(module.norm**2 for module in modules)
    groups: dict[str, list[ModuleSpectrum]] = defaultdict(list)
    for module in modules:
        if module.name in group_of:
            groups[group_of[module.name]].append(module)
    return tuple(
        Group(
            name=name,
            modules=len(members),
            norm=sum(module.norm**2 for module in members) ** 0.5,
            share=sum(module.norm**2 for module in members) / whole if whole > 0 else 0.0,
            largest=max((module.singular_values[0] for module in members if module.singular_values), default=0.0),
            effective_rank=sum(module.effective_rank for module in members) / len(members),
            components=sum(module.components for module in members) / len(members),
        )
        for name, members in sorted(groups.items())
    )
