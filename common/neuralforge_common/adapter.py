"""What an adapter is: the facts that give its numbers a meaning (`AdapterSpec`), and the numbers (`AdapterState`)."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import is_plain_text, shortened

Task: TypeAlias = Literal["causal", "seq2seq"]
FloatArray: TypeAlias = npt.NDArray[np.float32]

MAX_RANK = 256
MAX_LAYER = 9_999
MAX_STATE_BYTES = 4 * 2**30
MAX_MODULES = 65_536

_MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")
_MAX_NAME = 256
_MAX_NUMBER = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """What the weights of a LoRA adapter belong to, and how they are applied: W = W₀ + (alpha / rank) · B · A.

    `target_modules` and `layers` are kept sorted; `layers` None means every layer (PEFT: `layers_to_transform`).
    An empty `base_fingerprint` means that nobody recorded it.

    Raises:
        AdapterError: a value that no adapter can have.
    """

    base: str
    base_revision: str | None = None
    base_fingerprint: str = ""
    rank: int
    alpha: float
    dropout: float = 0.0
    target_modules: tuple[str, ...]
    task: Task = "causal"
    layers: tuple[int, ...] | None = None
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        for name, text in (
            ("base", self.base),
            ("base_revision", self.base_revision or ""),
            ("base_fingerprint", self.base_fingerprint),
        ):
            if not isinstance(text, str) or len(text) > 1024 or not is_plain_text(text):
                raise AdapterError(f"{name}: wanted one line of text, got {shortened(text)}")
        if not _is_whole(self.rank) or not 1 <= self.rank <= MAX_RANK:
            raise AdapterError(f"rank: wanted a whole number from 1 to {MAX_RANK}, got {shortened(self.rank)}")
        if not _is_number(self.alpha) or self.alpha <= 0:
            raise AdapterError(f"alpha: wanted a finite number above 0, got {shortened(self.alpha)}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise AdapterError(f"dropout: wanted a number from 0 to below 1, got {shortened(self.dropout)}")
        if self.task not in get_args(Task):
            raise AdapterError(f"task: wanted {' or '.join(get_args(Task))}, got {shortened(self.task)}")
        if not isinstance(self.fan_in_fan_out, bool):
            raise AdapterError(f"fan_in_fan_out: wanted true or false, got {shortened(self.fan_in_fan_out)}")
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "dropout", float(self.dropout))
        object.__setattr__(self, "target_modules", _module_names(self.target_modules))
        object.__setattr__(self, "layers", _layer_indices(self.layers))

    @classmethod
    def from_document(cls, document: object) -> "AdapterSpec":
        """The spec that `dataclasses.asdict` and JSON made of one; raises AdapterError for anything else."""
        if not isinstance(document, Mapping):
            raise AdapterError(f"wanted the facts of an adapter, got {shortened(document)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        try:
            return cls(**values)
        except TypeError as fault:
            raise AdapterError("the facts of an adapter are not complete, or not those of this version") from fault

    @property
    def scaling(self) -> float:
        """The factor that B·A is multiplied by: alpha / rank."""
        return self.alpha / self.rank


class AdapterState(Mapping[str, FloatArray]):
    """The weights of an adapter: PEFT's saved names → read-only float32 arrays, in the order of their names.

    `…lora_A.weight` is (rank, d_in), `…lora_B.weight` is (d_out, rank). Equality is equality of every bit.
    The arrays are copies; nothing is checked here, see `validate_state`.
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        self._arrays: dict[str, FloatArray] = {}
        for name in sorted(arrays):
            array = np.array(arrays[name], dtype=np.float32, order="C", copy=True)
            array.setflags(write=False)
            self._arrays[name] = array

    @classmethod
    def adopt(cls, arrays: Mapping[str, FloatArray]) -> "AdapterState":
        """A state of arrays that nobody else holds: float32 and C-contiguous ones are taken over without a copy."""
        state = cls({})
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name], dtype=np.float32)
            array.setflags(write=False)
            state._arrays[name] = array
        return state

    def __getitem__(self, name: str) -> FloatArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdapterState):
            return NotImplemented
        return self._arrays.keys() == other._arrays.keys() and all(
            array.shape == other._arrays[name].shape
            # As whole numbers, so that NaN equals itself and -0.0 is not 0.0: the same as equal digests.
            and np.array_equal(array.view(np.uint32), other._arrays[name].view(np.uint32))
            for name, array in self._arrays.items()
        )

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"AdapterState({len(self)} arrays, {self.nbytes:,} bytes, {self.digest()[:12]})"

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def digest(self) -> str:
        """SHA-256 over names, shapes and little-endian bytes, as 64 hex digits."""
        sha = hashlib.sha256()
        for name, array in self._arrays.items():
            sha.update(f"{name}\0{'x'.join(map(str, array.shape))}\0".encode())
            sha.update(array.astype("<f4", copy=False).data)
        return sha.hexdigest()


def module_of(key: str) -> tuple[str, Literal["A", "B"]]:
    """Splits `base_model.model.<module path>.lora_(A|B).weight` into the module's path and its side.

    Raises:
        AdapterError: the name is not one that a LoRA weight of PEFT can have.
    """
    match = _KEY.fullmatch(key) if len(key) <= 2 * _MAX_NAME else None
    if match is None:
        raise AdapterError(
            f"the weight {shortened(key, 120)} is not a LoRA weight: "
            "wanted base_model.model.<module>.lora_A.weight or …lora_B.weight"
        )
    return match[1], "A" if match[2] == "A" else "B"


def is_targeted(spec: AdapterSpec, module: str) -> bool:
    """Whether PEFT would put LoRA of this spec on the module of that path (its own rule, without its regexes)."""
    return _is_match(module, frozenset(spec.target_modules), None if spec.layers is None else frozenset(spec.layers))


def validate_state(state: Mapping[str, FloatArray], spec: AdapterSpec) -> None:
    """Checks that these are the weights of such an adapter, all of them, and nothing else.

    Raises:
        AdapterError: a foreign name, a missing half of a pair, a wrong shape, a value that is not finite, a target
            without weights, or more than 4 GiB.
    """
    shapes = {name: array.shape for name, array in state.items()}
    validate_shapes(shapes, spec)
    missing = untouched_targets(shapes, spec)
    if missing:
        raise AdapterError(f"the target module {missing[0]} has no weights")
    for name, array in state.items():
        if array.dtype != np.float32:
            raise AdapterError(f"{name}: wanted float32, got {array.dtype}")
        if not np.isfinite(array).all():
            raise AdapterError(
                f"{name} holds values that are not finite", hint="this adapter cannot be used; train again"
            )


def validate_shapes(shapes: Mapping[str, tuple[int, ...]], spec: AdapterSpec) -> None:
    """Checks names, pairs, ranks and total size before a single weight is read.

    Raises:
        AdapterError: see `validate_state`.
    """
    if not shapes:
        raise AdapterError("the adapter holds no weights")
    if len(shapes) > 2 * MAX_MODULES:
        raise AdapterError(f"the adapter holds {len(shapes):,} arrays, at most {2 * MAX_MODULES:,} are allowed")
    targets, layers = frozenset(spec.target_modules), None if spec.layers is None else frozenset(spec.layers)
    sides: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        module, side = module_of(name)
        if not _is_match(module, targets, layers):
            raise AdapterError(
                f"{shortened(name, 120)} belongs to no target: target_modules {', '.join(spec.target_modules[:12])}"
                + (f", layers {', '.join(map(str, spec.layers[:12]))}" if spec.layers is not None else "")
            )
        if len(shape) != 2 or min(shape) < 1:
            raise AdapterError(f"{name}: wanted two dimensions, got the shape {shortened(shape)}")
        rank = shape[0] if side == "A" else shape[1]
        if rank != spec.rank:
            raise AdapterError(f"{name}: rank {rank} (shape {shape[0]}, {shape[1]}), the adapter's rank is {spec.rank}")
        sides.setdefault(module, set()).add(side)
    for module, present in sides.items():
        if len(present) != 2:
            missing = "B" if "A" in present else "A"
            raise AdapterError(f"base_model.model.{module}.lora_{missing}.weight is missing")
    total = 4 * sum(math.prod(shape) for shape in shapes.values())
    if total > MAX_STATE_BYTES:
        raise AdapterError(f"the adapter's weights take {total:,} bytes, at most {MAX_STATE_BYTES:,} are allowed")


def untouched_targets(names: Iterable[str], spec: AdapterSpec) -> tuple[str, ...]:
    """The target modules of a spec that none of these weights belongs to."""
    touched: set[str] = set()
    for name in names:
        touched.update(_suffixes(module_of(name)[0]))
    return tuple(target for target in spec.target_modules if target not in touched)


def verify_base(spec: AdapterSpec, fingerprint: str, name: str) -> str:
    """Checks that the base model at hand is the one the adapter was made for.

    Returns: a notice for the user where the adapter does not say (a stock PEFT folder), else an empty text.

    Raises:
        AdapterError: it is another one.
    """
    if not spec.base_fingerprint:
        return f"this adapter does not record its base ({spec.base or 'unnamed'}); it may not fit {name}"
    if spec.base_fingerprint == fingerprint:
        return ""
    made_for = (spec.base or "another base") + (f" at revision {spec.base_revision[:12]}" if spec.base_revision else "")
    raise AdapterError(
        f"this adapter was made for {made_for} (fingerprint {_short(spec.base_fingerprint)}), "
        f"not for {name} (fingerprint {_short(fingerprint)})",
        hint=f"load it onto {spec.base}" if spec.base and spec.base != name else "load the revision it was trained on",
    )


def _short(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:12]


def _suffixes(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _is_match(module: str, targets: frozenset[str], layers: frozenset[int] | None) -> bool:
    if module in targets:
        return True
    # By suffix and set, so that a hostile list of targets costs no more than an honest one.
    if targets.isdisjoint(_suffixes(module)):
        return False
    if layers is None:
        return True
    # PEFT takes the first number that has at least two names before it and one behind it.
    numbers = (int(part) for part in module.split(".")[2:-1] if part.isdecimal() and len(part) < 6)
    return next(numbers, -1) in layers


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # Not math.isfinite: it overflows on the huge whole numbers that JSON can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER


def _module_names(names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, tuple | list):
        raise AdapterError(f"target_modules: wanted a list of module names, got {shortened(names)}")
    if not 1 <= len(names) <= MAX_MODULES:
        raise AdapterError(f"target_modules: wanted 1 to {MAX_MODULES:,} names, got {len(names):,}")
    for name in names:
        if not isinstance(name, str) or len(name) > _MAX_NAME or not _MODULE_NAME.fullmatch(name):
            raise AdapterError(
                f"target_modules: {shortened(name)} is not a module name (letters, digits, underscores, dots)"
            )
    return tuple(sorted(set(names)))


def _layer_indices(layers: object) -> tuple[int, ...] | None:
    if layers is None:
        return None
    if not isinstance(layers, tuple | list) or not 1 <= len(layers) <= MAX_LAYER + 1:
        raise AdapterError(f"layers: wanted a list of layer numbers or nothing, got {shortened(layers)}")
    for layer in layers:
        if not _is_whole(layer) or not 0 <= layer <= MAX_LAYER:
            raise AdapterError(f"layers: wanted whole numbers from 0 to {MAX_LAYER}, got {shortened(layer)}")
    return tuple(sorted(set(layers)))
