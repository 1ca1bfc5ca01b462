"""Blobs that come in: hashed as they arrive, kept where they break off, and gone on with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuralforge.registry.calls import BROKEN, TRIES, failures, wait_before
from neuralforge.registry.connection import Connection
from neuralforge_common.atomic import storage_errors, sync_descriptor
from neuralforge_common.errors import RegistryError, SignatureError
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.release import ReleaseFile, ReleaseName

_CHUNK = 1 << 20


def download(
    connection: Connection,
    release: ReleaseName,
    file: ReleaseFile,
    place: Path,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Brings one file of a release to `place`, which appears once all of it has the file's SHA-256.

    What has come in lies in `place`.part; another call goes on from there. `progress` is told the bytes so far.

    Raises:
        SignatureError: other bytes than were published came in; they were thrown away.
        RegistryError: the registry says no, or the connection broke and did not come back.
        StorageError: the disk refuses.
    """
    if place.exists():
        progress(file.size)
        return
    part = place.with_name(f"{place.name}.part")
    with storage_errors(part):
        # The folder around it is private; in the end this is an ordinary file of an adapter.
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as target:
            found, done = hashlib.sha256(), 0
            # What is here may be torn: it counts for its digest alone, at the end.
            while chunk := target.read(_CHUNK):
                found.update(chunk)
                done += len(chunk)
            tries = 0
            while done < file.size:
                before = done
                try:
                    for data in _stream(connection, release, file, done):
                        done += len(data)
                        if done > file.size:
                            break
                        found.update(data)
                        target.write(data)
                        progress(done)
                    if before == done:
                        raise RegistryError(f"the registry sent nothing of {file.name}", status="UNAVAILABLE")
                except RegistryError as error:
                    tries = 0 if done > before else tries + 1
                    if error.status == "DATA_LOSS":
                        target.truncate(0)
                        raise SignatureError(
                            f"{file.name}: {error.message.removeprefix('the registry refused: ')}",
                            hint=error.hint,
                            step="blobs",
                        ) from error
                    if error.status not in BROKEN or tries >= TRIES:
                        raise
                    wait_before(tries)
            target.flush()
            sync_descriptor(descriptor)
    if done != file.size or found.hexdigest() != file.sha256:
        part.unlink()
        raise SignatureError(
            f"{file.name}: other bytes came in than were published: {done:,} with SHA-256 {found.hexdigest()[:12]}…, "
            f"wanted {file.size:,} with {file.sha256[:12]}…",
            hint="they were thrown away; pull again, and if it stays so, ask whoever runs the registry",
            step="blobs",
        )
    with storage_errors(place):
        part.rename(place)


def _stream(connection: Connection, release: ReleaseName, file: ReleaseFile, offset: int) -> Any:
    request = messages.DownloadRequest(
        team=release.team, name=release.name, version=str(release.version), file=file.name, offset=offset
    )
    stream = connection.stream("Download", request)
    try:
        with failures():
            for part in stream:
                yield part.data
    finally:
        stream.cancel()
