"""The SuperLink as clients and others meet it: a process of its own, real TLS, a supervisor that keeps it running."""

import datetime
import hashlib
import http.client
import os
import secrets
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from neuralforge.federation.flower import Fleet, MessageLost, connect
from neuralforge_common.certificates import certificate_pem, create_authority, openssh_public_key
from neuralforge_common.errors import FederationError
from neuralforge_server.flower import Control, GridLost, PatientGrid, arrival, open_grid
from neuralforge_server.state_folder import ServerState, create_state_folder
from neuralforge_server.supervisor import Supervisor

Key = ec.EllipticCurvePrivateKey

FLEET_CALLS = ("register-node", "activate-node", "pull-messages", "push-messages", "push-object", "get-fab")
UP = 60.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A state folder and the ports of its SuperLink."""

    state: ServerState
    fleet_port: int
    admin_port: int

    @property
    def admin(self) -> str:
        return f"127.0.0.1:{self.admin_port}"

    @property
    def fleet(self) -> str:
        return f"127.0.0.1:{self.fleet_port}"

    @property
    def secret(self) -> bytes:
        return self.state.secret

    def supervisor(self) -> Supervisor:
        return Supervisor(self.state.path, host="127.0.0.1", fleet_port=self.fleet_port, admin_port=self.admin_port)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def make_place(folder: Path) -> Place:
    now = datetime.datetime.now(datetime.UTC)
    state = create_state_folder(folder, hosts=["127.0.0.1"], config="", now=now)
    fleet_port, admin_port = free_ports(2)
    return Place(state=state, fleet_port=fleet_port, admin_port=admin_port)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("superlink") / "state")


@pytest.fixture(scope="module")
def supervisor(place: Place) -> Iterator[Supervisor]:
    with place.supervisor() as supervisor:
        supervisor.wait_healthy(UP)
        yield supervisor


@pytest.fixture
def control(place: Place, supervisor: Supervisor) -> Iterator[Control]:
    with Control(place.admin, place.secret, patience=UP) as control:
        yield control


@pytest.fixture
def grid(place: Place, supervisor: Supervisor) -> Iterator[PatientGrid]:
    supervisor.wait_healthy(UP)
    with open_grid(place.admin, place.secret, patience=UP) as grid:
        yield grid


@pytest.fixture
def key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def register(control: Control, key: Key, name: str = "laptop") -> int:
    return control.register_node(openssh_public_key(key.public_key()), name)


@contextmanager
def joined(place: Place, key: Key) -> Iterator[Fleet]:
    with connect(place.fleet, place.state.authority_pem, key, patience=UP, old_session_wait=1.0) as fleet:
        yield fleet


def until(what: Callable[[], bool], seconds: float = UP) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it did not come to that in time"
        time.sleep(0.05)


def kill(supervisor: Supervisor) -> None:
    """Kills the SuperLink and returns when another one answers."""
    before = supervisor.restarts
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: supervisor.restarts > before and supervisor.is_healthy)


def question(node: int, text: str = "?", *, ttl: float = 120.0, size: int = 0) -> Message:
    content = RecordDict({"text": ConfigRecord({"text": text}), "array": ArrayRecord({"x": Array(np.zeros(size))})})
    return Message(content, dst_node_id=node, message_type="train", ttl=ttl, group_id="1")


def answer(to: Message, text: str = "!", *, size: int = 0) -> Message:
    array = Array(np.frombuffer(secrets.token_bytes(size), np.uint8))
    return Message(RecordDict({"text": ConfigRecord({"text": text}), "array": ArrayRecord({"x": array})}), reply_to=to)


def text_of(message: Message) -> str:
    assert not message.has_error(), message.error
    return str(message.content.config_records["text"]["text"])


def received(fleet: Fleet) -> Message:
    found: list[Message] = []
    until(lambda: (message := fleet.receive()) is not None and not found.append(message))
    return found[0]


def replies(grid: PatientGrid, names: list[str], seconds: float = UP) -> list[Message]:
    found: list[Message] = []

    def all_here() -> bool:
        found.extend(grid.pull_messages([n for n in names if n not in {m.metadata.reply_to_message_id for m in found}]))
        return len(found) == len(names)

    until(all_here, seconds)
    return found


def request(
    port: int, method: str, path: str, *, body: bytes = b"", tls: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=tls)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def raw(place: Place) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", place.fleet_port), timeout=20)
    return trusting(place).wrap_socket(plain, server_hostname="127.0.0.1")


def trusting(place: Place) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=place.state.authority_pem.decode())
    return context


# What the public port lets through


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-messages",
        "/v1/responses",
        "/v1/fleet/../control/start-run",
        "/v1/fleet",
        "//v1/control/start-run",
        "/V1/CONTROL/start-run",
        "/health/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_public_port_knows_nothing_but_the_fleet_api(
    place: Place, supervisor: Supervisor, method: str, path: str
) -> None:
    tls = trusting(place)
    status, body, headers = request(place.fleet_port, method, path, tls=tls, content_type="application/x-protobuf")
    assert (status, body) == (404, b"")
    assert "server" not in headers


def test_the_paths_that_are_refused_are_there_behind_it(place: Place, supervisor: Supervisor, control: Control) -> None:
    # Else the test above would pass on a SuperLink that has no such path at all.
    assert control.list_nodes() is not None
    from neuralforge_server.flower.calls import ADMIN_HEADER, admin_key

    headers = {ADMIN_HEADER: admin_key(place.secret)}
    for path in ("/docs", "/openapi.json"):
        assert request(place.admin_port, "GET", path, **headers)[0] == 200
    for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task"):
        assert request(place.admin_port, "POST", path, **headers)[0] not in (404, 405)


def test_health_is_told_on_both_ports(place: Place, supervisor: Supervisor) -> None:
    assert request(place.fleet_port, "GET", "/health", tls=trusting(place))[0] == 200
    assert request(place.admin_port, "GET", "/health")[0] == 200


@pytest.mark.parametrize("call", FLEET_CALLS)
def test_a_fleet_call_without_a_signature_is_refused(place: Place, supervisor: Supervisor, call: str) -> None:
    path = f"/v1/fleet/{call}"
    status, _, _ = request(place.fleet_port, "POST", path, tls=trusting(place), content_type="application/x-protobuf")
    assert status in (400, 401, 415)


def test_a_body_that_is_too_long_is_refused_before_it_is_read(place: Place, supervisor: Supervisor) -> None:
    with raw(place) as connection:
        connection.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_of_unknown_length_is_refused(place: Place, supervisor: Supervisor) -> None:
    with raw(place) as connection:
        connection.sendall(
            b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 411")


def test_older_tls_is_refused(place: Place, supervisor: Supervisor) -> None:
    context = trusting(place)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", place.fleet_port), timeout=20) as plain:
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    with raw(place) as connection:
        assert connection.version() == "TLSv1.3"


def test_the_public_port_speaks_no_plain_http(place: Place, supervisor: Supervisor) -> None:
    with pytest.raises((http.client.HTTPException, OSError)):
        request(place.fleet_port, "GET", "/health")


# What the loopback port lets through


@pytest.mark.parametrize("headers", [{}, {"x-neuralforge-admin": "0" * 64}, {"x-neuralforge-admin": ""}])
@pytest.mark.parametrize("path", ["/docs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/get-run"])
def test_the_loopback_port_serves_whoever_can_read_our_secret_alone(
    place: Place, supervisor: Supervisor, path: str, headers: dict[str, str]
) -> None:
    assert request(place.admin_port, "POST", path, **headers)[0] == 404


def test_another_secret_opens_nothing(place: Place, supervisor: Supervisor) -> None:
    with Control(place.admin, b"x" * 32) as control, pytest.raises(FederationError, match="HTTP status 404"):
        control.list_nodes()


def test_the_loopback_port_is_on_the_loopback(place: Place, supervisor: Supervisor) -> None:
    listening = subprocess.run(
        [sys.executable, "-c", _LISTENING, str(supervisor.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(listening) == sorted([place.admin, place.fleet])


_LISTENING = """
import sys, psutil
for one in psutil.Process(int(sys.argv[1])).net_connections("inet"):
    if one.status == "LISTEN":
        print(f"{one.laddr.ip}:{one.laddr.port}")
"""


# Nodes


def test_a_key_that_is_not_registered_is_refused(place: Place, supervisor: Supervisor, key: Key) -> None:
    with pytest.raises(FederationError), joined(place, key):
        pass


def test_a_registered_key_is_let_in_and_seen(place: Place, control: Control, key: Key) -> None:
    node = register(control, key, "laptop-7")
    assert not control.list_nodes()[node].online
    with joined(place, key) as fleet:
        assert fleet.node_id == node
        found = control.list_nodes()[node]
        assert (found.name, found.online, found.public_key) == ("laptop-7", True, openssh_public_key(key.public_key()))
    assert not control.list_nodes()[node].online


def test_registering_twice_gives_the_same_node(control: Control, key: Key) -> None:
    assert register(control, key, "a") == register(control, key, "b")


def test_an_unregistered_node_is_refused_at_its_next_call_and_never_comes_back(
    place: Place, control: Control, key: Key
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        control.unregister_node(node)
        assert node not in control.list_nodes()
        with pytest.raises(FederationError):
            fleet.receive()
    control.unregister_node(node)  # it is gone already: nothing to complain about
    with pytest.raises(FederationError, match="revoked once"):
        register(control, key)


@pytest.mark.parametrize("public_key", ["", "ssh-rsa x", "ecdsa-sha2-nistp384 AAAA"])
def test_what_is_no_key_is_refused(control: Control, public_key: str) -> None:
    with pytest.raises(FederationError, match="public key"):
        control.register_node(public_key, "x")


def test_a_client_trusts_this_authority_alone(place: Place, control: Control, key: Key) -> None:
    register(control, key)
    other = certificate_pem(create_authority(datetime.datetime.now(datetime.UTC)).certificate)
    with pytest.raises(FederationError, match="not a server of this federation"), connect(place.fleet, other, key):
        pass


@pytest.mark.slow  # a node counts as gone after twenty seconds without a sign of life
def test_a_client_that_was_killed_is_offline_after_twenty_seconds(place: Place, control: Control, key: Key) -> None:
    node = register(control, key)
    child = os.fork()
    if not child:
        with joined(place, key):
            time.sleep(60)
        os._exit(0)
    try:
        until(lambda: control.list_nodes()[node].online)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    began = time.monotonic()
    until(lambda: not control.list_nodes()[node].online, 30)
    assert time.monotonic() - began <= 21


# Runs


def test_questions_are_answered(place: Place, control: Control, grid: PatientGrid, key: Key) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        assert node in grid.get_node_ids()
        names = grid.push_messages([question(node, "first", size=1000), question(node, "second")])
        for _ in names:
            message = received(fleet)
            fleet.send(answer(message, text_of(message).upper(), size=50_000))
        found = replies(grid, names)
        assert sorted(text_of(reply) for reply in found) == ["FIRST", "SECOND"]
        assert {reply.metadata.reply_to_message_id for reply in found} == set(names)
        assert {reply.metadata.src_node_id for reply in found} == {node}


def test_a_node_that_does_not_exist_takes_no_message(grid: PatientGrid) -> None:
    assert grid.push_messages([question(12345)]) == [""]


def test_a_run_stops_those_before_it_and_is_over_at_its_end(place: Place, control: Control) -> None:
    left = control.start_run()
    with open_grid(place.admin, place.secret, patience=UP) as grid:
        assert grid.run.run_id != left
        assert control.stop_unfinished_runs(but=grid.run.run_id) == ()
        assert grid.context.run_config == {"config": "", "directory": ""}
    assert control.stop_unfinished_runs() == ()


def test_a_run_that_was_stopped_elsewhere_is_lost(place: Place, control: Control) -> None:
    with open_grid(place.admin, place.secret, patience=UP) as grid:
        control.stop_unfinished_runs()
        with pytest.raises(GridLost):
            grid.get_node_ids()


def test_an_error_in_the_block_is_the_callers(place: Place, supervisor: Supervisor, control: Control) -> None:
    with pytest.raises(ZeroDivisionError), open_grid(place.admin, place.secret, patience=UP):
        raise ZeroDivisionError
    assert control.stop_unfinished_runs() == ()


def send_dishonestly(
    fleet: Fleet, reply: Message, tree: ObjectTree, contents: dict[str, bytes], *, keep_back: int = 0
) -> None:
    """Announces `reply` in its envelope and uploads whatever is wanted of `contents`, but the last `keep_back`."""
    reply.metadata.__dict__["_message_id"] = tree.object_id
    client, node = fleet._client, fleet._node
    done = client.PushMessages(
        PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree],
        )
    )
    wanted = [name for name in contents if name in set(done.objects_to_push)]
    for name in wanted[: len(wanted) - keep_back]:
        stored = client.PushObject(
            PushObjectRequest(
                node=node,
                run_id=reply.metadata.run_id,
                object_id=name,
                object_content=contents[name],
                session_id=done.session_id,
            )
        )
        assert stored.stored


def send_in_part(fleet: Fleet, reply: Message) -> None:
    """Uploads all of a reply but its last piece."""
    contents = {name: thing.deflate() for name, thing in get_all_nested_objects(reply).items()}
    send_dishonestly(fleet, reply, get_object_tree(reply), contents, keep_back=1)


def test_a_reply_that_stops_in_the_middle_holds_nobody_up_and_is_asked_for_again(
    place: Place, control: Control, grid: PatientGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "STALL_SECONDS", 1.0)
    slow, quick = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    nodes = [register(control, slow, "slow"), register(control, quick, "quick")]
    with joined(place, slow) as first, joined(place, quick) as second:
        names = grid.push_messages([question(node) for node in nodes])
        send_in_part(first, answer(received(first)))
        second.send(answer(received(second)))
        began = time.monotonic()
        assert grid.pull_messages(names[:1]) == []
        (reply,) = replies(grid, names[1:], 10)
        assert text_of(reply) == "!"
        found: list[Message] = []

        def asked_again() -> bool:
            assert grid.pull_messages(names[:1]) == []
            message = first.receive()
            return message is not None and not found.append(message)

        until(asked_again, 10)
        first.send(answer(found[0], "whole"))
        assert time.monotonic() - began < 10
        assert text_of(replies(grid, names[:1], 10)[0]) == "whole"


def test_a_node_that_never_uploads_a_whole_reply_is_given_up(
    place: Place, control: Control, grid: PatientGrid, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "STALL_SECONDS", 0.3)
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node)])
        found: list[Message] = []
        asked = 0

        def given_up() -> bool:
            nonlocal asked
            message = fleet.receive()
            if message is not None:
                asked += 1
                send_in_part(fleet, answer(message, str(asked)))
            found.extend(grid.pull_messages(names))
            return bool(found)

        until(given_up, 30)
        assert "cut off" in found[0].error.reason
        assert asked == 4


@pytest.mark.parametrize(
    "content",
    [b"Message  7\0garbage", b"ConfigRecord  0\0", b"ArrayChunk  4\0abcd", b"Message  0\0", b"RecordDict  0\0"],
)
def test_a_reply_that_cannot_be_read_is_an_error_and_no_exception(
    place: Place, control: Control, grid: PatientGrid, key: Key, content: bytes
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node)])
        name = hashlib.sha256(content).hexdigest()
        send_dishonestly(fleet, answer(received(fleet)), ObjectTree(object_id=name), {name: content})
        (reply,) = replies(grid, names, 20)
        assert "cannot be read" in reply.error.reason
        assert reply.metadata.reply_to_message_id == names[0]


def test_a_reply_that_is_too_long_is_not_kept(place: Place, control: Control, key: Key) -> None:
    node = register(control, key)
    with (
        open_grid(place.admin, place.secret, patience=UP, max_reply_bytes=100_000) as grid,
        joined(place, key) as fleet,
    ):
        names = grid.push_messages([question(node)])
        fleet.send(answer(received(fleet), size=200_000))
        (reply,) = replies(grid, names, 20)
        assert "longer than 100,000 bytes" in reply.error.reason


def test_where_a_reply_comes_from_is_not_what_it_says(
    place: Place, control: Control, grid: PatientGrid, key: Key
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node)])
        honest = answer(received(fleet))
        forged = answer_with(honest, _src_node_id=1, _reply_to_message_id="0" * 64)
        contents = {name: thing.deflate() for name, thing in get_all_nested_objects(forged).items()}
        # The envelope must be right for the SuperLink to take it; what lies in it says something else.
        send_dishonestly(fleet, honest, get_object_tree(forged), contents)
        (reply,) = replies(grid, names, 20)
        assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (node, names[0])


def answer_with(message: Message, **changed: object) -> Message:
    import copy

    from flwr.app.message import make_message

    metadata = copy.deepcopy(message.metadata)
    metadata.__dict__.update(changed)
    return make_message(metadata=metadata, content=message.content)


# A SuperLink that is killed


def test_after_a_kill_the_node_its_session_and_the_run_are_still_there(
    place: Place, supervisor: Supervisor, control: Control, grid: PatientGrid, key: Key
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        run = grid.run.run_id
        kill(supervisor)
        assert control.list_nodes()[node].online
        assert node in grid.get_node_ids()
        names = grid.push_messages([question(node)])
        message = received(fleet)
        assert message.metadata.run_id == run
        fleet.send(answer(message))
        assert text_of(replies(grid, names)[0]) == "!"


@pytest.mark.parametrize("moment", ["asked", "taken", "answered"])
def test_a_message_outlives_a_kill_at_every_stage_of_its_way(
    place: Place, supervisor: Supervisor, control: Control, grid: PatientGrid, key: Key, moment: str
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node, "?", size=1000)])
        if moment == "asked":
            kill(supervisor)
        message = received(fleet)
        if moment == "taken":
            kill(supervisor)
        fleet.send(answer(message, size=100_000))
        if moment == "answered":
            kill(supervisor)
        assert text_of(replies(grid, names)[0]) == "!"


def test_an_answer_that_was_lost_on_its_last_step_is_asked_for_again(
    place: Place, control: Control, grid: PatientGrid, key: Key
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node)])
        fleet.send(answer(received(fleet), "lost"))
        # As if the SuperLink had died after it had handed the reply over, and before we heard of it.
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest

        until(lambda: bool(grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=names)).messages_list))
        assert grid.pull_messages(names) == []
        fleet.send(answer(received(fleet), "again"))
        (reply,) = replies(grid, names)
        assert (text_of(reply), reply.metadata.reply_to_message_id) == ("again", names[0])


def test_what_has_run_out_of_time_is_not_asked_again(control: Control, grid: PatientGrid, key: Key) -> None:
    node = register(control, key)
    names = grid.push_messages([question(node, ttl=0.5)])
    time.sleep(0.6)
    (reply,) = replies(grid, names, 10)
    assert reply.has_error()


@pytest.mark.slow  # nodes have twenty seconds to confirm what they were handed before
def test_a_question_that_never_reached_its_node_is_delivered_after_a_kill(
    place: Place, supervisor: Supervisor, control: Control, grid: PatientGrid, key: Key
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node)])
        # As if the SuperLink had died between marking the message as delivered and handing it over.
        change(place, "UPDATE message_ins SET delivered_at = '2000'")
        assert fleet.receive() is None
        kill(supervisor)
        fleet.send(answer(received(fleet)))
        assert text_of(replies(grid, names)[0]) == "!"


def test_a_reply_that_never_reached_us_is_delivered_after_a_kill(
    place: Place, supervisor: Supervisor, control: Control, grid: PatientGrid, key: Key
) -> None:
    node = register(control, key)
    with joined(place, key) as fleet:
        names = grid.push_messages([question(node)])
        fleet.send(answer(received(fleet)))
        change(place, "UPDATE message_res SET delivered_at = '2000'")
        assert grid.pull_messages(names) == []
        kill(supervisor)
        assert text_of(replies(grid, names)[0]) == "!"
        assert fleet.receive() is None


def change(place: Place, statement: str) -> None:
    connection = sqlite3.connect(place.state.path / "superlink.db", timeout=10)
    assert connection.execute(statement).rowcount
    connection.commit()
    connection.close()


@pytest.mark.slow  # an upload that a kill cut off is given up after fifteen seconds
def test_a_kill_in_the_middle_of_everything_loses_no_answer(
    place: Place, supervisor: Supervisor, control: Control, grid: PatientGrid
) -> None:
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(3)]
    nodes = [register(control, each, f"node-{i}") for i, each in enumerate(keys)]
    done = threading.Event()

    def work(key: Key) -> None:
        with joined(place, key) as fleet:
            while not done.is_set():
                try:
                    message = fleet.receive()
                    if message is None:
                        time.sleep(0.05)
                    else:
                        fleet.send(answer(message, text_of(message), size=300_000))
                except MessageLost:
                    continue

    threads = [threading.Thread(target=work, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    try:
        until(lambda: set(nodes) <= set(grid.get_node_ids()))
        for turn in range(6):
            names = grid.push_messages([question(node, f"{turn}/{node}", size=20_000) for node in nodes])
            killer = threading.Timer(0.05 * turn, kill, (supervisor,))
            killer.start()
            found = replies(grid, names)
            killer.join()
            assert sorted(map(text_of, found)) == sorted(f"{turn}/{node}" for node in nodes)
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow  # it takes three health checks to notice
def test_one_that_hangs_is_killed_and_started_again(
    place: Place, supervisor: Supervisor, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuralforge_server import supervisor as module

    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.2)
    monkeypatch.setattr(module, "_CHECK_TIMEOUT", 0.3)
    kill(supervisor)  # so that the new one is watched with these
    before = supervisor.restarts
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    until(lambda: supervisor.restarts > before and supervisor.is_healthy)
    assert control.list_nodes() is not None


# Its files and its process


def test_its_files_are_for_their_owner_alone(place: Place, supervisor: Supervisor) -> None:
    for path in place.state.path.glob("superlink*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_it_tells_no_secret(place: Place, supervisor: Supervisor) -> None:
    arguments = Path(f"/proc/{supervisor.pid}/cmdline")
    if not arguments.exists():
        pytest.skip("no /proc here")
    assert place.secret not in arguments.read_bytes()
    assert place.secret.hex().encode() not in arguments.read_bytes()


@pytest.fixture
def another(tmp_path: Path) -> Place:
    return make_place(tmp_path / "state")


@pytest.mark.parametrize("which", ["fleet_port", "admin_port"])
def test_a_port_in_use_is_one_clear_line(another: Place, which: str) -> None:
    port = getattr(another, which)
    with socket.create_server(("127.0.0.1", port)), another.supervisor() as supervisor:
        with pytest.raises(FederationError, match=f"cannot listen on 127.0.0.1:{port}: it is in use") as caught:
            supervisor.wait_healthy(UP)
        assert "listen:" in caught.value.hint


def test_a_port_in_use_ends_the_process_with_a_line_and_a_hint(another: Place) -> None:
    with socket.create_server(("127.0.0.1", another.fleet_port)):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "neuralforge_server.superlink", str(another.state.path)),
                *("--host", "127.0.0.1", "--fleet-port", str(another.fleet_port)),
                *("--admin-port", str(another.admin_port)),
            ],
            capture_output=True,
            text=True,
            timeout=UP,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"error: cannot listen on 127.0.0.1:{another.fleet_port}: it is in use by another program",
        "  hint: choose other ports under listen:",
    ]


@pytest.mark.parametrize("name", ["", "superlink.secret", "server.key"])
def test_looser_modes_are_refused(another: Place, name: str) -> None:
    (another.state.path / name).chmod(0o755)
    with another.supervisor() as supervisor, pytest.raises(FederationError, match="others than its owner"):
        supervisor.wait_healthy(UP)


def test_a_key_that_is_not_the_certificates_is_refused(another: Place) -> None:
    (another.state.path / "server.key").write_bytes((another.state.path / "ca.key").read_bytes())
    with another.supervisor() as supervisor, pytest.raises(FederationError, match=r"cannot use .*server\.pem"):
        supervisor.wait_healthy(UP)


def test_a_damaged_database_is_set_aside_and_a_fresh_one_takes_its_place(another: Place) -> None:
    database = another.state.path / "superlink.db"
    database.write_bytes(b"nothing that SQLite knows" * 1000)
    database.chmod(0o600)
    with another.supervisor() as supervisor:
        supervisor.wait_healthy(UP)
        with Control(another.admin, another.secret) as control:
            assert control.list_nodes() == {}
    assert len(list(another.state.path.glob("superlink.db.damaged-*"))) == 1
    assert "was damaged" in (another.state.path / "superlink.log").read_text()


def test_it_ends_with_whoever_started_it(another: Place) -> None:
    program = (
        "import sys, time; from pathlib import Path; from neuralforge_server.supervisor import Supervisor\n"
        "ports = {'fleet_port': int(sys.argv[2]), 'admin_port': int(sys.argv[3])}\n"
        "s = Supervisor(Path(sys.argv[1]), host='127.0.0.1', **ports)\n"
        "s.start(); s.wait_healthy(60); print(s.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, another.state.path, str(another.fleet_port), str(another.admin_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not _runs(pid), 5)
    # The ports are free for the next one at once.
    with another.supervisor() as supervisor:
        supervisor.wait_healthy(UP)


def _runs(pid: int) -> bool:
    try:
        return b" Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


def test_stopping_it_leaves_nothing_running(another: Place) -> None:
    with another.supervisor() as supervisor:
        supervisor.wait_healthy(UP)
        pid = supervisor.pid
    assert pid is not None
    assert not _runs(pid)
    assert supervisor.pid is None
    assert supervisor.restarts == 0


def test_nobody_home_is_told_after_the_patience(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Control(f"127.0.0.1:{port}", b"x" * 32, patience=0.5) as control:
        began = time.monotonic()
        with pytest.raises(FederationError, match="does not answer"):
            control.list_nodes()
        assert time.monotonic() - began < 5
