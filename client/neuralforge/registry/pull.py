"""Pulling: an adapter comes from a registry, and nothing of it is believed before the step that proves it.

    1 index      the index is one signed text, by the key that is known as the registry's
    2 expiry     it has not expired: nobody holds newer ones back for longer than its life
    3 rollback   it is not older than one that was seen
    4 history    nothing that was seen has other files, is gone, or is no longer yanked
    5 entry      the version stands in it; a yanked one counts only where it is named exactly
    6 release    the files that the registry lists are those that the index has the digest of
    7 blobs      each file has the size and the SHA-256 that the list says
    8 signature  the folder is signed by somebody who is trusted for that team, byte for byte, and sound (verify.py)
    9 name       what was signed has the name and the version that were asked for

Only then the folder takes its place, whole. What was downloaded before a break is kept, and not downloaded again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from neuralforge.registry.calls import failures
from neuralforge.registry.connection import Connection
from neuralforge.registry.download import download
from neuralforge.registry.home import PULLS
from neuralforge.registry.listing import Listing, listing
from neuralforge.registry.memory import believe_index
from neuralforge_common.atomic import replace_folder, storage_errors
from neuralforge_common.errors import AdapterError, RegistryError, SignatureError, StorageError
from neuralforge_common.folder import MAX_TOKENIZER_BYTES, MAX_WEIGHTS_BYTES, PEFT_WEIGHTS, WEIGHTS, check_replaceable
from neuralforge_common.key_files import make_private_folder
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.index import MAX_INDEX_BYTES, Index, IndexEntry
from neuralforge_common.registry.release import ReleaseName, Version, release_digest
from neuralforge_common.signing.trust import Keyring, Signer
from neuralforge_common.signing.verify import VerifiedAdapter, verify_adapter

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long what came in of a version is kept, if nobody goes on with it."""

STEPS = ("index", "expiry", "rollback", "history", "entry", "release", "blobs", "signature", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An adapter that was pulled and verified; `yanked` as the index says it."""

    path: Path
    yanked: bool
    listing: Listing
    verified: VerifiedAdapter
    signer: Signer
    index: Index


def pull(
    connection: Connection,
    wanted: ReleaseName,
    output: Path,
    *,
    keyring: Keyring,
    now: datetime,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Pulls a version, without one the latest, into the folder `output`; it is there whole, or as it was before.

    `progress` is told the bytes that are here and those of all.

    Raises:
        SignatureError: a step failed (`step`); `output` was not touched.
        RegistryError: the registry says no, or cannot be reached; another call goes on.
        StorageError: something is at `output`, or the disk refuses.
    """
    _check_free(output, replace=replace)
    # 1 to 4. What the registry holds, as it has signed it, and nothing older than what was seen.
    with _steps(wanted):
        index = believe_index(_fetch_index(connection), connection.known, now=now)
    # 5. One version of it.
    with _steps(wanted, "entry"):
        entry = _entry(index, wanted)
    release = ReleaseName(team=entry.team, name=entry.name, version=Version(entry.version))
    # 6. Its files. What else the registry tells of it is not proved, and only shown.
    request = messages.ResolveRequest(team=release.team, name=release.name, version=entry.version)
    described = listing(connection.call("Resolve", request, messages.Release))
    with _steps(release, "release"):
        _check_release(described, entry)
    pulls = connection.known.folder / PULLS
    make_private_folder(pulls)
    _sweep(pulls, before=now.timestamp() - KEPT_SECONDS)
    with _alone(pulls / entry.digest) as here:
        # 7. Each different file once.
        done, total = 0, entry.size
        blobs = {file.sha256: file for file in described.files}
        for digest, file in blobs.items():
            with _steps(release, "blobs"):
                download(connection, release, file, here / digest, progress=partial(_told, progress, done, total))
            done += file.size
        with replace_folder(output) as new:
            for file in described.files:
                _put(here / file.sha256, new / file.name)
            try:
                # 8. Signed by somebody of that team, whatever the registry says of it.
                with _steps(release, "signature"):
                    verified = verify_adapter(new, lambda f: keyring.trusted(f, team=release.team, now=now).key)
                # 9. And as what it was asked for: one adapter cannot stand in for another.
                with _steps(release, "name"):
                    _check_name(verified, release)
            except SignatureError as error:
                error.message = error.message.replace(f"{new}: ", "")
                raise
        shutil.rmtree(here, ignore_errors=True)
    signer = keyring.trusted(verified.key.fingerprint, team=release.team, now=now)
    return Pulled(path=output, yanked=entry.yanked, listing=described, verified=verified, signer=signer, index=index)


def _told(progress: Callable[[int, int], None], others: int, total: int, done: int) -> None:
    progress(others + done, total)


@contextmanager
def _steps(what: ReleaseName, name: str = "index") -> Iterator[None]:
    """Says which step it was that failed; one that names its step already keeps it."""
    try:
        yield
    except AdapterError as error:
        # What verify.py calls its steps are parts of this one.
        step = getattr(error, "step", "")
        step = step if step in STEPS and name != "signature" else name
        raise SignatureError(
            f"{what}: not pulled, step {STEPS.index(step) + 1} of {len(STEPS)}, {step}: {error.message}",
            hint=error.hint,
            step=step,
            fingerprint=getattr(error, "fingerprint", ""),
        ) from error


def _fetch_index(connection: Connection) -> bytes:
    data = bytearray()
    stream = connection.stream("Index", messages.IndexRequest())
    with failures():
        for part in stream:
            data += part.data
            if len(data) > MAX_INDEX_BYTES:
                stream.cancel()
                raise SignatureError(f"the index is larger than {MAX_INDEX_BYTES:,} bytes", step="index")
    return bytes(data)


def _entry(index: Index, wanted: ReleaseName) -> IndexEntry:
    if wanted.version is not None:
        entry = index.find(wanted.team, wanted.name, str(wanted.version))
    else:
        entry = index.latest(wanted.team, wanted.name)
    if entry is not None:
        return entry
    versions = [each for each in index.entries if (each.team, each.name) == (wanted.team, wanted.name)]
    if not versions:
        raise AdapterError(
            "the registry has no such adapter, or none for you", hint="neuralforge adapters search shows what there is"
        )
    if wanted.version is None:
        raise AdapterError(
            "every version of it was yanked",
            hint=f"if you must: neuralforge adapters pull {wanted}@{versions[-1].version}",
        )
    there = ", ".join(each.version for each in sorted(versions, key=lambda each: Version(each.version))[-5:])
    raise AdapterError(f"the registry has no such version; it has {there}")


def _check_release(described: Listing, entry: IndexEntry) -> None:
    release = described.release
    if (release.team, release.name, str(release.version)) != (entry.team, entry.name, entry.version):
        raise AdapterError(f"the registry describes {release} in its place")
    digest = release_digest(described.files)
    size = sum({file.sha256: file.size for file in described.files}.values())
    if (digest, size) != (entry.digest, entry.size):
        raise AdapterError(
            f"the registry lists other files than its index says: sha256:{digest}, {size:,} bytes; "
            f"wanted sha256:{entry.digest}, {entry.size:,} bytes",
            hint="ask whoever runs the registry",
        )
    for file in described.files:
        limit = MAX_WEIGHTS_BYTES if file.name in (WEIGHTS, PEFT_WEIGHTS) else MAX_TOKENIZER_BYTES
        if file.size > limit:
            raise AdapterError(f"{file.name} has {file.size:,} bytes, at most {limit:,} are taken")


def _check_name(verified: VerifiedAdapter, release: ReleaseName) -> None:
    metadata = verified.adapter.metadata
    if (metadata.name, metadata.version) != (release.name, str(release.version)):
        raise AdapterError(
            f"what was signed is {metadata.name} {metadata.version}",
            hint="somebody has published it under another name: ask whoever runs the registry",
        )


def _check_free(output: Path, *, replace: bool) -> None:
    if not replace and os.path.lexists(output):
        raise StorageError(
            f"cannot write {output}: something of this name is there", hint="choose another place with -o, or --force"
        )
    check_replaceable(output)


def _sweep(pulls: Path, *, before: float) -> None:
    for folder in pulls.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another pull has just ended
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The folder for what is on its way, ours alone."""
    make_private_folder(folder)
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RegistryError("the same version is being pulled already", hint="wait until that has ended") from error
    try:
        yield folder
    finally:
        os.close(descriptor)


def _put(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without hard links
        target.hardlink_to(source)
        return
    shutil.copyfile(source, target)
