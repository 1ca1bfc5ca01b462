"""Publishing: an adapter goes to a registry, in pieces that are not sent twice.

1 verify   the folder is signed by a key that is known here, byte for byte, and sound
2 gate     it was evaluated and beats its base; nothing travels before that
3 begin    the registry says what it has of this very upload
4 upload   each different file once, from where it broke off
5 finish   the registry checks all of it again, and the version is there, whole
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from neuralforge.registry.calls import BROKEN, TRIES, failures, wait_before
from neuralforge.registry.connection import MAX_PART_BYTES, Connection
from neuralforge_common.errors import AdapterError, RegistryError
from neuralforge_common.folder import METADATA, SIGNATURE
from neuralforge_common.metadata import MAX_METADATA_BYTES, AdapterMetadata, decode_metadata
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.gate import check_publishable
from neuralforge_common.registry.release import (
    ReleaseFile,
    ReleaseName,
    Version,
    check_adapter_name,
    check_tags,
    release_digest,
)
from neuralforge_common.signing.verify import Trust, VerifiedAdapter, verify_adapter

Visibility = Literal["public", "team", "private"]
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)

FINISH_TIMEOUT = 300.0

_MESSAGES: dict[Visibility, messages.Visibility] = {
    "public": messages.PUBLIC,
    "team": messages.TEAM,
    "private": messages.PRIVATE,
}

Progress = Callable[[int, int], None]
"""Bytes that the registry has, and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """An adapter that may be published: its folder, and what is in it."""

    folder: Path
    files: tuple[ReleaseFile, ...]
    verified: VerifiedAdapter

    def release(self, team: str) -> ReleaseName:
        """What it is called as a team's."""
        metadata = self.verified.adapter.metadata
        return ReleaseName(team=team, name=metadata.name, version=Version(metadata.version))

    @property
    def digest(self) -> str:
        """The release's digest."""
        return release_digest(self.files)

    @property
    def blobs(self) -> Mapping[str, ReleaseFile]:
        """Every different file, by its SHA-256."""
        return {file.sha256: file for file in self.files}


def read_claimed_metadata(folder: Path) -> AdapterMetadata:
    """What an adapter says of itself, for the gate before anything is signed or hashed; not yet verified.

    Raises:
        AdapterError: there is no metadata.json, or none that can be read.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            return decode_metadata(file.read(MAX_METADATA_BYTES + 1))
    except OSError as error:
        raise AdapterError(
            f"{folder}: cannot read {METADATA}: {error.strerror or error}",
            hint="an adapter that is published is a folder that neuralforge wrote, such as my-adapter.lora",
        ) from error


def prepare(folder: Path, trust: Trust) -> Publication:
    """Verifies an adapter and asks the gate: steps 1 and 2, without a network.

    Raises:
        AdapterError: it is not signed, was not evaluated, does not beat its base, or has a name that cannot be.
        SignatureError: its signature does not hold, or by a key that is not known here.
    """
    check_publishable(read_claimed_metadata(folder), signed=(folder / SIGNATURE).is_file())
    verified = verify_adapter(folder, trust)
    metadata = verified.adapter.metadata
    check_publishable(metadata, signed=True)
    check_adapter_name(metadata.name)
    Version(metadata.version)
    with (folder / SIGNATURE).open("rb") as file:
        signature = hashlib.file_digest(file, "sha256").hexdigest()
    digests = {**verified.manifest.files, SIGNATURE: signature}
    files = tuple(
        ReleaseFile(name=name, sha256=digest, size=(folder / name).stat().st_size)
        for name, digest in sorted(digests.items())
    )
    return Publication(folder=folder, files=files, verified=verified)


def publishing_team(connection: Connection, team: str | None) -> str:
    """The team to publish for: the one that is named, or the only one that the caller may publish for.

    Raises:
        RegistryError: there is none, or there are several.
    """
    if team is not None:
        return team
    mine = sorted(name for name, scope in connection.teams.items() if scope >= messages.PUBLISH)
    if len(mine) == 1:
        return mine[0]
    who = connection.caller or "nobody in particular"
    if not mine:
        raise RegistryError(
            f"the registry takes this machine for {who}, who may publish for no team",
            hint="ask whoever runs it: nf-server registry team add TEAM --member NAME, or a token with --scope publish",
        )
    raise RegistryError(f"{who} may publish for {', '.join(mine)}: wanted one of them", hint=f"--team {mine[0]}")


def publish(
    connection: Connection,
    publication: Publication,
    release: ReleaseName,
    *,
    visibility: Visibility,
    tags: Sequence[str] = (),
    languages: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> str:
    """Publishes what was prepared as `release`: steps 3 to 5; returns its digest. The same call again goes on.

    Raises:
        RegistryError: the registry says no, or the connection broke and did not come back; what arrived is kept there.
    """
    begin = messages.BeginPublishRequest(
        team=release.team,
        name=release.name,
        version=str(release.version),
        visibility=_MESSAGES[visibility],
        tags=check_tags(tags),
        languages=check_tags(languages),
        files=[messages.File(name=each.name, sha256=each.sha256, size=each.size) for each in publication.files],
    )
    blobs = publication.blobs
    total = sum(blob.size for blob in blobs.values())
    tries, most = 0, -1
    while True:
        try:
            # 3. The same request is the same upload, however often it breaks off.
            reply = connection.call("BeginPublish", begin, messages.BeginPublishReply, timeout=FINISH_TIMEOUT)
            held = {each.sha256: each.bytes for each in reply.held if each.sha256 in blobs}
            done = sum(held.values())
            tries, most = (0, done) if done > most else (tries, most)
            progress(done, total)
            # 4. Each different file, from where it broke off.
            for digest, blob in blobs.items():
                offset = held.get(digest, 0)
                if offset < blob.size:
                    told = partial(_told, progress, done - offset, total)
                    _upload(connection, blob, _parts(reply.upload, publication.folder / blob.name, blob, offset, told))
                    done += blob.size - offset
            break
        except RegistryError as error:
            tries += 1
            if error.status not in BROKEN or tries >= TRIES:
                raise
            wait_before(tries)
    # 5. What the registry has found is what was meant.
    finish = messages.FinishPublishRequest(upload=reply.upload)
    finished = connection.call("FinishPublish", finish, messages.FinishPublishReply, timeout=FINISH_TIMEOUT)
    if finished.digest != publication.digest:
        raise RegistryError(
            f"the registry published another release than was sent: sha256:{finished.digest[:64]}, "
            f"wanted sha256:{publication.digest}",
            hint="ask whoever runs the registry",
        )
    return publication.digest


def _told(progress: Progress, others: int, total: int, done: int) -> None:
    progress(others + done, total)


def _upload(connection: Connection, blob: ReleaseFile, parts: Iterator[messages.UploadPart]) -> None:
    with failures():
        held = connection.stream("Upload", parts).bytes
    if held != blob.size:
        raise RegistryError(f"the registry has {held:,} of {blob.size:,} bytes of {blob.name}", status="ABORTED")


def _parts(
    upload: str, path: Path, blob: ReleaseFile, offset: int, progress: Callable[[int], None]
) -> Iterator[messages.UploadPart]:
    yield messages.UploadPart(start=messages.UploadStart(upload=upload, sha256=blob.sha256, offset=offset))
    with path.open("rb") as file:
        file.seek(offset)
        while offset < blob.size and (data := file.read(min(blob.size - offset, MAX_PART_BYTES))):
            yield messages.UploadPart(data=data)
            offset += len(data)
            progress(offset)
