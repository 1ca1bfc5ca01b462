"""The identities of the other clients, kept as they were first seen: `peers.json`, private, a name and a key each.

What is seen first is believed. Whoever wants more compares fingerprints with the others, and then takes no new ones.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import AdapterError, FederationError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, read_private_file, write_private_file
from neuralforge_common.secagg.keys import KEY_BYTES, fingerprint
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

_FORMAT = 1
_MAX_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Who is known: name → identity; `closed`: nobody else is believed."""

    keys: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    closed: bool = False


class Pins:
    """The file of this machine's peers. It is read at every use: a command may change it while a client runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, shown: Mapping[str, bytes]) -> None:
        """Hold identities against those that were seen before, and keep the new ones.

        Raises:
            FederationError: one has changed, or is new and no new ones are taken. Nothing was kept then.
            StorageError: the file is damaged, cannot be used, or others may read it.
        """
        self.change(lambda known: self._with(known, shown))

    def change(self, to: Callable[[Peers], Peers]) -> Peers:
        """Read, change and write with nobody in between, and return what stands there then.

        A client that keeps a new peer must not undo `peers --close`. Raises as `to`, `read` and `write` do.
        """
        with storage_errors(self.path):
            # A file for that alone: a client that takes part holds its folder for as long as it runs.
            descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = self.read()
            after = to(before)
            if after != before:
                self.write(after)
            return after
        finally:
            os.close(descriptor)

    @staticmethod
    def _with(known: Peers, shown: Mapping[str, bytes]) -> Peers:
        for name, key in shown.items():
            pinned = known.keys.get(name)
            if pinned is not None and pinned != key:
                raise FederationError(
                    f"{name} shows another identity than before: {fingerprint(key)}, and it was {fingerprint(pinned)}",
                    hint=f"ask its owner; if it has joined anew and the new one is its own: nf-client peers --forget "
                    f"{name}",
                )
            if pinned is None and known.closed:
                raise FederationError(
                    f"{name} ({fingerprint(key)}) is none of the peers that this machine has agreed to",
                    hint="compare its fingerprint with its owner, then: nf-client peers --open",
                )
        return replace(known, keys={**known.keys, **shown})

    def read(self) -> Peers:
        """What the file says; nobody where there is none.

        Raises:
            StorageError: it is damaged, or others may read it.
        """
        if not self.path.exists():
            return Peers()
        try:
            data = read_private_file(self.path, limit=_MAX_BYTES)
            found = parse_json_object(data, what=str(self.path), limit=_MAX_BYTES)
        except AdapterError as fault:
            raise self._damaged(fault.message) from fault
        peers, closed = found.get("peers"), found.get("closed")
        if found.keys() != {"format", "peers", "closed"} or found["format"] != _FORMAT or not isinstance(closed, bool):
            raise self._damaged(f"wanted format {_FORMAT} with peers and closed")
        if not isinstance(peers, dict):
            raise self._damaged("wanted names and keys of peers")
        return Peers(keys={name: self._key(name, value) for name, value in peers.items()}, closed=closed)

    def write(self, peers: Peers) -> None:
        """Put the file down whole; raises StorageError, also where it would grow too large to be read again."""
        keys = {name: peers.keys[name].hex() for name in sorted(peers.keys)}
        document = {"format": _FORMAT, "closed": peers.closed, "peers": keys}
        data = json.dumps(document, indent=2).encode() + b"\n"
        if len(data) > _MAX_BYTES:
            raise StorageError(
                f"{self.path} cannot take {len(keys):,} peers: it may hold {_MAX_BYTES:,} bytes",
                hint="if the coordinator shows so many that nobody knows: nf-client peers --close",
            )
        write_private_file(self.path, data)

    def _key(self, name: str, value: object) -> bytes:
        try:
            key = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES or not is_plain_text(name):
            raise self._damaged(f"{shortened(name)}: got {shortened(value)}")
        return key

    def _damaged(self, why: str) -> StorageError:
        return StorageError(f"{self.path} is damaged: {why}", hint="remove it, and compare fingerprints anew")
