"""Which adapters can be one: of the same base, on modules of the same shape; and what the one will be on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuralforge.composition.method import Term
from neuralforge_common.adapter import AdapterSpec, AdapterState, module_of, verify_base
from neuralforge_common.errors import AdapterError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """An adapter that is to be composed, what to call it in errors, and its weight."""

    label: str
    spec: AdapterSpec
    state: AdapterState
    weight: float


def joint_spec(parts: Sequence[Part], rank: int) -> AdapterSpec:
    """The facts of an adapter on all modules that any of the parts is on; alpha is its rank.

    Raises:
        AdapterError: the parts are not of one base, or of one task.
    """
    # One that records its base speaks for those that do not.
    first = next((part for part in parts if part.spec.base_fingerprint), parts[0])
    for part in parts:
        if part.spec.task != first.spec.task:
            raise AdapterError(
                f"{part.label} is for {part.spec.task} models, {first.label} for {first.spec.task} ones",
                hint="compose adapters of one base",
            )
        if part.spec.base_fingerprint and first.spec.base_fingerprint:
            try:
                verify_base(part.spec, first.spec.base_fingerprint, first.spec.base)
            except AdapterError as fault:
                raise AdapterError(
                    f"{part.label} and {first.label} are of different bases: {fault.message}",
                    hint="a sum of adapters of different bases means nothing; compose adapters of one base",
                ) from fault
        elif _differ(part.spec.base, first.spec.base) or _differ(part.spec.base_revision, first.spec.base_revision):
            raise AdapterError(
                f"{part.label} names the base {_named(part.spec)}, {first.label} the base {_named(first.spec)}, "
                "and without both fingerprints they cannot be told to be one",
                hint="compose adapters of one base",
            )
    targets, layers = _where(parts)
    return replace(
        first.spec,
        rank=rank,
        alpha=float(rank),
        # PEFT's dropout acts in training alone, and none of the parts' is the sum's.
        dropout=0.0,
        target_modules=targets,
        layers=layers,
        fan_in_fan_out=any(part.spec.fan_in_fan_out for part in parts),
    )


def unproven(parts: Sequence[Part]) -> tuple[str, ...]:
    """A line for the person about each part whose base can be taken on trust alone."""
    return tuple(
        f"{part.label} does not record the fingerprint of its base: that it fits the others is taken on trust"
        for part in parts
        if not part.spec.base_fingerprint
    )


def terms_by_module(parts: Sequence[Part]) -> Iterator[tuple[str, list[Term]]]:
    """Every module that any part is on, in the order of names, with one term for each part.

    Raises:
        AdapterError: two parts give a module different shapes.
    """
    modules = sorted({module_of(key)[0] for part in parts for key in part.state})
    for module in modules:
        a_key, b_key = (f"base_model.model.{module}.lora_{side}.weight" for side in "AB")
        shapes = {
            (part.state[b_key].shape[0], part.state[a_key].shape[1]): part.label
            for part in parts
            if a_key in part.state
        }
        if len(shapes) != 1:
            told = ", ".join(f"{d_out} × {d_in} in {label}" for (d_out, d_in), label in shapes.items())
            raise AdapterError(f"{module} is {told}", hint="compose adapters of one base")
        d_out, d_in = next(iter(shapes))
        yield (
            module,
            [
                Term(
                    scale=part.weight * part.spec.scaling,
                    a=part.state[a_key].astype(np.float64),
                    b=part.state[b_key].astype(np.float64),
                )
                if a_key in part.state
                else Term(scale=0.0, a=np.zeros((part.spec.rank, d_in)), b=np.zeros((d_out, part.spec.rank)))
                for part in parts
            ],
        )


def _where(parts: Sequence[Part]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Target modules and layers that cover the modules of all parts and no others of the base."""
    targets = {part.spec.target_modules for part in parts}
    layers = {part.spec.layers for part in parts}
    if len(layers) == 1:
        return tuple({name for names in targets for name in names}), layers.pop()
    if len(targets) == 1:
        chosen = None if None in layers else {layer for some in layers if some is not None for layer in some}
        return targets.pop(), None if chosen is None else tuple(chosen)
    # Both differ: names × layers would cover modules that no part is on. PEFT takes whole paths as well.
    return tuple({module_of(key)[0] for part in parts for key in part.state}), None


def _differ(one: str | None, other: str | None) -> bool:
    """Whether two things that are said differ; what is not said differs from nothing."""
    return bool(one and other and one != other)


def _named(spec: AdapterSpec) -> str:
    return (spec.base or "of no name") + (f" at {spec.base_revision[:12]}" if spec.base_revision else "")
