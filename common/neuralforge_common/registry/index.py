"""The signed index of a registry: what is published, under one number that grows and until one time (after TUF).

TUF's snapshot and timestamp in one (https://theupdateframework.github.io/specification, §4.4 and §4.6): a registry, or
whoever stands before it, can neither serve an older state as the newest unnoticed, nor freeze one for longer than its
life, nor give other files under a name and a version than it gave before. It is DSSE in a bundle, as signatures
of adapters are, under a type of its own: one can never be taken for the other. Whoever reads one takes four steps:

    1 index     one signed text, by the registry's key that is known, and nothing else
    2 expiry    its time has not passed (a frozen registry)
    3 rollback  its number is not below one that was seen (an older index)
    4 history   no version that was seen has other files now, is gone, or is no longer yanked (an older registry)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from neuralforge_common.errors import AdapterError, SignatureError
from neuralforge_common.registry.release import Version, check_adapter_name, check_team
from neuralforge_common.signing.envelope import decode_bundle, encode_bundle, seal
from neuralforge_common.signing.keys import PublicKey, SigningKey
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

INDEX_TYPE = "application/vnd.neuralforge.registry-index+json"
MAX_INDEX_BYTES = 16 * 2**20

STEPS = ("index", "expiry", "rollback", "history")

_WHAT = "the index"
_MAX_VIEW = 8192
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """A version that was published; `digest` is its release's (release.py), `size` in bytes.

    Raises:
        AdapterError: a value that cannot be.
    """

    team: str
    name: str
    version: str
    digest: str
    size: int
    yanked: bool

    def __post_init__(self) -> None:
        check_team(self.team)
        check_adapter_name(self.name)
        Version(self.version)
        if not _SHA256.fullmatch(self.digest):
            raise AdapterError(f"digest: wanted 64 hex digits, got {shortened(self.digest)}")
        if type(self.size) is not int or self.size < 0:
            raise AdapterError(f"size: wanted a whole number from 0 on, got {shortened(self.size)}")
        if not isinstance(self.yanked, bool):
            raise AdapterError(f"yanked: wanted true or false, got {shortened(self.yanked)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Everything that one caller may see of a registry; `expires` is aware, in whole seconds.

    `view` says whose eyes it is for: with the same ones, nothing that was seen may be missing later.

    Raises:
        AdapterError: a value that cannot be, or a version that stands there twice.
    """

    registry: str
    version: int
    expires: datetime
    view: str = ""
    entries: tuple[IndexEntry, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.registry, str) or len(self.registry) > 200 or not is_plain_text(self.registry):
            raise AdapterError(f"registry: wanted one line of text, got {shortened(self.registry)}")
        if not isinstance(self.view, str) or len(self.view) > _MAX_VIEW or not is_plain_text(self.view):
            raise AdapterError(f"view: wanted one line of text, got {shortened(self.view)}")
        if type(self.version) is not int or not 0 <= self.version < 2**53:
            raise AdapterError(f"version: wanted a whole number from 0 on, got {shortened(self.version)}")
        seen = {(entry.team, entry.name, Version(entry.version).core) for entry in self.entries}
        if len(seen) != len(self.entries):
            raise AdapterError("a version stands there twice")

    def find(self, team: str, name: str, version: str) -> IndexEntry | None:
        """The entry of a version, whatever its build (`+…`)."""
        core = Version(version).core
        for entry in self.entries:
            if (entry.team, entry.name, Version(entry.version).core) == (team, name, core):
                return entry
        return None

    def latest(self, team: str, name: str) -> IndexEntry | None:
        """The newest version that is not yanked; a pre-release only where there is nothing else."""
        found = [e for e in self.entries if (e.team, e.name, e.yanked) == (team, name, False)]
        return max(found, key=lambda e: (not Version(e.version).is_prerelease, Version(e.version)), default=None)


def sign_index(index: Index, key: SigningKey) -> bytes:
    """The index as bytes that travel."""
    document = {
        "registry": index.registry,
        "view": index.view,
        "version": index.version,
        "expires": f"{index.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "entries": [asdict(entry) for entry in index.entries],
    }
    return encode_bundle(seal(key, INDEX_TYPE, json.dumps(document, separators=(",", ":")).encode()))


def read_index(data: bytes, key: PublicKey) -> Index:
    """Reads an index that a key has signed, whatever its age: step 1.

    Raises:
        SignatureError: it is none, or somebody else's; nothing of it is to be believed.
    """
    try:
        envelope = decode_bundle(data, payload_type=INDEX_TYPE, what=_WHAT, limit=MAX_INDEX_BYTES)
        if not envelope.is_by(key):
            raise SignatureError(
                f"{_WHAT} is not signed by the registry's key sha256:{key.fingerprint}",
                hint="somebody else may be answering for the registry: ask whoever runs it",
            )
        return _decode(envelope.payload)
    except AdapterError as error:
        raise SignatureError(error.message, hint=error.hint, step="index") from error


def check_current(index: Index, seen: Iterable[Index], *, now: datetime) -> None:
    """Checks that an index is the newest that can be had, against those that were seen before: steps 2 to 4.

    Raises:
        SignatureError: it has expired, is older than one of `seen`, or contradicts one.
    """
    if now >= index.expires:
        raise SignatureError(
            f"{_WHAT} has expired on {index.expires:%Y-%m-%d %H:%M} UTC",
            hint="is this machine's clock right? else somebody may be holding newer ones back",
            step="expiry",
        )
    seen = tuple(seen)
    last = max((each.version for each in seen), default=0)
    if index.version < last:
        raise SignatureError(
            f"{_WHAT} is older than one seen before: its number is {index.version}, seen was {last}",
            hint="somebody may be hiding what was published since; ask whoever runs the registry",
            step="rollback",
        )
    found = {_key(entry): entry for entry in index.entries}
    for before in seen:
        for entry in before.entries:
            if wrong := _contradiction(entry, found.get(_key(entry)), same_view=before.view == index.view):
                raise SignatureError(
                    f"{entry.team}/{entry.name}@{entry.version} {wrong}", hint=_RESTORED, step="history"
                )


_RESTORED = (
    "an older state of the registry may stand in for the newest: ask whoever runs it; "
    "if they restored a backup: neuralforge adapters login ADDRESS --anew"
)


def _contradiction(before: IndexEntry, now: IndexEntry | None, *, same_view: bool) -> str:
    """What is wrong between two sightings of a version; "" for nothing."""
    if now is None:
        # Others see less: who left a team, or shows no token.
        return "was seen before and is gone, and a version is never taken away" if same_view else ""
    if (now.digest, now.version) != (before.digest, before.version):
        return f"has other files than were seen before: sha256:{now.digest}, seen was sha256:{before.digest}"
    return "was yanked and is so no longer" if before.yanked and not now.yanked else ""


def _key(entry: IndexEntry) -> tuple[str, str, str]:
    return entry.team, entry.name, Version(entry.version).core


def _decode(payload: bytes) -> Index:
    document = parse_json_object(payload, what=_WHAT, limit=MAX_INDEX_BYTES)
    if document.keys() != {"registry", "view", "version", "expires", "entries"} or not isinstance(
        document["entries"], list
    ):
        raise AdapterError(f"{_WHAT}: wanted registry, view, version, expires and a list of entries")
    known = {item.name for item in fields(IndexEntry)}
    for entry in document["entries"]:
        if not isinstance(entry, dict) or entry.keys() != known:
            raise AdapterError(f"{_WHAT}: wanted entries of {', '.join(sorted(known))}, got {shortened(entry)}")
        if not all(isinstance(entry[name], str) for name in ("team", "name", "version", "digest")):
            raise AdapterError(f"{_WHAT}: team, name, version and digest of an entry are texts")
    expires = document["expires"]
    try:
        if not isinstance(expires, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", expires):
            raise ValueError
        moment = datetime.fromisoformat(expires)
    except ValueError as error:
        raise AdapterError(f"{_WHAT}: expires: wanted a time, got {shortened(expires)}") from error
    return Index(
        registry=document["registry"],  # type: ignore[arg-type]  # __post_init__ checks it
        view=document["view"],  # type: ignore[arg-type]
        version=document["version"],  # type: ignore[arg-type]
        expires=moment,
        entries=tuple(IndexEntry(**entry) for entry in document["entries"]),
    )
