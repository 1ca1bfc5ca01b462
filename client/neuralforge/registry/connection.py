"""A connection to a registry: its authority as the address pins it, and what this machine shows of itself.

What is shown, the first that there is: `$NEURALFORGE_REGISTRY_TOKEN`; the token that was kept at login; the client
certificate of a federation under the same authority that this machine has joined; else nothing, and what is public can
be seen.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from neuralforge.federation.channel import check_clock, check_protocol, open_channel
from neuralforge.federation.home import RECORD as FEDERATION_RECORD
from neuralforge.federation.home import FederationRecord, JoinedFederation, federations_folder, open_federation
from neuralforge.federation.join import verify_server
from neuralforge.registry.calls import STREAM_TIMEOUT, TIMEOUT, Reply, call
from neuralforge.registry.home import (
    INDEXES,
    RECORD,
    TOKEN,
    KnownRegistry,
    keep_registry,
    known_registry,
    registry_folder,
)
from neuralforge_common.address import FederationAddress
from neuralforge_common.certificates import certificate_pem
from neuralforge_common.errors import FederationError, NeuralForgeError, RegistryError, StorageError, UsageError
from neuralforge_common.key_files import read_private_file, write_private_file
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.protocol import registry_pb2_grpc as services
from neuralforge_common.signing.keys import PublicKey, decode_public_key
from neuralforge_common.strict_json import is_plain_text

TOKEN_VARIABLE = "NEURALFORGE_REGISTRY_TOKEN"  # noqa: S105 - the name of a variable

MAX_MESSAGE_BYTES = 2**20
MAX_PART_BYTES = 512 * 1024

_TOKEN = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An open channel to a registry that has answered; `caller` is whom it takes us for, "" for nobody."""

    known: KnownRegistry
    stub: Any
    shown: tuple[tuple[str, str], ...]
    """What goes with each call: the token, or nothing."""
    caller: str
    teams: Mapping[str, int]
    """Team → messages.Scope."""
    index_key: PublicKey

    def call(self, method: str, request: object, reply: type[Reply], *, timeout: float = TIMEOUT) -> Reply:
        """Makes a call; raises RegistryError where it does not get through, or the registry says no."""
        return call(getattr(self.stub, method), request, reply, timeout=timeout, shown=self.shown)

    def stream(self, method: str, request: object) -> Any:
        """Begins a call of which one side is a stream; whoever reads it does so within `failures()`."""
        return getattr(self.stub, method)(request, timeout=STREAM_TIMEOUT, metadata=self.shown)


@contextmanager
def connected(
    known: KnownRegistry,
    *,
    home: Path,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Iterator[Connection]:
    """Calls a registry, and checks that both understand each other.

    Raises:
        RegistryError: unreachable, another protocol, a token or certificate that does not count, another index key.
        StorageError: a key or a token on this machine is damaged, or others may read it.
    """
    token = _token(known.folder, environ)
    joined = None if token else _joined(known, home)
    with _channel(known, joined) as channel:
        # The channel is TLS to the pinned authority, or there is none: the token goes nowhere else.
        shown = (("authorization", f"Bearer {token}"),) if token else ()
        connection = _describe(known, services.RegistryStub(channel), shown, clock)
        if connection.index_key.fingerprint != known.index_key.fingerprint:
            raise RegistryError(
                f"the registry signs its index with another key than it did: "
                f"sha256:{connection.index_key.fingerprint}, known is sha256:{known.index_key.fingerprint}",
                hint="ask whoever runs it; if it was made anew: neuralforge adapters login ADDRESS --anew",
            )
        yield connection


def login(
    address: FederationAddress,
    *,
    home: Path,
    token: str | None = None,
    anew: bool = False,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Connection:
    """Makes a registry known to this machine; the connection that is returned is closed, and only tells what was found.

    `token` is kept; `anew` forgets what was known of the registry, its index key and the indexes that were seen.

    Raises:
        UsageError: the address has no fingerprint, or the token cannot be one.
        RegistryError: unreachable, another authority, a token that does not count, known with another key.
        StorageError: the disk refuses.
    """
    if address.fingerprint is None:
        raise UsageError(
            f"{address} has no fingerprint: wanted {address}#sha256:… to know the registry by",
            hint="copy the whole line that `nf-server registry start` printed, in quotes",
        )
    if token is not None and not _TOKEN.fullmatch(token):
        raise UsageError("the token: wanted one word of at most 128 characters, such as nfr_…")
    folder = registry_folder(home, address)
    before = None
    if not anew and (folder / RECORD).exists():
        before = known_registry(address, home=home)
    # 1. The authority that the address pins, and the server that belongs to it; nothing secret is sent before.
    try:
        authority_pem = certificate_pem(verify_server(address, clock=clock))
    except FederationError as error:
        raise RegistryError(error.message.replace("; the token was not sent", ""), hint=_elsewhere(error)) from error
    # 2. What it says of itself, over a channel that trusts this authority alone.
    with open_channel(address.host, address.port, roots=authority_pem, most=MAX_MESSAGE_BYTES) as channel:
        reply = call(services.RegistryStub(channel).Describe, messages.DescribeRequest(), messages.DescribeReply)
    if len(reply.registry) > 200 or not is_plain_text(reply.registry) or not 1 <= reply.member_port <= 65_535:
        raise RegistryError("the registry describes itself in a way that cannot be")
    known = KnownRegistry(
        folder=folder,
        registry=reply.registry,
        host=address.host,
        port=address.port,
        member_port=reply.member_port,
        fingerprint=address.fingerprint,
        authority_pem=authority_pem,
        index_key=before.index_key if before else decode_public_key(reply.index_key_pem, "the registry's index key"),
    )
    # 3. It takes us for somebody, by what we shall show from now on; only then anything is written.
    shown = environ if token is None else {**environ, TOKEN_VARIABLE: token}
    with connected(known, home=home, environ=shown, clock=clock) as connection:
        pass
    if anew:
        shutil.rmtree(folder / INDEXES, ignore_errors=True)
        (folder / TOKEN).unlink(missing_ok=True)
    keep_registry(known)
    if token is not None:
        write_private_file(folder / TOKEN, token.encode() + b"\n")
    return connection


def read_token(path: Path) -> str:
    """The token in a private file (0600); raises StorageError where others may read it."""
    return read_private_file(path, limit=1024).decode("ascii", "replace").strip()


@contextmanager
def _channel(known: KnownRegistry, joined: JoinedFederation | None) -> Iterator[grpc.Channel]:
    certificate = None if joined is None else certificate_pem(joined.certificate)
    opening = open_channel(
        known.host,
        known.port if joined is None else known.member_port,
        roots=known.authority_pem,
        key=None if joined is None else joined.key_pem,
        certificate=certificate,
        most=MAX_MESSAGE_BYTES,
    )
    try:
        channel = opening.__enter__()
    except FederationError as error:
        raise RegistryError(error.message, hint=_elsewhere(error), status="UNAVAILABLE") from error
    try:
        yield channel
    finally:
        opening.__exit__(None, None, None)


def _describe(
    known: KnownRegistry, stub: Any, shown: tuple[tuple[str, str], ...], clock: Callable[[], float]
) -> Connection:
    reply = call(stub.Describe, messages.DescribeRequest(), messages.DescribeReply, shown=shown)
    try:
        check_protocol(reply.protocol, reply.server_version)
        check_clock(reply.server_time, clock())
        index_key = decode_public_key(reply.index_key_pem, "the registry's index key")
    except (FederationError, StorageError) as error:
        raise RegistryError(error.message, hint=error.hint) from error
    if len(reply.caller) > 200 or not is_plain_text(reply.caller):
        raise RegistryError("the registry calls us by a name that cannot be")
    return Connection(
        known=known,
        stub=stub,
        shown=shown,
        caller=reply.caller,
        teams={each.team: each.scope for each in reply.teams if is_plain_text(each.team)},
        index_key=index_key,
    )


def _token(folder: Path, environ: Mapping[str, str]) -> str | None:
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if not token and (folder / TOKEN).exists():
        token = read_token(folder / TOKEN)
    if token and not _TOKEN.fullmatch(token):
        raise UsageError(f"the token ({TOKEN_VARIABLE} or {folder / TOKEN}): wanted one word such as nfr_…")
    return token or None


def _joined(known: KnownRegistry, home: Path) -> JoinedFederation | None:
    """The federation under the registry's authority that this machine has joined, whatever port it was joined at."""
    for path in sorted(federations_folder(home).glob(f"*/{FEDERATION_RECORD}")):
        try:
            record = FederationRecord.from_json(path.read_bytes(), str(path))
        except (OSError, NeuralForgeError):
            continue  # another one's damage is no reason not to call this registry
        if record.fingerprint == known.fingerprint:
            return open_federation(record.address, home=home)
    return None


def _elsewhere(error: FederationError) -> str:
    return error.hint.replace("nf-server start", "nf-server registry start").replace(
        "`nf-server init` printed", "`nf-server registry start` printed"
    )
