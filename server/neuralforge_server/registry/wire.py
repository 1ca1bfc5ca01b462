"""The registry's nouns as the messages of registry.proto."""

from __future__ import annotations

from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_server.registry.access import Scope
from neuralforge_server.registry.published import Release, Visibility

SCOPES: dict[Scope, messages.Scope] = {
    "read": messages.READ,
    "publish": messages.PUBLISH,
    "admin": messages.ADMIN,
}
VISIBILITIES: dict[int, Visibility] = {
    messages.PUBLIC: "public",
    messages.TEAM: "team",
    messages.PRIVATE: "private",
}
_VISIBILITY: dict[Visibility, messages.Visibility] = {
    "public": messages.PUBLIC,
    "team": messages.TEAM,
    "private": messages.PRIVATE,
}


def release(found: Release) -> messages.Release:
    """A release as a message."""
    return messages.Release(
        team=found.team,
        name=found.name,
        version=found.version,
        visibility=_VISIBILITY[found.visibility],
        tags=found.tags,
        languages=found.languages,
        files=[messages.File(name=file.name, sha256=file.sha256, size=file.size) for file in found.files],
        digest=found.digest,
        size=found.size,
        signer=found.signer,
        publisher=found.publisher,
        published=found.published,
        yanked=found.yanked is not None,
        yank_reason=found.yank_reason,
        downloads=found.downloads,
        description=found.description,
        author=found.author,
        license=found.license,
        base_model=found.base_model,
        base_fingerprint=found.base_fingerprint,
        allow_worse=found.allow_worse,
    )
