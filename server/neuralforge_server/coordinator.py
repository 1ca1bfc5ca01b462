"""`nf-server start`: enrolment, Flower's SuperLink and the rounds, held together until the federation is done.

    coordinator (this process) ── loopback, HMAC ──▶ SuperLink (a child: sqlite, TLS for clients)
        │ rounds.db, states/: what is committed           ▲
        └ identity.db: who may take part ──────────────────┘ registered and unregistered as it changes

Whatever dies, the next start goes on after the last committed round: the SuperLink's own run is not resumed but begun
anew, because everything that counts is in our ledger.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from io import RawIOBase
from pathlib import Path

from neuralforge_common import __version__, metadata
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.atomic import storage_errors, write_bytes_atomically
from neuralforge_common.errors import FederationError
from neuralforge_common.folder import read_adapter_folder, write_adapter_folder
from neuralforge_common.key_files import PRIVATE_FILE
from neuralforge_common.layout import AdapterLayout
from neuralforge_server.aggregation.method import GlobalState, Method
from neuralforge_server.aggregation.serve import served
from neuralforge_server.config import ServerConfig
from neuralforge_server.enrolment import serve_enrolment
from neuralforge_server.events import Event, Observer
from neuralforge_server.flower import Control, GridLost, open_grid
from neuralforge_server.from_config import method_of, terms_of
from neuralforge_server.identity import Identities
from neuralforge_server.ledger import Ledger
from neuralforge_server.state_folder import ServerState
from neuralforge_server.strategy import FederatedLoRA
from neuralforge_server.supervisor import Supervisor
from neuralforge_server.terms import Terms

ADAPTER = "adapter.lora"
RECORDS = "records.jsonl"
MEMBERS_SECONDS = 0.5
HEALTHY_SECONDS = 60.0
ROOM_BYTES = 2**20

_LOG = logging.getLogger(__name__)


class Members(threading.Thread):
    """Keeps Flower's list of nodes the same as the registry's, and knows which node number is whose."""

    def __init__(self, identities: Identities, control: Control) -> None:
        super().__init__(name="members", daemon=True)
        self._identities = identities
        self._control = control
        self._revision = -1
        self._nodes: dict[int, str] = {}
        self._keys: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()

    def forget(self) -> None:
        """Register everybody anew at the next turn: the SuperLink may have lost its own list."""
        with self._lock:
            self._revision = -1
            self._keys.clear()
            self._nodes.clear()

    def synchronise(self) -> None:
        """Register who joined, unregister who was revoked or rotated away."""
        revision = self._identities.revision()
        with self._lock:
            if revision == self._revision:
                return
            wanted = self._identities.active_keys()
            for name, (key, node) in [*self._keys.items()]:
                if wanted.get(name) != key:
                    self._control.unregister_node(node)
                    del self._keys[name], self._nodes[node]
            for name, key in wanted.items():
                if name not in self._keys:
                    node = self._control.register_node(key, name)
                    self._keys[name] = key, node
                    self._nodes[node] = name
            self._revision = revision

    def roster(self, node_ids: Iterable[int]) -> Mapping[int, str]:
        """Of these nodes, those that may take part now, by name: the registry itself is asked, not a memory of it."""
        self.synchronise()
        with self._lock:
            return {node: self._nodes[node] for node in node_ids if node in self._nodes}

    def run(self) -> None:
        """Go on until `stop`."""
        while not self._done.wait(MEMBERS_SECONDS):
            try:
                self.synchronise()
            except Exception as fault:  # the SuperLink may be away for a moment; the next turn tries again
                _LOG.warning("the list of members could not be brought up to date: %s", fault)

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self.join()


class Records:
    """An observer that writes every event as a line of `records.jsonl`, for people and for plots.

    A line that a coordinator before this one was killed over is taken away: every line is whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            # Without a buffer: what a full disk refused must not be tried again when the file is closed.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE), "rb+", 0)
            self._file.truncate(_end_of_lines(self._file))
            self._file.seek(0, os.SEEK_END)

    def __call__(self, event: Event) -> None:
        """Write the event."""
        line = json.dumps({"kind": type(event).__name__, **asdict(event)}, default=str) + "\n"
        left = memoryview(line.encode())
        with storage_errors(self._path):
            while left:
                left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _end_of_lines(file: RawIOBase) -> int:
    """Where the last line that is whole ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 4096)
        file.seek(begin)
        found = (file.read(end - begin) or b"").rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


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


def save_adapter(path: Path, terms: Terms, spec: AdapterSpec, state: GlobalState) -> Path | None:
    """Write the federation's adapter as a `.lora` folder; None where its B stays with the clients."""
    if terms.personal != "none":
        return None
    layout, vector = served(state)
    full = replace(spec, rank=layout.rank, alpha=spec.scaling * layout.rank)
    facts = metadata.AdapterMetadata(
        name=terms.federation,
        description=f"Trained together in {terms.rounds} federated rounds ({terms.method}) on {spec.base}",
        base_model=spec.base,
        neuralforge_version=__version__,
    )
    write_adapter_folder(path, spec=full, state=layout.unflatten(vector), metadata=facts)
    return path


def start_point(path: Path | None, terms: Terms, method: Method) -> tuple[AdapterSpec, GlobalState] | None:
    """An adapter folder as a federation's beginning; None for a fresh one."""
    if path is None:
        return None
    folder = read_adapter_folder(path)
    layout = AdapterLayout.of(folder.state)
    if layout.rank != terms.adapter.rank:
        raise FederationError(
            f"federation.start_from: {path} has rank {layout.rank}, adapter.rank is {terms.adapter.rank}",
            hint="give adapter.rank the adapter's own",
        )
    if not folder.spec.base_fingerprint:
        raise FederationError(
            f"federation.start_from: {path} does not record its base's fingerprint, so no client could check it",
            hint="start from an adapter that neuralforge has trained",
        )
    begun = method.initial(layout, seed=terms.seed)
    return folder.spec, replace(begun, vector=layout.flatten(folder.state))
