"""What a request must be before anything is done for it."""

from __future__ import annotations

from collections.abc import Iterator

from neuralforge_common.errors import RegistryError
from neuralforge_common.folder import MAX_TOKENIZER_BYTES, METADATA, PEFT_CONFIG, PEFT_WEIGHTS, SIGNATURE, WEIGHTS
from neuralforge_common.metadata import MAX_METADATA_BYTES
from neuralforge_common.peft_config import MAX_CONFIG_BYTES
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.release import RELEASE_FILES, ReleaseFile, check_tags, release_digest
from neuralforge_common.signing.envelope import MAX_BUNDLE_BYTES
from neuralforge_common.strict_json import is_plain_text
from neuralforge_server.registry import wire
from neuralforge_server.registry.access import Caller
from neuralforge_server.registry.published import Quota
from neuralforge_server.registry.uploads import UploadRequest

PART_BYTES = 512 * 1024
MAX_TAGS = 20
_MAX_TEXT = 200
_SMALL = {METADATA: MAX_METADATA_BYTES, PEFT_CONFIG: MAX_CONFIG_BYTES, SIGNATURE: MAX_BUNDLE_BYTES}
"""The greatest size of a file by its name, where it is less than others'."""


def upload_request(request: messages.BeginPublishRequest, caller: Caller, quota: Quota) -> UploadRequest:
    """What somebody wants to publish.

    Raises:
        AdapterError: a name, a version, a tag or a digest that cannot be.
        RegistryError: files that are none of an adapter's, or too large.
    """
    if not 1 <= len(request.files) <= len(RELEASE_FILES):
        raise malformed(f"files: wanted 1 to {len(RELEASE_FILES)}, got {len(request.files):,}")
    files = tuple(
        sorted(
            (ReleaseFile(name=each.name, sha256=each.sha256, size=each.size) for each in request.files),
            key=lambda file: file.name,
        )
    )
    sizes: dict[str, int] = {}
    for file in files:
        limit = quota.blob_bytes
        if file.name not in (WEIGHTS, PEFT_WEIGHTS):
            limit = min(limit, _SMALL.get(file.name, MAX_TOKENIZER_BYTES))
        if not 1 <= file.size <= limit:
            raise RegistryError(
                f"{file.name}: wanted 1 to {limit:,} bytes, got {file.size:,}", status="RESOURCE_EXHAUSTED"
            )
        if sizes.setdefault(file.sha256, file.size) != file.size:
            raise malformed(f"{file.name}: one digest, two sizes")
    release_digest(files)
    if request.visibility not in wire.VISIBILITIES:
        raise malformed("visibility: wanted public, team or private")
    wanted = UploadRequest(
        publisher=caller.name,
        team=request.team,
        name=request.name,
        version=request.version,
        visibility=wire.VISIBILITIES[request.visibility],
        tags=check_tags(request.tags, most=MAX_TAGS),
        languages=check_tags(request.languages, most=MAX_TAGS),
        files=files,
    )
    _ = wanted.release  # what cannot be a name or a version is refused here
    return wanted


def upload_data(parts: Iterator[messages.UploadPart]) -> Iterator[bytes]:
    """The bytes of an upload behind its first message; raises RegistryError for what is none."""
    for part in parts:
        if part.WhichOneof("what") != "data" or not 1 <= len(part.data) <= PART_BYTES:
            raise malformed(f"every message but the first holds 1 to {PART_BYTES:,} bytes of data")
        yield part.data


def check_line(what: str, text: str) -> None:
    """Checks a text of a request; raises RegistryError where it is not one short line."""
    if len(text) > _MAX_TEXT or not is_plain_text(text):
        raise malformed(f"{what}: wanted one line of at most {_MAX_TEXT} characters")


def malformed(message: str) -> RegistryError:
    """A request that no client of ours sends."""
    return RegistryError(message, status="INVALID_ARGUMENT")
