"""The session at Flower's Fleet API: what comes and goes, and what each failure says."""

import contextlib
import datetime
import inspect
import sqlite3
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from neuralforge.federation.flower import Fleet, MessageLost, Stopped, calls, connect
from neuralforge.federation.flower import fleet as sessions
from neuralforge_common.certificates import certificate_pem, create_authority
from neuralforge_common.errors import FederationError

Key = ec.EllipticCurvePrivateKey


def received(fleet: Fleet, *, within: float = 30) -> Message:
    until = time.monotonic() + within
    while (message := fleet.receive()) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return message


def text(words: str) -> RecordDict:
    return RecordDict({"words": ConfigRecord({"text": words})})


@pytest.mark.parametrize("ahead", [100, -200, 6])
def test_a_clock_that_is_minutes_off_is_reckoned_with(link: Any, run: Any, key: Key, ahead: float) -> None:
    node = link.register(key, f"clock{ahead}")
    told: list[str] = []
    with connect(link.fleet, link.ca, key, clock=lambda: time.time() + ahead, tell=told.append, linger=0) as fleet:
        asked = run.ask(node, text("question"))
        fleet.send(Message(text("answer"), reply_to=received(fleet)))
        assert run.reply(asked).has_content()
    # Signatures from the past are good for five minutes.
    assert len(told) == (ahead > 0)
    assert all("s ahead of the server's" in line for line in told)


def test_a_clock_that_is_hours_off_is_refused(link: Any, key: Key) -> None:
    link.register(key, "hours")
    session = connect(link.fleet, link.ca, key, clock=lambda: time.time() + 7200)
    with pytest.raises(FederationError, match="does not accept its signature") as refused, session:
        pass
    assert "a clock far off" in refused.value.hint


def test_what_is_sent_comes_back_byte_for_byte(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "round-trip")
    data = np.random.default_rng(0).bytes(11 * 2**20)  # three of Flower's chunks
    sent = RecordDict({"flat": ArrayRecord({"flat": Array("uint8", (len(data),), "bytes", data)})})
    with connect(link.fleet, link.ca, key, linger=0) as fleet:
        assert fleet.node_id == node
        assert fleet.receive() is None
        asked = run.ask(node, sent)
        message = received(fleet)
        assert message.content["flat"]["flat"].data == data
        assert fleet.send(Message(message.content, reply_to=message)) >= len(data)
        reply = run.reply(asked)
        assert reply.content["flat"]["flat"].data == data
        assert reply.metadata.src_node_id == node


def forget_parts(link: Any) -> None:
    """What a sender leaves behind that dies between a message's header and its parts."""
    with contextlib.closing(sqlite3.connect(link.state.path / "superlink.db", timeout=10)) as database, database:
        changed = database.execute("UPDATE objects SET is_available = 0, content = x'' WHERE is_available = 1")
        assert changed.rowcount > 0


def test_a_message_whose_parts_never_come_is_let_go_and_the_next_one_is_not(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "parts")
    with connect(link.fleet, link.ca, key, linger=0, parts_wait=1) as fleet:
        run.ask(node, text("half"))
        forget_parts(link)
        with pytest.raises(MessageLost, match="does not have a message any more"):
            received(fleet)
        run.ask(node, text("whole"))
        assert received(fleet).content["words"]["text"] == "whole"


def test_waiting_for_the_parts_of_a_message_can_be_stopped(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "parts-stopped")
    stop = threading.Event()
    with connect(link.fleet, link.ca, key, linger=0, stop=stop.is_set) as fleet:
        run.ask(node, text("half"))
        forget_parts(link)
        threading.Timer(1, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            received(fleet)
        assert time.monotonic() - began < 20


def test_messages_come_in_the_order_in_which_they_were_sent(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "order")
    with connect(link.fleet, link.ca, key, linger=0) as fleet:
        for words in "abc":
            run.ask(node, text(words))
        assert [received(fleet).content["words"]["text"] for _ in range(3)] == ["a", "b", "c"]


def test_a_session_that_ends_lets_the_next_one_in_at_once(link: Any, key: Key) -> None:
    link.register(key, "again")
    told: list[str] = []
    for _ in range(3):
        with connect(link.fleet, link.ca, key, tell=told.append):
            pass
    assert told == []


def test_a_second_session_waits_for_the_end_of_the_first_and_says_so(link: Any, key: Key) -> None:
    link.register(key, "twice")
    told: list[str] = []
    with connect(link.fleet, link.ca, key) as first:
        threading.Timer(1.5, first.close).start()
        with connect(link.fleet, link.ca, key, tell=told.append) as second:
            assert second.node_id == first.node_id
    assert len(told) == 1
    assert "an earlier session of it may still count as online" in told[0]


def test_waiting_for_an_old_session_can_be_stopped(link: Any, key: Key) -> None:
    link.register(key, "stopped")
    stop = threading.Event()
    with connect(link.fleet, link.ca, key):
        threading.Timer(0.5, stop.set).start()
        with pytest.raises(Stopped), connect(link.fleet, link.ca, key, stop=stop.is_set):
            pass


def test_a_key_that_is_not_registered_is_told_so(link: Any, key: Key) -> None:
    with (
        pytest.raises(FederationError, match="its key is not registered there or was revoked") as refused,
        connect(link.fleet, link.ca, key, old_session_wait=1),
    ):
        pass
    assert "nf-client join" in refused.value.hint


def test_who_knows_better_why_a_node_is_not_let_in_says_it_at_once(link: Any, key: Key) -> None:
    def check() -> None:
        raise FederationError("revoked yesterday")

    with (
        pytest.raises(FederationError, match="revoked yesterday"),
        connect(link.fleet, link.ca, key, check_member=check),
    ):
        pass


def test_a_node_that_is_revoked_is_told_so_at_the_next_call(link: Any, key: Key) -> None:
    node = link.register(key, "revoked")
    with connect(link.fleet, link.ca, key, old_session_wait=1) as fleet:
        link.revoke(node)
        with pytest.raises(FederationError, match="revoked"):
            fleet.receive()


def test_another_authority_is_not_trusted(link: Any, key: Key) -> None:
    other = certificate_pem(create_authority(datetime.datetime.now(datetime.UTC)).certificate)
    began = time.monotonic()
    with pytest.raises(FederationError, match="not a server of this federation"), connect(link.fleet, other, key):
        pass
    assert time.monotonic() - began < 5


def test_a_name_that_the_certificate_does_not_have_is_refused(link: Any, key: Key) -> None:
    address = f"localhost:{link.fleet_port}"
    with (
        pytest.raises(FederationError, match=r"not a server of this federation: .*localhost"),
        connect(address, link.ca, key),
    ):
        pass


def test_a_server_that_does_not_answer_is_told_after_a_few_tries(link: Any, key: Key) -> None:
    with (
        pytest.raises(FederationError, match=r"127\.0\.0\.1:9 does not answer: .*refused") as refused,
        connect("127.0.0.1:9", link.ca, key, first_patience=0.5),
    ):
        pass
    assert "is the server running" in refused.value.hint


def test_a_port_without_tls_is_told_so(link: Any, key: Key) -> None:
    with pytest.raises(FederationError, match="does not speak TLS"), connect(link.admin, link.ca, key):
        pass


def test_a_reply_that_comes_too_late_is_lost_and_the_next_one_is_not(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "late")
    with connect(link.fleet, link.ca, key, linger=0) as fleet:
        run.ask(node, text("quick"), ttl=1)
        late = received(fleet)
        time.sleep(1.2)
        with pytest.raises(MessageLost, match="too late"):
            fleet.send(Message(text("slow"), reply_to=late))
        asked = run.ask(node, text("again"))
        fleet.send(Message(text("in time"), reply_to=received(fleet)))
        assert run.reply(asked).content["words"]["text"] == "in time"


def test_a_node_that_goes_right_after_its_reply_is_heard(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "leaves")
    with connect(link.fleet, link.ca, key) as fleet:
        asked = run.ask(node, text("question"))
        fleet.send(Message(text("answer"), reply_to=received(fleet)))
        leaving = threading.Thread(target=fleet.close)
        leaving.start()
        time.sleep(0.7)
        assert run.reply(asked).content["words"]["text"] == "answer"
        leaving.join()
    assert not run.is_online(node)


@pytest.mark.slow  # the server counts a node as gone after twenty seconds without a sign of life
def test_a_node_that_works_for_long_stays_online(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "long")
    with connect(link.fleet, link.ca, key):
        time.sleep(2 * sessions.HEARTBEAT_INTERVAL + 2)
        assert run.is_online(node)
    assert not run.is_online(node)


@pytest.mark.slow  # starts a SuperLink of its own
def test_a_server_that_is_killed_and_started_again_is_found_again(make_link: Callable[[], Any], key: Key) -> None:
    link = make_link()
    node = link.register(key, "patient")
    told: list[str] = []
    with connect(link.fleet, link.ca, key, tell=told.append) as fleet:
        assert fleet.receive() is None
        link.kill()
        got: list[Message | None] = []
        waiting = threading.Thread(target=lambda: got.append(fleet.receive()))
        waiting.start()
        until = time.monotonic() + 10
        while not told:
            assert time.monotonic() < until
            time.sleep(0.05)
        link.start()
        waiting.join(30)
        assert got == [None]
        with link.run() as run:
            asked = run.ask(node, text("after"))
            fleet.send(Message(text("answered"), reply_to=received(fleet)))
            assert run.reply(asked).content["words"]["text"] == "answered"
    assert ["does not answer, trying again" in told[0], "answers again" in told[1]] == [True, True]
    assert len(told) == 2


@pytest.mark.slow  # starts a SuperLink of its own
def test_a_server_that_comes_back_without_its_database_takes_the_node_in_again(
    make_link: Callable[[], Any], key: Key
) -> None:
    link = make_link()
    link.register(key, "first")
    with connect(link.fleet, link.ca, key) as fleet:
        before = fleet.node_id
        link.kill()
        for path in link.state.path.glob("superlink.db*"):
            path.unlink()
        link.start()
        # As the coordinator does from its own registry, a moment later.
        threading.Timer(1, link.register, [key, "second"]).start()
        assert fleet.receive() is None
        assert fleet.node_id != before


@pytest.mark.slow  # starts a SuperLink of its own
def test_a_run_that_was_ended_loses_its_message(make_link: Callable[[], Any], key: Key) -> None:
    link = make_link()
    node = link.register(key, "ended")
    with connect(link.fleet, link.ca, key) as fleet:
        with link.run() as run:
            run.ask(node, text("question"))
            message = received(fleet)
        with pytest.raises(MessageLost, match="closed this round"):
            fleet.send(Message(text("answer"), reply_to=message))
        assert fleet.receive() is None


def test_the_private_names_of_flwr_that_we_build_on_are_as_they_were(key: Key) -> None:
    """Where this fails after an update of flwr, `flower/` is to be read again beside the new version's source."""

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(calls.FleetHttpClient) == ["base_url", "interceptors", "verify", "timeout", "retry_invoker"]
    assert isinstance(calls.FleetHttpClient("https://localhost:1")._client, calls.httpx.Client)
    for name in ("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages"):
        assert parameters(getattr(calls.FleetHttpClient, name)) == ["self", "request"]
    for name in ("PullObject", "PushObject", "ConfirmMessageReceived"):
        assert parameters(getattr(calls.FleetHttpClient, name)) == ["self", "request"]
    assert parameters(NodeAuthHttpInterceptor) == ["private_key", "public_key"]
    assert _headers(NodeAuthHttpInterceptor(key, key.public_key())) == _headers(calls.Signature(key, time.time))
    assert parameters(calls.RuntimeVersionHttpInterceptor) == ["component_name"]
    assert parameters(calls.RuntimeVersionHttpInterceptor.intercept) == ["self", "context", "call_next"]
    assert parameters(sessions.make_pull_object_fn_protobuf) == ["pull_object_protobuf", "node", "run_id"]
    assert parameters(sessions.make_push_object_fn_protobuf) == ["push_object_protobuf", "node", "run_id", "session_id"]
    assert parameters(sessions.push_objects)[:3] == ["objects", "push_object_fn", "object_ids_to_push"]
    assert parameters(sessions.pull_objects) == [
        *("object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time"),
        *("max_tries_per_object", "initial_backoff", "backoff_cap"),
    ]
    assert parameters(sessions.inflate_object_from_contents)[:2] == ["object_id", "object_contents"]
    assert calls.ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == 2004
    assert calls.ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE == 1001
    assert sessions.HEARTBEAT_MIN_INTERVAL == 10
    message = Message(text("x"), reply_to=_asked())
    message.metadata.__dict__["_message_id"] = message.object_id
    assert message.metadata.message_id == message.object_id


def _asked() -> Message:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(text("?"), dst_node_id=2, message_type="train")


def _headers(interceptor: Any) -> tuple[list[str], str]:
    """The names of the headers that sign a call, and the part of them that is the same each time."""
    request = calls.httpx.Request("POST", "https://localhost:1")
    before = set(request.headers)
    interceptor.intercept(SimpleNamespace(request=request), lambda context: None)
    names = sorted(set(request.headers) - before)
    stamp = datetime.datetime.fromisoformat(request.headers[calls.TIMESTAMP_HEADER])
    assert abs((datetime.datetime.now(datetime.UTC) - stamp).total_seconds()) < 5
    return names, request.headers[calls.FLEET_HTTP_PUBLIC_KEY_HEADER]
