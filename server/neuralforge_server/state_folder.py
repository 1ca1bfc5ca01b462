"""The coordinator's state folder: made once by `nf-server init`, and not used when others could look into it.

ca.pem ca.key             the federation's authority: who loses ca.key loses the federation
server.pem server.key     what clients see; `nf-server init --renew` makes new ones
superlink.secret          between our own processes
server.yaml               the configuration
identity.db               who may take part; see identity.py
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from neuralforge_common.address import FederationAddress
from neuralforge_common.atomic import replace_folder, write_bytes_atomically
from neuralforge_common.certificates import (
    Authority,
    certificate_hosts,
    certificate_pem,
    create_authority,
    create_server_certificate,
    fingerprint,
    is_issued_by,
    private_pem,
    read_certificate,
    read_private_key,
)
from neuralforge_common.errors import FederationError, StorageError
from neuralforge_common.key_files import (
    PRIVATE_FOLDER,
    check_private,
    read_private_file,
    write_private_file,
)

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
SECRET = "superlink.secret"  # noqa: S105
CONFIG = "server.yaml"
IDENTITIES = "identity.db"

_SOON = datetime.timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """A state folder whose keys were read and found to belong together. `notices` are lines for the operator."""

    path: Path
    authority: Authority
    server_certificate: x509.Certificate
    server_key_pem: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What clients pin: SHA-256 of the authority's certificate."""
        return fingerprint(self.authority.certificate)

    @property
    def authority_pem(self) -> bytes:
        """The authority's certificate."""
        return certificate_pem(self.authority.certificate)

    @property
    def server_pem(self) -> bytes:
        """The server's certificate."""
        return certificate_pem(self.server_certificate)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names and IP addresses that the server's certificate is good for."""
        return certificate_hosts(self.server_certificate)

    @property
    def identities_path(self) -> Path:
        """Where the registry of nodes is."""
        return self.path / IDENTITIES

    def address(self, port: int) -> FederationAddress:
        """The address to give to clients: the first host, the enrolment port, the fingerprint."""
        return FederationAddress(host=self.hosts[0], port=port, fingerprint=self.fingerprint)


def create_state_folder(path: Path, *, hosts: Sequence[str], config: str, now: datetime.datetime) -> ServerState:
    """Makes a federation: authority, server certificate, secret, configuration. All of it appears at once.

    A `server.yaml` that lies in the folder already is kept.

    Raises:
        StorageError: the folder holds a federation or anything else, or cannot be written.
    """
    kept = _config_there(path)
    authority = create_authority(now)
    with replace_folder(path) as folder:
        folder.chmod(PRIVATE_FOLDER)
        write_private_file(folder / AUTHORITY_KEY, private_pem(authority.key))
        (folder / AUTHORITY).write_bytes(certificate_pem(authority.certificate))
        _write_server_certificate(folder, authority, hosts, now)
        write_private_file(folder / SECRET, secrets.token_bytes(32))
        (folder / CONFIG).write_bytes(config.encode() if kept is None else kept)
    return open_state_folder(path, now=now)


def renew_server_certificate(
    path: Path, *, hosts: Sequence[str] = (), also: Sequence[str] = (), now: datetime.datetime
) -> ServerState:
    """Gives the server a fresh key and certificate by the same authority, for `hosts` (none: as before) and `also`.

    Raises:
        StorageError: the folder is not a federation's, or cannot be written.
    """
    authority = _read_authority(path, now)
    if not hosts:
        hosts = certificate_hosts(_certificate(path / SERVER, _read(path, SERVER)))
    _write_server_certificate(path, authority, tuple(dict.fromkeys((*hosts, *also))), now)
    if not (path / SECRET).exists():
        write_private_file(path / SECRET, secrets.token_bytes(32))
    return open_state_folder(path, now=now)


def open_state_folder(path: Path, *, now: datetime.datetime) -> ServerState:
    """Reads a state folder and checks that its files are private, whole, and belong together.

    Raises:
        StorageError: a file is missing, damaged or readable by others, or a certificate has expired.
    """
    authority = _read_authority(path, now)
    renew = f"nf-server init --directory {path} --renew"
    with _way_out(f"{renew} --host NAME"):
        certificate = _certificate(path / SERVER, _read(path, SERVER))
    with _way_out(renew):
        key_pem = read_private_file(path / SERVER_KEY)
        key = read_private_key(key_pem, str(path / SERVER_KEY))
    if not is_issued_by(certificate, authority.certificate) or certificate.public_key() != key.public_key():
        raise StorageError(f"{path / SERVER} does not belong to {SERVER_KEY} and {AUTHORITY} beside it", hint=renew)
    if not certificate_hosts(certificate):
        raise StorageError(f"{path / SERVER} names no host", hint=f"{renew} --host NAME")
    left = certificate.not_valid_after_utc - now
    if left <= datetime.timedelta(0):
        raise StorageError(f"{path / SERVER} expired on {certificate.not_valid_after_utc:%Y-%m-%d}", hint=renew)
    with _way_out(renew):
        secret = read_private_file(path / SECRET)
    if len(secret) < 32:
        raise StorageError(
            f"{path / SECRET}: wanted 32 random bytes, got {len(secret)}", hint=f"delete it, then {renew}"
        )
    return ServerState(
        path=path,
        authority=authority,
        server_certificate=certificate,
        server_key_pem=key_pem,
        secret=secret,
        notices=(f"{path / SERVER} expires in {left.days} days: {renew}",) if left < _SOON else (),
    )


def _read_authority(path: Path, now: datetime.datetime) -> Authority:
    if not path.is_dir():
        raise StorageError(f"{path}: there is no federation here", hint=f"nf-server init --directory {path}")
    check_private(path)
    made = (path / AUTHORITY).exists() or (path / AUTHORITY_KEY).exists()
    with _way_out("restore both from a backup" if made else f"nf-server init --directory {path}"):
        certificate = _certificate(path / AUTHORITY, _read(path, AUTHORITY))
        key = read_private_key(read_private_file(path / AUTHORITY_KEY), str(path / AUTHORITY_KEY))
        if certificate.public_key() != key.public_key():
            raise StorageError(f"{path / AUTHORITY_KEY} is not the key of {AUTHORITY}")
    if certificate.not_valid_after_utc <= now:
        raise StorageError(f"{path / AUTHORITY} expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return Authority(certificate=certificate, key=key)


def _write_server_certificate(path: Path, authority: Authority, hosts: Sequence[str], now: datetime.datetime) -> None:
    certificate, key = create_server_certificate(authority, hosts, now)
    write_private_file(path / SERVER_KEY, private_pem(key))
    write_bytes_atomically(path / SERVER, certificate_pem(certificate))


def _config_there(path: Path) -> bytes | None:
    if not path.is_dir():
        return None  # a file or a link in the way is for `replace_folder` to refuse
    names = {entry.name for entry in path.iterdir()}
    if AUTHORITY_KEY in names or AUTHORITY in names:
        raise StorageError(
            f"{path} holds a federation already, and a new authority would shut out everybody who joined it",
            hint="name another folder with --directory, or renew just the server's certificate with --renew",
        )
    if names - {CONFIG}:
        raise StorageError(
            f"{path} holds other files ({sorted(names - {CONFIG})[0]})", hint="name another folder with --directory"
        )
    return (path / CONFIG).read_bytes() if names else None


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path / name}: {error.strerror or error}") from error


def _certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return read_certificate(pem, str(path))
    except FederationError as error:
        raise StorageError(error.message) from error


@contextmanager
def _way_out(hint: str) -> Iterator[None]:
    """Says what to do where a file is missing or damaged; a mode that is too loose has a way out of its own."""
    try:
        yield
    except StorageError as error:
        error.hint = error.hint or hint
        raise
