"""`nf-server start`: enrolment, Flower's SuperLink and the rounds, held together until the federation is done.

    coordinator (this process) ── loopback, HMAC ──▶ SuperLink (a child: sqlite, TLS for clients)
        │ rounds.db, states/: what is committed           ▲
        └ identity.db: who may take part ──────────────────┘ registered and unregistered as it changes

Whatever dies, the next start goes on after the last committed round: the SuperLink's own run is not resumed but begun
anew, because everything that counts is in our ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from neuralforge_common.atomic import write_bytes_atomically
from neuralforge_common.errors import FederationError
from neuralforge_common.key_files import PRIVATE_FILE
from neuralforge_server.adapter_files import ADAPTER, save_adapter, start_point
from neuralforge_server.config import ServerConfig
from neuralforge_server.enrolment import serve_enrolment
from neuralforge_server.events import Observer
from neuralforge_server.flower import Control, GridLost, open_grid
from neuralforge_server.from_config import method_of, terms_of
from neuralforge_server.identity import Identities
from neuralforge_server.ledger import Ledger
from neuralforge_server.members import Members
from neuralforge_server.record_file import RECORDS, Records
from neuralforge_server.state_folder import ServerState
from neuralforge_server.strategy import FederatedLoRA
from neuralforge_server.supervisor import Supervisor

HEALTHY_SECONDS = 60.0
ROOM_BYTES = 2**20

_LOG = logging.getLogger(__name__)


def run_federation(
    config: ServerConfig,
    state: ServerState,
    *,
    observers: tuple[Observer, ...] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Run until all rounds are committed; returns the adapter's folder, None where every client keeps its own.

    Raises FederationError, StorageError; Stopped where `stop` said so.
    """
    terms, method = terms_of(config), method_of(config)
    listen = config.listen
    admin = f"127.0.0.1:{listen.admin_port}"
    with ExitStack() as stack:
        # The ledger first: its lock is what keeps a second coordinator away.
        ledger = stack.enter_context(Ledger.open(state.path))
        records = Records(state.path / RECORDS)
        stack.callback(records.close)
        identities = Identities(state.identities_path)
        stack.callback(identities.close)
        supervisor = stack.enter_context(
            Supervisor(state.path, host=listen.host, fleet_port=listen.fleet_port, admin_port=listen.admin_port)
        )
        supervisor.wait_healthy(HEALTHY_SECONDS)
        running = serve_enrolment(
            state,
            identities,
            federation=terms.federation,
            host=listen.host,
            port=listen.port,
            member_port=listen.member_port,
            fleet_port=listen.fleet_port,
        )
        stack.callback(running.stop)
        control = stack.enter_context(Control(admin, state.secret))
        members = Members(identities, control)
        members.synchronise()
        members.start()
        stack.callback(members.stop)
        strategy = FederatedLoRA(
            terms,
            method,
            ledger,
            roster=members.roster,
            identities=identities.peer_identities,
            start_from=start_point(config.federation.start_from, terms, method),
            observers=(*observers, records),
            stop=stop,
        )
        while True:
            try:
                with open_grid(admin, state.secret) as grid:
                    strategy.start(grid)
                break
            except FederationError as fault:
                # A SuperLink on a full disk fails in many ways; none of them says why.
                check_room(state.path)
                if not isinstance(fault, GridLost):
                    raise
                _LOG.warning("the SuperLink lost our run (%s): beginning another one", fault)
                supervisor.wait_healthy(HEALTHY_SECONDS)
                members.forget()
                members.synchronise()
        return save_adapter(state.path / ADAPTER, terms, strategy.spec, strategy.state)


def check_room(folder: Path) -> None:
    """Raises StorageError where the disk takes nothing any more."""
    probe = folder / ".room"
    write_bytes_atomically(probe, bytes(ROOM_BYTES), mode=PRIVATE_FILE)
    probe.unlink()
