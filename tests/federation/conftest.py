"""A real SuperLink on loopback, under TLS by an authority of its own, and the Grid that drives it."""

import contextlib
import datetime
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from neuralforge_common.certificates import openssh_public_key
from neuralforge_server.flower import Control, open_grid
from neuralforge_server.state_folder import ServerState, create_state_folder


class Link:
    """A SuperLink process that can be killed and started again with the same database and ports."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.ca = state.authority_pem
        self.fleet_port, self.admin_port = free_ports(2)
        self.fleet, self.admin = f"127.0.0.1:{self.fleet_port}", f"127.0.0.1:{self.admin_port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Not in a thread that ends: Linux has the process end with it."""
        command = [
            *(sys.executable, "-m", "neuralforge_server.superlink", str(self.state.path), "--host", "127.0.0.1"),
            *("--fleet-port", str(self.fleet_port), "--admin-port", str(self.admin_port), "--parent", str(os.getpid())),
        ]
        with (self.state.path / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)

    def wait_ready(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", (self.state.path / "log").read_text()

    def kill(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def control(self) -> Control:
        return Control(self.admin, self.state.secret, patience=10)

    def register(self, key: ec.EllipticCurvePrivateKey, name: str) -> int:
        with self.control() as control:
            return control.register_node(openssh_public_key(key.public_key()), name)

    def revoke(self, node: int) -> None:
        with self.control() as control:
            control.unregister_node(node)

    @contextlib.contextmanager
    def run(self) -> Iterator["Run"]:
        with open_grid(self.admin, self.state.secret, patience=10) as grid:
            yield Run(grid)


class Run:
    """One run at a SuperLink, from the coordinator's side."""

    def __init__(self, grid: Any) -> None:
        self.grid = grid
        self._identity = TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id

    def ask(self, node: int, content: RecordDict, *, kind: str = "train", ttl: float = 60) -> str:
        # Flower keeps who a task is in the process, and in this process there are several.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self._identity
        message = Message(content, dst_node_id=node, message_type=kind, ttl=ttl)
        (message_id,) = self.grid.push_messages([message])
        return str(message_id)

    def reply(self, message_id: str, *, within: float = 30) -> Message:
        until = time.monotonic() + within
        while not (replies := list(self.grid.pull_messages([message_id]))):
            assert time.monotonic() < until
            time.sleep(0.05)
        return replies[0]

    def is_online(self, node: int) -> bool:
        return node in self.grid.get_node_ids()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def make(folder: Path) -> Link:
    now = datetime.datetime.now(datetime.UTC)
    link = Link(create_state_folder(folder / "state", hosts=["127.0.0.1"], config="", now=now))
    link.start()
    return link


@pytest.fixture
def make_link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Link]]:
    """Start a SuperLink of one's own, to be killed."""
    links = []

    def start() -> Link:
        links.append(make(tmp_path_factory.mktemp("link")))
        return links[-1]

    yield start
    for link in links:
        link.kill()


@pytest.fixture(scope="session")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """One SuperLink for all; nobody stops it."""
    link = make(tmp_path_factory.mktemp("link"))
    yield link
    link.kill()


@pytest.fixture(scope="session")
def run(link: Link) -> Iterator[Run]:
    """One run on `link`."""
    with link.run() as run:
        yield run


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())
