"""What this machine knows of the federations that it joined: one private folder for each.

$NEURALFORGE_HOME or ~/.neuralforge
└── federations/<host>_<port>/
├── federation.json    where it is, which one it is, who we are in it
├── ca.pem             its authority, pinned when we joined
├── node.key           our key: of the client certificate, and Flower's node key (P-384, OpenSSH's format)
├── node.pem           our certificate
├── identity.key       what we sign with under secure aggregation (Ed25519); it stays when node.key changes
├── peers.json         the identities of the others, as they were first seen
├── peers.lock         held while peers.json is being changed
├── node.key.next      only while the key is being changed; see rotate.py
└── memory/            what the training of later rounds builds on
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from neuralforge_common.address import FederationAddress, endpoint
from neuralforge_common.certificates import fingerprint, private_pem, read_certificate, read_private_key
from neuralforge_common.errors import AdapterError, FederationError, NeuralForgeError, StorageError, UsageError
from neuralforge_common.key_files import check_private, read_private_file
from neuralforge_common.secagg.keys import read_identity
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

RECORD, AUTHORITY, KEY, CERTIFICATE, NEXT_KEY = "federation.json", "ca.pem", "node.key", "node.pem", "node.key.next"
IDENTITY, PEERS, MEMORY = "identity.key", "peers.json", "memory"

_MAX_RECORD_BYTES = 16 * 1024
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationRecord:
    """What joining has told us; `fingerprint` is the authority's."""

    federation: str
    name: str
    host: str
    port: int
    member_port: int
    fleet_port: int
    fingerprint: str

    def to_json(self) -> bytes:
        """The content of `federation.json`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, what: str) -> FederationRecord:
        """Reads `federation.json`; `what` names it in errors.

        Raises:
            FederationError: anything in it that this program does not write.
        """
        try:
            values = parse_json_object(data, what=what, limit=_MAX_RECORD_BYTES)
            kinds = {field.name: int if field.type == "int" else str for field in fields(cls)}
            if values.pop("format", None) != _FORMAT or values.keys() != kinds.keys():
                raise FederationError(f"{what}: wanted format {_FORMAT} with {', '.join(kinds)}")
            for key, value in values.items():
                if type(value) is not kinds[key] or (isinstance(value, str) and not is_plain_text(value)):
                    raise FederationError(f"{what}: {key}: got {shortened(value)}")
            record = cls(**values)  # type: ignore[arg-type]  # kinds were checked above
            FederationAddress(host=record.host, port=record.port, fingerprint=record.fingerprint)
            for port in (record.member_port, record.fleet_port):
                FederationAddress(host=record.host, port=port)
        except (AdapterError, FederationError, UsageError) as error:
            raise FederationError(
                error.message, hint="have this machine revoked and invited again, remove the folder, and join"
            ) from error
        return record

    @property
    def address(self) -> FederationAddress:
        """The address that was joined, with its fingerprint."""
        return FederationAddress(host=self.host, port=self.port, fingerprint=self.fingerprint)

    @property
    def member_endpoint(self) -> str:
        """`host:port` of the membership service."""
        return endpoint(self.host, self.member_port)

    @property
    def fleet_endpoint(self) -> str:
        """`host:port` of Flower's Fleet API, over TLS by `authority_pem`."""
        return endpoint(self.host, self.fleet_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedFederation:
    """A federation that this machine belongs to, with the keys that say so."""

    folder: Path
    record: FederationRecord
    authority_pem: bytes
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def memory(self) -> Path:
        """Where client state that outlives a round is kept; the folder may not exist yet."""
        return self.folder / MEMORY

    @property
    def identity(self) -> Ed25519PrivateKey | None:
        """What this machine signs with under secure aggregation; None where it joined without.

        Raises:
            StorageError: the file is damaged, or others may read it.
        """
        path = self.folder / IDENTITY
        return read_identity(read_private_file(path), str(path)) if path.exists() else None

    @property
    def peers(self) -> Path:
        """The file of the other clients' identities; it may not exist yet."""
        return self.folder / PEERS

    @property
    def key_pem(self) -> bytes:
        """The node's key as PKCS 8."""
        return private_pem(self.key)


def client_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of everything that clients keep: `$NEURALFORGE_HOME`, or `~/.neuralforge`."""
    named = environ.get("NEURALFORGE_HOME")
    return Path(named) if named else Path.home() / ".neuralforge"


def federations_folder(home: Path) -> Path:
    """Where the folders of federations are."""
    return home / "federations"


def federation_folder(home: Path, address: FederationAddress) -> Path:
    """The folder of the federation at an address, whether it was joined or not."""
    return federations_folder(home) / f"{address.host.replace(':', '-')}_{address.port}"


def open_federation(address: FederationAddress | None, *, home: Path) -> JoinedFederation:
    """Opens the federation at an address; without one, the only federation that was joined.

    Raises:
        FederationError: it was not joined, the address has another fingerprint, or there are several to choose from.
        StorageError: a file is missing, damaged, or others may read it.
    """
    if address is None:
        address = _only_address(home)
    folder = federation_folder(home, address)
    if not (folder / RECORD).exists():
        raise FederationError(f"this machine has not joined {address}", hint=f"nf-client join {_pinned(address)} TOKEN")
    check_private(folder.parent)
    check_private(folder)
    record = FederationRecord.from_json(_read(folder / RECORD), str(folder / RECORD))
    if address.fingerprint not in (None, record.fingerprint):
        raise FederationError(
            f"{address.endpoint} was joined as another federation: its fingerprint was {record.fingerprint}, "
            f"the address has {address.fingerprint}",
            hint=f"if the federation was made anew, remove {folder} and join it",
        )
    return _with_keys(folder, record)


def _with_keys(folder: Path, record: FederationRecord) -> JoinedFederation:
    try:
        return _read_keys(folder, record)
    except NeuralForgeError as error:
        error.hint = error.hint or _rejoin(folder, record)  # a mode that is too loose has a way out of its own
        raise


def _read_keys(folder: Path, record: FederationRecord) -> JoinedFederation:
    authority_pem = _read(folder / AUTHORITY)
    try:
        authority = read_certificate(authority_pem, str(folder / AUTHORITY))
        certificate = read_certificate(_read(folder / CERTIFICATE), str(folder / CERTIFICATE))
    except FederationError as error:
        raise StorageError(error.message) from error
    if fingerprint(authority) != record.fingerprint:
        raise StorageError(f"{folder / AUTHORITY} is not the authority that was pinned")
    key = read_private_key(read_private_file(folder / KEY), str(folder / KEY))
    if key.public_key() != certificate.public_key() and (folder / NEXT_KEY).exists():
        # A change of keys stopped after the new certificate came in: the key that belongs to it takes its place.
        key = read_private_key(read_private_file(folder / NEXT_KEY), str(folder / NEXT_KEY))
        if key.public_key() == certificate.public_key():
            (folder / NEXT_KEY).replace(folder / KEY)
    if key.public_key() != certificate.public_key():
        raise StorageError(f"{folder / CERTIFICATE} is not for {KEY} beside it")
    return JoinedFederation(folder=folder, record=record, authority_pem=authority_pem, certificate=certificate, key=key)


def _only_address(home: Path) -> FederationAddress:
    folder = federations_folder(home)
    records = []
    for path in sorted(folder.glob(f"*/{RECORD}")):
        try:
            records.append(FederationRecord.from_json(path.read_bytes(), str(path)))
        except (OSError, NeuralForgeError):
            continue  # a damaged one is not the only one: it has to be named to be complained about
    if not records:
        raise FederationError("this machine has not joined a federation", hint="nf-client join nf://host:port#… TOKEN")
    if len(records) > 1:
        raise FederationError(
            f"this machine has joined {len(records)} federations: wanted one of them to be named",
            hint="--server " + " or ".join(f"nf://{record.address.endpoint}" for record in records),
        )
    return records[0].address


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _pinned(address: FederationAddress) -> str:
    return str(address) if address.fingerprint else f"{address}#sha256:…"


def _rejoin(folder: Path, record: FederationRecord) -> str:
    return f"have {record.name} revoked and invited again, remove {folder}, and join"
