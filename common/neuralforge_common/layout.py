"""The one order in which an adapter's matrices stand in a flat vector, so that a delta travels as one array.

Every A stands before every B, modules by name: `[A_1 … A_n | B_1 … B_n]`. So "only the A" and "only the B" are
slices, and one norm, one sum or one cast covers the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from neuralforge_common.adapter import (
    MAX_MODULES,
    MAX_RANK,
    MAX_STATE_BYTES,
    AdapterState,
    FloatArray,
    module_of,
)
from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import shortened

Part: TypeAlias = Literal["both", "A", "B"]
Real = TypeVar("Real", bound=np.floating)
MAX_WIDTH = 2**24


@dataclass(frozen=True, slots=True, order=True)
class ModuleShape:
    """A linear map that LoRA adapts: its path in the base, and what it maps from and to."""

    name: str
    d_in: int
    d_out: int


@dataclass(frozen=True, kw_only=True)
class AdapterLayout:
    """Where each matrix of an adapter stands in its flat float32 vector.

    Raises:
        AdapterError: shapes that no adapter can have.
    """

    modules: tuple[ModuleShape, ...]
    rank: int

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise AdapterError(f"rank: wanted a whole number from 1 to {MAX_RANK}, got {self.rank}")
        if not 1 <= len(self.modules) <= MAX_MODULES:
            raise AdapterError(f"wanted 1 to {MAX_MODULES:,} modules, got {len(self.modules):,}")
        if list(self.modules) != sorted(set(self.modules)) or len({m.name for m in self.modules}) != len(self.modules):
            raise AdapterError("the modules of a layout stand in the order of their names, each once")
        for module in self.modules:
            module_of(f"base_model.model.{module.name}.lora_A.weight")
            if not (1 <= module.d_in <= MAX_WIDTH and 1 <= module.d_out <= MAX_WIDTH):
                raise AdapterError(f"{shortened(module.name)}: {module.d_in} to {module.d_out} is no linear map")
        if 4 * self.size > MAX_STATE_BYTES:
            raise AdapterError(f"the adapter takes {4 * self.size:,} bytes, at most {MAX_STATE_BYTES:,} are allowed")

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> AdapterLayout:
        """The layout of a whole adapter state; raises AdapterError where halves are missing or ranks differ."""
        sides: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, array in state.items():
            module, side = module_of(key)
            sides.setdefault(module, {})[side] = array.shape
        ranks = set()
        modules = []
        for name, pair in sorted(sides.items()):
            if pair.keys() != {"A", "B"} or any(len(shape) != 2 for shape in pair.values()):
                raise AdapterError(f"{shortened(name)}: wanted one A and one B of two dimensions")
            modules.append(ModuleShape(name, pair["A"][1], pair["B"][0]))
            ranks |= {pair["A"][0], pair["B"][1]}
        if len(ranks) != 1:
            raise AdapterError(f"wanted one rank for all modules, got {', '.join(map(str, sorted(ranks)))}")
        return cls(modules=tuple(modules), rank=ranks.pop())

    @cached_property
    def size_a(self) -> int:
        """Values of all A together."""
        return self.rank * sum(module.d_in for module in self.modules)

    @cached_property
    def size_b(self) -> int:
        """Values of all B together."""
        return self.rank * sum(module.d_out for module in self.modules)

    @cached_property
    def size(self) -> int:
        """Values of the whole adapter."""
        return self.size_a + self.size_b

    def part_size(self, part: Part) -> int:
        """Values of a part."""
        return {"both": self.size, "A": self.size_a, "B": self.size_b}[part]

    def part_slice(self, part: Part) -> slice:
        """Where a part stands in the whole vector."""
        return {"both": slice(0, self.size), "A": slice(0, self.size_a), "B": slice(self.size_a, self.size)}[part]

    def with_rank(self, rank: int) -> AdapterLayout:
        """The same modules at another rank."""
        return self if rank == self.rank else AdapterLayout(modules=self.modules, rank=rank)

    def factors(self, vector: npt.NDArray[Real]) -> Iterator[tuple[ModuleShape, npt.NDArray[Real], npt.NDArray[Real]]]:
        """Every module with views of its A (rank, d_in) and B (d_out, rank) in a whole vector."""
        a, b = 0, self.size_a
        for module in self.modules:
            a_size, b_size = self.rank * module.d_in, self.rank * module.d_out
            yield (
                module,
                vector[a : a + a_size].reshape(self.rank, module.d_in),
                vector[b : b + b_size].reshape(module.d_out, self.rank),
            )
            a, b = a + a_size, b + b_size

    def flatten(self, state: Mapping[str, FloatArray]) -> FloatArray:
        """A whole adapter state as one vector (size,); raises AdapterError where it is another adapter's."""
        found = AdapterLayout.of(state)
        if found != self:
            raise AdapterError(f"the adapter's shapes differ: wanted {self.summary()}, got {found.summary()}")
        vector = np.empty(self.size, np.float32)
        for module, a, b in self.factors(vector):
            a[...] = state[f"base_model.model.{module.name}.lora_A.weight"]
            b[...] = state[f"base_model.model.{module.name}.lora_B.weight"]
        return vector

    def unflatten(self, vector: FloatArray) -> AdapterState:
        """The adapter state of one vector (size,)."""
        if vector.shape != (self.size,):
            raise AdapterError(f"wanted a vector of {self.size:,} values, got the shape {vector.shape}")
        arrays = {}
        for module, a, b in self.factors(vector):
            arrays[f"base_model.model.{module.name}.lora_A.weight"] = a
            arrays[f"base_model.model.{module.name}.lora_B.weight"] = b
        return AdapterState(arrays)

    def resized(self, vector: FloatArray, rank: int, *, part: Part = "both") -> FloatArray:
        """A part of this rank as the same part of another: cut to the first components, or padded with zeros."""
        if rank == self.rank:
            return vector
        other = self.with_rank(rank)
        both, target = np.zeros(self.size, np.float32), np.zeros(other.size, np.float32)
        both[self.part_slice(part)] = vector
        kept = min(rank, self.rank)
        for (_, a, b), (_, a_new, b_new) in zip(self.factors(both), other.factors(target), strict=True):
            a_new[:kept] = a[:kept]
            b_new[:, :kept] = b[:, :kept]
        return target[other.part_slice(part)]

    def draw(self, seed: int) -> FloatArray:
        """A fresh adapter: A uniform in ±1/√d_in, B zero (Hu et al. 2021, §4.1; Kaiming with a = √5 as in PEFT)."""
        generator = np.random.Generator(np.random.Philox(seed))
        vector = np.zeros(self.size, np.float32)
        for module, a, _ in self.factors(vector):
            bound = module.d_in**-0.5
            a[...] = generator.uniform(-bound, bound, a.shape)
        return vector

    def to_json(self) -> str:
        """The layout as one line of JSON; equal layouts give equal text."""
        return json.dumps({"rank": self.rank, "modules": [[m.name, m.d_in, m.d_out] for m in self.modules]})

    @classmethod
    def from_json(cls, text: str) -> AdapterLayout:
        """Reads `to_json`; raises AdapterError for anything else."""
        try:
            document = json.loads(text)
            modules = tuple(ModuleShape(name, d_in, d_out) for name, d_in, d_out in document["modules"])
            # By type and not isinstance: JSON's true is no rank.
            if set(document) != {"rank", "modules"} or not all(
                isinstance(m.name, str) and type(m.d_in) is int and type(m.d_out) is int for m in modules
            ):
                raise TypeError
            if type(document["rank"]) is not int:
                raise TypeError
            return cls(modules=modules, rank=document["rank"])
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            raise AdapterError("these bytes are not the layout of an adapter") from fault

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the layout, 64 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def summary(self) -> str:
        """A few words for a message."""
        return f"{len(self.modules)} modules at rank {self.rank} ({self.size:,} values)"
