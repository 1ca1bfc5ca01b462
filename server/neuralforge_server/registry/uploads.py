"""What is on its way in: a folder per upload, that nobody sees and that goes away when nobody goes on with it.

    uploads/<id>/request.json     who publishes what: the id is its digest, so the same request finds the same upload
                 done.json        the same, once it is published: whoever missed the answer may ask again
                <sha256>.part     what has come in of a blob; it may be torn, and is hashed before it counts
                <sha256>          a blob that is whole

The folder is this machine's, whatever store the blobs go to in the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from neuralforge_common.atomic import storage_errors, sync_folder
from neuralforge_common.errors import RegistryError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder, write_private_file
from neuralforge_common.registry.release import ReleaseFile, ReleaseName, Version
from neuralforge_common.strict_json import parse_json_object
from neuralforge_server.registry.published import Visibility

UPLOAD_LIFE = 24 * 3600.0
"""Seconds after which an upload that nobody has gone on with is removed."""

_REQUEST, _DONE = "request.json", "done.json"
_MAX_REQUEST_BYTES = 64 * 1024
_PATIENCE = 10.0
"""Seconds for which a call waits for another one of the same upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """Who wants to publish what."""

    publisher: str
    team: str
    name: str
    version: str
    visibility: Visibility
    tags: tuple[str, ...]
    languages: tuple[str, ...]
    files: tuple[ReleaseFile, ...]

    @property
    def release(self) -> ReleaseName:
        """What it is to be called."""
        return ReleaseName(team=self.team, name=self.name, version=Version(self.version))

    @property
    def sizes(self) -> dict[str, int]:
        """Every different blob and its size."""
        return {file.sha256: file.size for file in self.files}

    def to_json(self) -> bytes:
        """Equal requests give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, what: str) -> UploadRequest:
        """Reads what `to_json` wrote; raises StorageError for anything else."""
        try:
            document = parse_json_object(data, what=what, limit=_MAX_REQUEST_BYTES)
            document["files"] = tuple(ReleaseFile(**each) for each in document["files"])  # type: ignore[attr-defined]
            for name in ("tags", "languages"):
                document[name] = tuple(document[name])  # type: ignore[arg-type]
            return cls(**document)  # type: ignore[arg-type]
        except (KeyError, TypeError, RegistryError) as error:
            raise StorageError(f"{what} is damaged") from error


class Uploads:
    """The uploads in a folder that this process alone uses. Threads may share it; `clock` gives seconds since 1970."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        if not folder.exists():
            make_private_folder(folder)

    def begin(self, request: UploadRequest, *, most: int, room: int) -> str:
        """The upload of a request: a fresh one, or the one that is under way; returns its id.

        Raises:
            RegistryError: the team has `most` others under way, or all of them would take more than `room` bytes
                (RESOURCE_EXHAUSTED).
            StorageError: the disk refuses.
        """
        data = request.to_json()
        upload = hashlib.sha256(data).hexdigest()[:32]
        with self._lock:
            if not (self._folder / upload / _REQUEST).exists():
                others = [each for each in self._under_way() if each.team == request.team]
                if len(others) >= most or sum(sum(each.sizes.values()) for each in (request, *others)) > room:
                    raise RegistryError(
                        f"the team {request.team} has {len(others)} uploads under way, there is no room for this one",
                        hint="finish them, or wait: one that nobody goes on with is removed within a day",
                        status="RESOURCE_EXHAUSTED",
                    )
                make_private_folder(self._folder / upload)
                write_private_file(self._folder / upload / _REQUEST, data)
            self._touch(upload)
        return upload

    def request(self, upload: str, publisher: str) -> UploadRequest:
        """What an upload is of; raises RegistryError where it is not there, or somebody else's (NOT_FOUND)."""
        # Only a name that we could have given is ever a path.
        if len(upload) == 32 and upload.isalnum() and upload.isascii():
            found = self._read(self._folder / upload / _REQUEST) or self._read(self._folder / upload / _DONE)
            if found is not None and found.publisher == publisher:
                return found
        raise RegistryError(
            "there is no such upload, or not any more", hint="begin to publish anew", status="NOT_FOUND"
        )

    def expires(self) -> float:
        """Until when an upload that was gone on with just now is kept, in seconds since 1970."""
        return self._clock() + UPLOAD_LIFE

    def held(self, upload: str, request: UploadRequest) -> dict[str, int]:
        """How many bytes of each blob are here, for who is alone with the upload; whole ones are the right ones."""
        for digest, size in request.sizes.items():
            part = self.blob(upload, digest).with_suffix(".part")
            # A crash behind the last byte leaves one that is whole and was not looked at.
            if part.exists() and part.stat().st_size >= size:
                with contextlib.suppress(RegistryError):  # it is gone, then, and travels again
                    self._complete(part, self.blob(upload, digest), digest)
        return {digest: self._held(upload, digest) for digest in request.sizes}

    def receive(self, upload: str, request: UploadRequest, digest: str, offset: int, parts: Iterable[bytes]) -> int:
        """Goes on with a blob; returns the bytes that are held, all of them on the disk, also where `parts` breaks off.

        Raises:
            RegistryError: no blob of this upload, another offset than what is held, more bytes than were announced, or
                other bytes (what is here of it is then thrown away); somebody is sending it already (ABORTED).
            StorageError: the disk refuses.
        """
        size = request.sizes.get(digest)
        if size is None:
            raise RegistryError("this upload has no such blob", status="INVALID_ARGUMENT")
        with self.alone(upload):
            held = self._held(upload, digest)
            if offset != held:
                raise RegistryError(
                    f"offset: {held:,} bytes of this blob are here, got {offset:,}", status="INVALID_ARGUMENT"
                )
            place = self._folder / upload / digest
            if held == size and place.exists():
                return held
            part = place.with_suffix(".part")
            with storage_errors(part), self._appending(part) as file:
                for data in parts:
                    held += len(data)
                    if held > size:
                        raise RegistryError(
                            f"more bytes than the {size:,} that were announced", status="INVALID_ARGUMENT"
                        )
                    file.write(data)
                    self._touch(upload)
            if held == size:
                self._complete(part, place, digest)
            return held

    @contextmanager
    def alone(self, upload: str) -> Iterator[None]:
        """Keeps everybody else from this upload; raises RegistryError where somebody stays at it (ABORTED)."""
        with self._lock:
            # Who goes on after a break comes back before the call that broke off has ended here.
            if not self._free.wait_for(lambda: upload not in self._busy, timeout=_PATIENCE):
                raise RegistryError("this upload is being sent by another call", status="ABORTED")
            self._busy.add(upload)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(upload)
                self._free.notify_all()

    @contextmanager
    def assembled(self, upload: str, request: UploadRequest) -> Iterator[Path]:
        """The adapter folder of an upload that is whole, for as long as the block runs.

        Raises:
            RegistryError: something has not come in yet (FAILED_PRECONDITION).
            StorageError: the disk refuses.
        """
        folder = self._folder / upload / "adapter"
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                for file in request.files:
                    blob = self.blob(upload, file.sha256)
                    if not blob.exists():
                        raise RegistryError(f"{file.name} has not come in yet", status="FAILED_PRECONDITION")
                    os.link(blob, folder / file.name)
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, upload: str, digest: str, chunks: Iterable[bytes]) -> None:
        """Takes a blob that the registry has already into an upload, so that it need not travel."""
        place = self.blob(upload, digest)
        if place.exists():
            return
        part = place.with_suffix(".part")
        part.unlink(missing_ok=True)
        with storage_errors(part), self._appending(part) as file:
            for chunk in chunks:
                file.write(chunk)
        self._complete(part, place, digest)

    def blob(self, upload: str, digest: str) -> Path:
        """Where a whole blob of an upload lies."""
        return self._folder / upload / digest

    def finish(self, upload: str) -> None:
        """Notes that an upload is published, and drops its blobs."""
        folder = self._folder / upload
        if (folder / _REQUEST).exists():
            (folder / _REQUEST).replace(folder / _DONE)
        for entry in folder.iterdir():
            if entry.name != _DONE:
                entry.unlink()

    def sweep(self, *, older: float = UPLOAD_LIFE) -> int:
        """Removes what nobody has gone on with for so many seconds; returns how many uploads that were."""
        before, removed = self._clock() - older, 0
        with self._lock:
            for folder in self._folder.iterdir():
                if folder.name not in self._busy and folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
        return removed

    def _under_way(self) -> list[UploadRequest]:
        found = (self._read(folder / _REQUEST) for folder in self._folder.iterdir())
        return [request for request in found if request is not None]

    def _read(self, path: Path) -> UploadRequest | None:
        try:
            with path.open("rb") as file:
                return UploadRequest.from_json(file.read(_MAX_REQUEST_BYTES + 1), str(path))
        except FileNotFoundError:
            return None

    def _held(self, upload: str, digest: str) -> int:
        for place in (self._folder / upload / digest, self._folder / upload / f"{digest}.part"):
            try:
                return place.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def _touch(self, upload: str) -> None:
        now = self._clock()
        os.utime(self._folder / upload, (now, now))

    @contextmanager
    def _appending(self, part: Path) -> Iterator[BinaryIO]:
        descriptor = os.open(part, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        with os.fdopen(descriptor, "ab") as file:
            try:
                yield file
            finally:
                file.flush()
                os.fsync(descriptor)

    def _complete(self, part: Path, place: Path, digest: str) -> None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            part.unlink()
            raise RegistryError(
                f"the bytes that came in are not those of sha256:{digest}", hint="send them again", status="DATA_LOSS"
            )
        part.rename(place)
        sync_folder(place.parent)
