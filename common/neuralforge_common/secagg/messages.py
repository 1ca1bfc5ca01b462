"""What clients and coordinator tell each other in a round under masks: JSON, bounded, every field checked.

Bytes are hexadecimal. Reading raises FederationError, or AdapterError, for everything that this program does not write.
Masked updates are not here: they travel as arrays (`fixed_point.pack`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from neuralforge_common.errors import FederationError
from neuralforge_common.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from neuralforge_common.secagg.shamir import SHARE_BYTES
from neuralforge_common.secagg.terms import MOST_CLIENTS
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

KEYS, SHARES, SURVIVORS, UNMASK = "keys", "shares", "survivors", "unmask"
"""The questions beside `train`, in their order, as Flower's queries are named."""

SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""Two shares, one of the seed and one of the mask key, under a tag."""

_MAX_BYTES = 8 * 2**20
_ADVERT = {
    "identity": KEY_BYTES,
    "mask_key": KEY_BYTES,
    "seal_key": KEY_BYTES,
    "promise": KEY_BYTES,
    "signature": SIGNATURE_BYTES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """A client's public keys for one attempt, signed with its identity; `promise` is its seed's commitment."""

    name: str
    identity: bytes
    mask_key: bytes
    seal_key: bytes
    promise: bytes
    signature: bytes

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.document(), sort_keys=True)

    def document(self) -> dict[str, str]:
        """As a JSON object."""
        return {key: value.hex() if isinstance(value, bytes) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, text: str) -> Advert:
        """Reads `to_json`."""
        return cls.from_document(_object(text, "the keys", {"name", *_ADVERT}, limit=4096))

    @classmethod
    def from_document(cls, document: object) -> Advert:
        """Reads `document`."""
        if not isinstance(document, dict) or document.keys() != {"name", *_ADVERT}:
            raise FederationError("the keys of a client are not complete")
        binary = {field: _binary(document[field], size, field) for field, size in _ADVERT.items()}
        return cls(name=_name(document["name"]), **binary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """Shares under seal: receiver → bytes as their dealer sends them."""

    shares: Mapping[str, bytes]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"shares": _hex(self.shares)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Sealed:
        """Reads `to_json`."""
        return cls(shares=_mapping(_object(text, "the shares", {"shares"})["shares"], SEALED_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Who has dealt shares, and those that are for one client: dealer → bytes under seal."""

    dealers: tuple[str, ...]
    shares: Mapping[str, bytes]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"dealers": self.dealers, "shares": _hex(self.shares)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Delivery:
        """Reads `to_json`."""
        document = _object(text, "the shares", {"dealers", "shares"})
        return cls(dealers=_names(document["dealers"]), shares=_mapping(document["shares"], SEALED_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """Whose masked updates have arrived."""

    names: tuple[str, ...]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"names": self.names})

    @classmethod
    def from_json(cls, text: str) -> Survivors:
        """Reads `to_json`."""
        return cls(names=_names(_object(text, "the survivors", {"names"})["names"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """A client's signature under the set of survivors."""

    signature: bytes

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"signature": self.signature.hex()})

    @classmethod
    def from_json(cls, text: str) -> Confirmation:
        """Reads `to_json`."""
        document = _object(text, "the signature", {"signature"}, limit=4096)
        return cls(signature=_binary(document["signature"], SIGNATURE_BYTES, "signature"))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskRequest:
    """Whose seeds and whose mask keys are asked for, and who has signed that these are the survivors."""

    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    signatures: Mapping[str, bytes]

    def to_json(self) -> str:
        """As JSON."""
        facts = {"survivors": self.survivors, "dropped": self.dropped, "signatures": _hex(self.signatures)}
        return json.dumps(facts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> UnmaskRequest:
        """Reads `to_json`."""
        document = _object(text, "the request to unmask", {"survivors", "dropped", "signatures"})
        return cls(
            survivors=_names(document["survivors"]),
            dropped=_names(document["dropped"]),
            signatures=_mapping(document["signatures"], SIGNATURE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasking:
    """One client's shares: of the seeds of survivors, and of the mask keys of those that have dropped out."""

    seeds: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"seeds": _hex(self.seeds), "mask_keys": _hex(self.mask_keys)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Unmasking:
        """Reads `to_json`."""
        document = _object(text, "the shares", {"seeds", "mask_keys"})
        return cls(
            seeds=_mapping(document["seeds"], SHARE_BYTES), mask_keys=_mapping(document["mask_keys"], SHARE_BYTES)
        )


def adverts_to_json(adverts: Iterable[Advert]) -> str:
    """Everybody's keys."""
    return json.dumps({"clients": [advert.document() for advert in adverts]})


def adverts_from_json(text: str) -> tuple[Advert, ...]:
    """Reads `adverts_to_json`."""
    found = _object(text, "everybody's keys", {"clients"})["clients"]
    if not isinstance(found, list) or len(found) > MOST_CLIENTS:
        raise FederationError(f"everybody's keys: wanted a list of at most {MOST_CLIENTS:,}")
    return tuple(Advert.from_document(entry) for entry in found)


def _object(text: str, what: str, keys: set[str], *, limit: int = _MAX_BYTES) -> dict[str, Any]:
    document = parse_json_object(text.encode(errors="surrogatepass"), what=what, limit=limit)
    if document.keys() != keys:
        raise FederationError(f"{what}: wanted {', '.join(sorted(keys))}, got {len(document)} fields")
    return document


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not is_plain_text(value):
        raise FederationError(f"wanted the name of a client, got {shortened(value)}")
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MOST_CLIENTS:
        raise FederationError(f"wanted names of clients, got {shortened(value)}")
    names = tuple(_name(entry) for entry in value)
    if list(names) != sorted(set(names)):
        raise FederationError("names of clients stand in their order, each once")
    return names


def _binary(value: object, size: int, what: str) -> bytes:
    # By length and digits first: bytes.fromhex takes spaces.
    if not isinstance(value, str) or len(value) != 2 * size or set(value) - set("0123456789abcdef"):
        raise FederationError(f"{what}: wanted {size} bytes as hexadecimal digits, got {shortened(value)}")
    return bytes.fromhex(value)


def _mapping(value: object, size: int) -> dict[str, bytes]:
    if not isinstance(value, dict) or len(value) > MOST_CLIENTS:
        raise FederationError(f"wanted bytes by the names of clients, got {shortened(value)}")
    return {_name(name): _binary(entry, size, _name(name)) for name, entry in value.items()}


def _hex(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}
