"""Yanking: a version that was a mistake is no longer found, and stays for those who name it."""

from __future__ import annotations

from neuralforge.registry.connection import Connection
from neuralforge_common.errors import UsageError
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.release import ReleaseName


def yank(connection: Connection, release: ReleaseName, *, reason: str) -> None:
    """Takes a version out of searches and of "the latest".

    Raises:
        UsageError: no version is named.
        RegistryError: there is none, or it is not this caller's to yank.
    """
    if release.version is None:
        raise UsageError(f"which version of {release}? wanted {release}@1.2.0")
    request = messages.YankRequest(team=release.team, name=release.name, version=str(release.version), reason=reason)
    connection.call("Yank", request, messages.YankReply)
