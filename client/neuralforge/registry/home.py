"""What this machine knows of registries: one private folder for each.

$NEURALFORGE_HOME or ~/.neuralforge
└── registries/<host>_<port>/
├── registry.json    where it is, whose it is, and the key that its index is signed with
├── ca.pem           its authority, pinned by the address
├── token            what we show (optional; a machine that has joined the federation shows its certificate)
├── indexes/         the last index of each view that was seen; see memory.py
└── pulls/           files that are on their way
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from neuralforge_common.address import FederationAddress, endpoint
from neuralforge_common.certificates import fingerprint, read_certificate
from neuralforge_common.errors import NeuralForgeError, RegistryError, StorageError
from neuralforge_common.key_files import check_private, make_private_folder, read_private_file, write_private_file
from neuralforge_common.signing.keys import PublicKey, decode_public_key
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

RECORD, AUTHORITY, TOKEN, INDEXES, PULLS = "registry.json", "ca.pem", "token", "indexes", "pulls"

DEFAULT_PORT = 8474

_FORMAT = 1
_FIELDS = {"format", "registry", "host", "port", "member_port", "fingerprint", "index_key"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRegistry:
    """A registry that was logged in to; `fingerprint` is its authority's, `member_port` is for mutual TLS."""

    folder: Path
    registry: str
    host: str
    port: int
    member_port: int
    fingerprint: str
    authority_pem: bytes
    index_key: PublicKey

    @property
    def address(self) -> FederationAddress:
        """Where it is, with its fingerprint."""
        return FederationAddress(host=self.host, port=self.port, fingerprint=self.fingerprint)


def registries_folder(home: Path) -> Path:
    """Where the folders of registries are."""
    return home / "registries"


def registry_folder(home: Path, address: FederationAddress) -> Path:
    """The folder of the registry at an address, whether it is known or not."""
    return registries_folder(home) / f"{address.host.replace(':', '-')}_{address.port}"


def parse_address(text: str) -> FederationAddress:
    """Reads `nf://host:port#sha256:…`; without a port, it is the registry's usual one.

    Raises:
        UsageError: anything else.
    """
    address = FederationAddress.parse(text)
    place, mark, rest = text.strip().partition("#")
    if not place.lower().removeprefix("nf://").rpartition("]")[2].partition(":")[1]:
        return FederationAddress.parse(f"{place}:{DEFAULT_PORT}{mark}{rest}")
    return address


def keep_registry(known: KnownRegistry) -> None:
    """Writes down a registry, in the place of what was known of it.

    Raises:
        StorageError: the disk refuses, or others may look into the folder.
    """
    make_private_folder(known.folder.parent)
    make_private_folder(known.folder)
    document = {
        "format": _FORMAT,
        "registry": known.registry,
        "host": known.host,
        "port": known.port,
        "member_port": known.member_port,
        "fingerprint": known.fingerprint,
        "index_key": known.index_key.pem.decode("ascii"),
    }
    write_private_file(known.folder / AUTHORITY, known.authority_pem)
    # The record last: without it the folder does not count.
    write_private_file(known.folder / RECORD, json.dumps(document, indent=2).encode() + b"\n")


def known_registry(address: FederationAddress | None, *, home: Path) -> KnownRegistry:
    """The registry at an address; without one, the only one that is known.

    Raises:
        RegistryError: it is not known, is known with another fingerprint, or there are several to choose from.
        StorageError: a file is damaged, or others may read it.
    """
    if address is None:
        return _only(home)
    folder = registry_folder(home, address)
    if not (folder / RECORD).exists():
        raise RegistryError(
            f"this machine does not know the registry at {address.endpoint}",
            hint=f"neuralforge adapters login 'nf://{address.endpoint}#sha256:…', "
            "the address that nf-server registry start printed",
        )
    known = _read(folder)
    if address.fingerprint not in (None, known.fingerprint):
        raise RegistryError(
            f"{address.endpoint} is known as another registry: its fingerprint was {known.fingerprint}, "
            f"the address has {address.fingerprint}",
            hint=f"if it was made anew: neuralforge adapters login --anew '{address}'",
        )
    return known


def _only(home: Path) -> KnownRegistry:
    folders = sorted(path.parent for path in registries_folder(home).glob(f"*/{RECORD}"))
    if not folders:
        raise RegistryError(
            "this machine knows no registry",
            hint="neuralforge adapters login 'nf://host:8474#sha256:…', as nf-server registry start printed it",
        )
    if len(folders) > 1:
        places = []
        for folder in folders:
            known = _read(folder)
            places.append(f"nf://{endpoint(known.host, known.port)}")
        raise RegistryError(
            f"this machine knows {len(folders)} registries: wanted one of them to be named",
            hint="--registry " + " or ".join(places),
        )
    return _read(folders[0])


def _read(folder: Path) -> KnownRegistry:
    check_private(folder.parent)
    check_private(folder)
    what = str(folder / RECORD)
    try:
        values = parse_json_object(read_private_file(folder / RECORD), what=what, limit=64 * 1024)
        if values.keys() != _FIELDS or values["format"] != _FORMAT:
            raise RegistryError(f"{what}: wanted format {_FORMAT} with {', '.join(sorted(_FIELDS))}")
        texts = {name: values[name] for name in ("registry", "host", "fingerprint", "index_key")}
        for name, text in texts.items():
            if not isinstance(text, str) or not is_plain_text(text, multiline=name == "index_key"):
                raise RegistryError(f"{what}: {name}: got {shortened(text)}")
        authority_pem = read_private_file(folder / AUTHORITY)
        known = KnownRegistry(
            folder=folder,
            registry=str(texts["registry"]),
            host=str(texts["host"]),
            port=values["port"],  # type: ignore[arg-type]  # checked by the address below
            member_port=values["member_port"],  # type: ignore[arg-type]
            fingerprint=str(texts["fingerprint"]),
            authority_pem=authority_pem,
            index_key=decode_public_key(str(texts["index_key"]).encode(), what),
        )
        _ = known.address, FederationAddress(host=known.host, port=known.member_port)
        if fingerprint(read_certificate(authority_pem, str(folder / AUTHORITY))) != known.fingerprint:
            raise RegistryError(f"{folder / AUTHORITY} is not the authority that was pinned")
    except NeuralForgeError as error:
        # A mode that is too loose has a way out of its own.
        hint = error.hint if error.hint.startswith("chmod") else f"remove {folder}, then: neuralforge adapters login"
        raise StorageError(error.message, hint=hint) from error
    return known
