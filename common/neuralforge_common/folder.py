"""The `.lora` folder: written in one piece, and believed only after every byte that counts was checked.

    metadata.json                what it is, what it was made for, digests           (ours, from the guide)
    lora_weights.bin             the weights, always safetensors                     (ours, from the guide)
    adapter_model.safetensors    the same file under PEFT's name                     (PEFT)
    adapter_config.json          rank, alpha, targets                                (PEFT)
    README.md                    a model card
    tokenizer.json               custom tokens (optional)
    model.sig                    who vouches for all of the above (optional, see signing/)

A folder that PEFT itself has saved (the two PEFT files alone) can be read, too.
"""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from neuralforge_common.adapter import (
    AdapterSpec,
    AdapterState,
    untouched_targets,
    validate_shapes,
    validate_state,
    verify_base,
)
from neuralforge_common.atomic import recover_folder, replace_folder
from neuralforge_common.card import model_card
from neuralforge_common.codec import decode_tensors, encode_tensors
from neuralforge_common.errors import AdapterError, StorageError
from neuralforge_common.metadata import (
    MAX_METADATA_BYTES,
    AdapterMetadata,
    Evaluation,
    Scores,
    decode_metadata,
    encode_metadata,
)
from neuralforge_common.peft_config import MAX_CONFIG_BYTES, decode_peft_config, encode_peft_config
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

__all__ = [
    "AdapterClaims",
    "AdapterFolder",
    "AdapterMetadata",
    "Evaluation",
    "Scores",
    "check_replaceable",
    "is_adapter_folder",
    "read_adapter_claims",
    "read_adapter_folder",
    "verify_base",
    "write_adapter_folder",
]

METADATA = "metadata.json"
WEIGHTS = "lora_weights.bin"
CARD = "README.md"
TOKENIZER = "tokenizer.json"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
SIGNATURE = "model.sig"

MAX_WEIGHTS_BYTES = 4 * 2**30
MAX_TOKENIZER_BYTES = 64 * 2**20

_OWN_NAMES = frozenset({METADATA, WEIGHTS, CARD, TOKENIZER, PEFT_CONFIG, PEFT_WEIGHTS, SIGNATURE})
# Names under which PEFT and torch keep pickles.
_PICKLES = ("adapter_model.bin", "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """A folder that was read and found sound; `notices` are lines for the user about what could not be checked."""

    spec: AdapterSpec
    state: AdapterState
    metadata: AdapterMetadata
    path: Path
    tokenizer_path: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights' file, 64 hex digits; where metadata lacks it, of the file that we would write."""
        known = self.metadata.digests
        return known.get(PEFT_WEIGHTS) or known.get(WEIGHTS) or hashlib.sha256(encode_tensors(self.state)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterClaims:
    """What a folder says of itself in its small, checked files; the weights, of so many bytes, were not opened."""

    spec: AdapterSpec
    metadata: AdapterMetadata | None
    weights_bytes: int
    path: Path


def write_adapter_folder(
    path: Path,
    *,
    spec: AdapterSpec,
    state: AdapterState,
    metadata: AdapterMetadata,
    tokenizer_json: bytes | None = None,
) -> AdapterMetadata:
    """Writes an adapter folder atomically, in the place of an older one; returns the metadata, completed.

    Raises:
        AdapterError: the weights do not belong to the spec, or hold values that are not finite.
        StorageError: `path` is something else than an adapter folder, or cannot be written.
    """
    path = Path(path)
    validate_state(state, spec)
    check_replaceable(path)
    if tokenizer_json is not None:
        parse_json_object(tokenizer_json, what=TOKENIZER, limit=MAX_TOKENIZER_BYTES)
    weights, config = encode_tensors(state), encode_peft_config(spec)
    files = {PEFT_CONFIG: config, PEFT_WEIGHTS: weights} | ({TOKENIZER: tokenizer_json} if tokenizer_json else {})
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    metadata = replace(
        metadata,
        base_model=metadata.base_model or spec.base,
        base_revision=spec.base_revision,
        base_fingerprint=spec.base_fingerprint,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        size_mb=round(len(weights) / 1e6, 3),
        # README.md is left out: people are meant to edit it.
        digests=digests | {WEIGHTS: digests[PEFT_WEIGHTS]},
    )
    with replace_folder(path) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            (folder / WEIGHTS).hardlink_to(folder / PEFT_WEIGHTS)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / PEFT_WEIGHTS, folder / WEIGHTS)
        (folder / CARD).write_text(model_card(metadata, spec), encoding="utf-8")
        (folder / METADATA).write_bytes(encode_metadata(metadata))
    return metadata


def read_adapter_folder(path: Path) -> AdapterFolder:
    """Reads an adapter folder and checks it before anything of it is used.

    Only files that the format names are opened, never through links; anything else in the folder is left alone.

    Raises:
        AdapterError: there is no such folder, or it is damaged, hostile, or not plain LoRA.
    """
    path = Path(path)
    with _opened_folder(path) as (descriptor, names), _named(path):
        # 1. What it claims to be: small, bounded files.
        spec, metadata, config = _read_claims(descriptor, names)
        # 2. The weights: names, shapes and sizes before data, then values, then both names against each other.
        state, weights_digest = _read_weights(descriptor, names, spec)
        # Plain PEFT may be told to adapt modules that the base does not have; ours names only those that it adapted.
        if (metadata is None or not metadata.digests) and (absent := untouched_targets(state, spec)):
            spec = replace(spec, target_modules=tuple(name for name in spec.target_modules if name not in absent))
        validate_state(state, spec)
        # 3. Nothing was changed since it was written.
        found = {PEFT_CONFIG: hashlib.sha256(config).hexdigest()}
        found |= {name: weights_digest for name in (WEIGHTS, PEFT_WEIGHTS) if name in names}
        if TOKENIZER in names:
            with open_member(descriptor, TOKENIZER, MAX_TOKENIZER_BYTES) as (file, _):
                found[TOKENIZER] = hashlib.file_digest(file, "sha256").hexdigest()
        _check_digests(metadata, found)
    return AdapterFolder(
        spec=spec,
        state=state,
        metadata=metadata or _derived_metadata(path, spec, state, found),
        path=path,
        tokenizer_path=path / TOKENIZER if TOKENIZER in names else None,
        notices=() if spec.base_fingerprint else (_unverified(path, spec, metadata),),
    )


def read_adapter_claims(path: Path) -> AdapterClaims:
    """Reads what an adapter folder says of itself, however large its weights are; good for lists, not for use.

    Raises:
        AdapterError: there is no such folder, or its small files are damaged, hostile, or not of plain LoRA.
    """
    path = Path(path)
    with _opened_folder(path) as (descriptor, names), _named(path):
        spec, metadata, _ = _read_claims(descriptor, names)
        present = next((name for name in (PEFT_WEIGHTS, WEIGHTS) if name in names), None)
        if present is None:
            raise _no_weights(names)
        with open_member(descriptor, present, MAX_WEIGHTS_BYTES) as (_, status):
            size = status.st_size
    return AdapterClaims(spec=spec, metadata=metadata, weights_bytes=size, path=path)


def is_adapter_folder(path: Path) -> bool:
    """Whether `path` looks like an adapter folder: a folder with an `adapter_config.json`; nothing in it is read."""
    return (Path(path) / PEFT_CONFIG).is_file()


def check_replaceable(path: Path) -> None:
    """Checks that an adapter may be written to `path`: nothing is there yet, or nothing but an older adapter.

    Raises:
        StorageError: a file, a link or a folder with anything else in it is in the way.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "link" if path.is_symlink() else "file"
        raise StorageError(
            f"cannot write the adapter to {path}: a {kind} of this name is in the way",
            hint="choose another path or move it away",
        )
    if not path.is_dir():
        return
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(names - _OWN_NAMES)
    if names and (foreign or PEFT_CONFIG not in names):
        what = f"it holds {shortened(foreign[0])}" if foreign else f"it has no {PEFT_CONFIG}"
        raise StorageError(
            f"cannot write the adapter to {path}: a folder that is not just an adapter is there ({what})",
            hint="choose another path or move that folder away",
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the folder's path before every complaint about its content."""
    try:
        yield
    except AdapterError as error:
        raise AdapterError(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def _opened_folder(path: Path) -> Iterator[tuple[int, frozenset[str]]]:
    """Opens the folder once, so that all of its files come from the same one, and lists it."""
    with contextlib.suppress(OSError):  # a disk that cannot be written has nothing to recover
        recover_folder(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        hint = "an adapter is a folder, such as my-adapter.lora"
        raise AdapterError(f"{path}: cannot open the adapter: {reason}", hint=hint) from error
    try:
        with os.scandir(descriptor) as entries:
            names = frozenset(entry.name for entry in entries) & (_OWN_NAMES | {*_PICKLES})
        if PEFT_CONFIG not in names:
            raise AdapterError(f"{path}: not an adapter folder: {PEFT_CONFIG} is missing")
        yield descriptor, names
    finally:
        os.close(descriptor)


@contextmanager
def open_member(folder: int, name: str, limit: int) -> Iterator[tuple[BufferedReader, os.stat_result]]:
    """Opens a plain file of at most `limit` bytes in the folder of a descriptor.

    Raises:
        AdapterError: it is missing, a link, a pipe or the like, or too large.
    """
    # O_NOFOLLOW: a link could point at any file of this machine. O_NONBLOCK: a pipe would wait for ever.
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        link = stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        raise AdapterError(
            f"{name} {'is a link' if link else f'cannot be opened ({error.strerror})'}",
            hint="copy the folder with its files (cp -rL)" if link else "",
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise AdapterError(f"{name} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limit:
            raise AdapterError(f"{name} holds {status.st_size:,} bytes, at most {limit:,} are allowed")
        yield file, status


def _read_claims(folder: int, names: frozenset[str]) -> tuple[AdapterSpec, AdapterMetadata | None, bytes]:
    spec = decode_peft_config(config := _read_small(folder, PEFT_CONFIG, MAX_CONFIG_BYTES))
    metadata = None
    if METADATA in names:
        metadata = decode_metadata(_read_small(folder, METADATA, MAX_METADATA_BYTES))
        _check_agreement(spec, metadata)
        spec = replace(spec, base_fingerprint=metadata.base_fingerprint)
    return spec, metadata, config


def _read_small(folder: int, name: str, limit: int) -> bytes:
    with open_member(folder, name, limit) as (file, _):
        return file.read(limit + 1)


def _read_weights(folder: int, names: frozenset[str], spec: AdapterSpec) -> tuple[AdapterState, str]:
    present = [name for name in (PEFT_WEIGHTS, WEIGHTS) if name in names]
    if not present:
        raise _no_weights(names)
    with open_member(folder, present[0], MAX_WEIGHTS_BYTES) as (file, status):
        arrays, digest = decode_tensors(
            file, status.st_size, what=present[0], check_shapes=lambda shapes: validate_shapes(shapes, spec)
        )
        for name in present[1:]:
            with open_member(folder, name, MAX_WEIGHTS_BYTES) as (other, other_status):
                if os.path.samestat(status, other_status):
                    continue
                if status.st_size != other_status.st_size or hashlib.file_digest(other, "sha256").hexdigest() != digest:
                    raise AdapterError(
                        f"{present[0]} and {name} differ: they are two names of the same weights",
                        hint="one of them was replaced; ask for the adapter again",
                    )
    return AdapterState.adopt(arrays), digest


def _no_weights(names: frozenset[str]) -> AdapterError:
    if pickles := [name for name in _PICKLES if name in names]:
        return AdapterError(
            f"{pickles[0]} is a pickle, which can run any program when it is opened: it is never read",
            hint="save the adapter again with safe_serialization=True",
        )
    return AdapterError(f"the weights are missing: there is neither {PEFT_WEIGHTS} nor {WEIGHTS}")


def _check_agreement(spec: AdapterSpec, metadata: AdapterMetadata) -> None:
    claims: dict[str, tuple[object, object]] = {
        "rank": (metadata.rank, spec.rank),
        "alpha": (metadata.alpha, spec.alpha),
        "target_modules": (tuple(sorted(metadata.target_modules)) or None, spec.target_modules),
        "base_revision": (metadata.base_revision, spec.base_revision),
    }
    for key, (claimed, actual) in claims.items():
        if claimed is not None and claimed != actual:
            raise AdapterError(
                f"{METADATA} and {PEFT_CONFIG} disagree on {key}: {shortened(claimed)} and {shortened(actual)}"
            )


def _check_digests(metadata: AdapterMetadata | None, found: Mapping[str, str]) -> None:
    for name, digest in (metadata.digests if metadata else {}).items():
        if name in found and found[name] != digest:
            raise AdapterError(
                f"{name} was changed after the adapter was written: its SHA-256 is {found[name][:12]}…, "
                f"{METADATA} says {digest[:12]}…",
                hint="ask for the adapter again",
            )


def _derived_metadata(
    path: Path, spec: AdapterSpec, state: AdapterState, digests: Mapping[str, str]
) -> AdapterMetadata:
    name = path.absolute().name.removesuffix(".lora")
    return AdapterMetadata(
        name=name if name.strip() and is_plain_text(name) else "adapter",
        base_model=spec.base,
        base_revision=spec.base_revision,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        size_mb=round(state.nbytes / 1e6, 3),
        digests=digests,
    )


def _unverified(path: Path, spec: AdapterSpec, metadata: AdapterMetadata | None) -> str:
    why = "records no fingerprint of its base" if metadata else f"has no {METADATA}, as plain PEFT saves it"
    return f"{path} {why}: whether it fits {spec.base or 'the base'} cannot be checked"
