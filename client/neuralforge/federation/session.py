"""Taking part in a federation that this machine has joined: found, asked whether we may, connected, answered."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from neuralforge.federation.flower import DAY, Fleet, connect
from neuralforge.federation.home import (
    RECORD,
    FederationRecord,
    JoinedFederation,
    federations_folder,
    open_federation,
)
from neuralforge.federation.membership import FederationDescription, describe
from neuralforge_common.address import FederationAddress, endpoint
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import FederationError, NeuralForgeError
from neuralforge_common.strict_json import shortened


def find_federation(server: str | None, *, home: Path) -> JoinedFederation:
    """The federation that `server` names: `nf://host:port`, or the name of one that this machine has joined.

    Raises:
        UsageError: an address that cannot be.
        FederationError: this machine has not joined it, or has joined several of that name.
        StorageError: what this machine knows of it is damaged, or others may read it.
    """
    if server is None or server.lower().startswith("nf://"):
        return open_federation(FederationAddress.parse(server) if server else None, home=home)
    known = _joined(home)
    found = [record for record in known if record.federation == server]
    if len(found) == 1:
        return open_federation(found[0].address, home=home)
    if found:
        raise FederationError(
            f"this machine has joined {len(found)} federations called {shortened(server)}",
            hint="name one by its address: " + " or ".join(f"nf://{record.address.endpoint}" for record in found),
        )
    names = ", ".join(sorted(record.federation for record in known))
    raise FederationError(
        f"this machine has joined no federation called {shortened(server)}" + (f", only {names}" if names else ""),
        hint="nf-client join nf://host:port#sha256:… TOKEN, with the line that `nf-server invite` printed",
    )


@contextlib.contextmanager
def open_session(
    joined: JoinedFederation,
    *,
    tell: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
    patience: float = DAY,
    description: FederationDescription | None = None,
) -> Iterator[Fleet]:
    """This machine's session at the fleet port, once the membership service has said that it may take part.

    A server that goes away later is waited for, `patience` seconds long. `description` saves the asking to whoever has
    just asked.

    Raises:
        FederationError: unreachable; revoked; another version; clocks apart; another process is taking part.
        Stopped: `stop` said so before the session stood.
    """
    with _alone(joined):
        found = description or describe(joined)
        with connect(
            endpoint(joined.record.host, found.fleet_port),
            joined.authority_pem,
            joined.key,
            check_member=lambda: _check_member(joined),
            tell=tell,
            stop=stop,
            patience=patience,
        ) as fleet:
            yield fleet


def _check_member(joined: JoinedFederation) -> None:
    """Raises where the server says that this node may not take part; one that does not answer has not said so."""
    try:
        describe(joined)
    except FederationError as error:
        cause = error.__cause__
        if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.PERMISSION_DENIED:
            raise


@contextlib.contextmanager
def _alone(joined: JoinedFederation) -> Iterator[None]:
    """Keeps a second process out: the server would take it for the first one that has lost its way."""
    with storage_errors(joined.folder):
        descriptor = os.open(joined.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FederationError(
            f"another process on this machine takes part in {joined.record.federation} already",
            hint="one at a time: end it, or wait until it has ended",
        ) from error
    else:
        yield
    finally:
        os.close(descriptor)


def _joined(home: Path) -> list[FederationRecord]:
    records = []
    for path in sorted(federations_folder(home).glob(f"*/{RECORD}")):
        # A damaged one has to be named by its address to be complained about.
        with contextlib.suppress(OSError, NeuralForgeError):
            records.append(FederationRecord.from_json(path.read_bytes(), str(path)))
    return records
