"""A client that stays: questions are answered, twice the same one alike, and nothing that goes wrong ends it."""

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge.federation.connection import Asked, Event, Resident, Sent
from neuralforge.federation.flower import connect
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.certificates import private_pem
from neuralforge_common.errors import DataError, FederationError
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_of, plan_to_records, raw_reply, reply_to_records

Key = ec.EllipticCurvePrivateKey

PLAN = RoundPlan(
    federation="tests",
    round=1,
    rounds=3,
    nonce="a",
    spec=AdapterSpec(base="nf-tiny", base_fingerprint="0" * 64, rank=2, alpha=4, target_modules=("q_proj",)),
    layout_digest="0" * 64,
    steps=1,
    batch_size=1,
    learning_rate=1e-3,
    max_length=8,
)
STATE = np.arange(8, dtype=np.float32)


class Counting:
    """A ClientApp that counts its work, so that work that was done twice shows."""

    def __init__(self) -> None:
        self.trained = 0
        self.contexts: list[Context] = []
        self.app = ClientApp()
        self.app.train()(self.train)
        self.app.query("finish")(self.finish)
        self.app.query("fail")(self.fail)
        self.app.query("refuse")(self.refuse)

    def train(self, message: Message, context: Context) -> Message:
        self.trained += 1
        self.contexts.append(context)
        plan = plan_of(message.content)
        report = TrainReport(
            round=plan.round,
            nonce=plan.nonce,
            base_fingerprint=plan.spec.base_fingerprint,
            rank=plan.spec.rank,
            alpha=plan.spec.alpha,
            part=plan.part,
            examples=self.trained,
            steps=1,
            tokens=8,
        )
        return Message(reply_to_records(report, self.trained * STATE, "fp32"), reply_to=message)

    def finish(self, message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    def fail(self, message: Message, context: Context) -> Message:
        raise DataError("/home/ann/secret.py holds nothing")

    def refuse(self, message: Message, context: Context) -> Message:
        raise FederationError("asked for rank 99, allowed: at most 8")


@contextmanager
def staying(
    link: Any, key: Key, app: ClientApp, **more: Any
) -> Iterator[tuple[list[str], list[Sent], threading.Event]]:
    """A resident in a thread: how it ended, what it sent, and a stop for it."""
    ends: list[str] = []
    sent: list[Sent] = []
    asked: list[Asked] = []
    stop, online = threading.Event(), threading.Event()

    def observe(event: Event) -> None:
        if isinstance(event, Sent):
            sent.append(event)
        else:
            asked.append(event)

    def stay() -> None:
        with connect(link.fleet, link.ca, key, stop=stop.is_set, linger=0.2) as fleet:
            online.set()
            ends.append(Resident(fleet, app, observe=observe, stop=stop.is_set, **more).stay())

    thread = threading.Thread(target=stay)
    thread.start()
    try:
        assert online.wait(30)
        yield ends, sent, stop
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
    # Who watches hears of every question before it is answered.
    assert [one.answer.kind for one in sent] == [one.kind for one in asked][: len(sent)]


def question(**changes: Any) -> RecordDict:
    return plan_to_records(dataclasses.replace(PLAN, **changes), STATE)


def test_questions_are_answered_until_the_federation_is_over(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "stays")
    counting = Counting()
    with staying(link, key, counting.app, node_config={"shelf": 3}) as (ends, sent, _):
        for number in (1, 2):
            reply = run.reply(run.ask(node, question(round=number, nonce=str(number))))
            assert TrainReport.from_json(raw_reply(reply.content).report).round == number
        run.reply(run.ask(node, question(nonce="finish"), kind="query.finish"))
        until = time.monotonic() + 10
        while not ends and time.monotonic() < until:
            time.sleep(0.05)
        assert ends == ["finished"]
    assert [one.answer.kind for one in sent] == ["train", "train", "query.finish"]
    assert [one.answer.report and one.answer.report.round for one in sent] == [1, 2, None]
    assert all(one.bytes_sent > 0 and not one.lost and not one.answer.error for one in sent)
    first, second = counting.contexts
    assert first is second  # what an app keeps for a run is kept
    assert (first.node_id, first.node_config) == (node, {"shelf": 3})


def test_the_same_plan_twice_is_trained_once_and_answered_alike(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "twice-asked")
    counting = Counting()
    with staying(link, key, counting.app):
        answers = [raw_reply(run.reply(run.ask(node, question())).content) for _ in range(3)]
        assert counting.trained == 1
        assert answers[0] == answers[1] == answers[2]
        again = raw_reply(run.reply(run.ask(node, question(nonce="b"))).content)
        assert counting.trained == 2
        assert again.delta != answers[0].delta


def test_of_a_failure_only_its_kind_leaves_the_machine(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "fails")
    told: list[str] = []
    with staying(link, key, Counting().app, tell=told.append) as (_, sent, _stop):
        replies = [run.reply(run.ask(node, RecordDict(), kind=f"query.{name}")) for name in ("fail", "refuse", "xyz")]
        assert [reply.error.reason for reply in replies] == [
            "DataError",
            "asked for rank 99, allowed: at most 8",
            "ValueError",
        ]
        assert run.reply(run.ask(node, question())).has_content()  # and it goes on
    assert "/home/ann/secret.py" in told[0]
    assert [bool(one.answer.error) for one in sent] == [True, True, True, False]


def test_a_failed_round_is_tried_again_when_it_is_asked_for_again(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "second-try")
    app, tries = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return Message(RecordDict({"ok": ConfigRecord({"n": 1})}), reply_to=message)

    with staying(link, key, app):
        assert run.reply(run.ask(node, question())).error.reason == "MemoryError"
        assert run.reply(run.ask(node, question())).has_content()


def test_a_stop_ends_it_and_the_node_goes_offline_at_once(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "stops")
    with staying(link, key, Counting().app) as (ends, _, stop):
        run.reply(run.ask(node, question()))
        assert run.is_online(node)
        stop.set()
        until = time.monotonic() + 5
        while run.is_online(node):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert ends == ["stopped"]


def test_work_that_a_stop_cut_off_is_not_answered(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "cut-off")
    app, begun = ClientApp(), threading.Event()
    held: list[threading.Event] = []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        begun.set()
        held[0].wait(20)
        raise InterruptedError

    with staying(link, key, app) as (ends, sent, stop):
        held.append(stop)
        asked = run.ask(node, question())
        assert begun.wait(20)
        stop.set()
        assert run.reply(asked).error.code == 5  # the server knows at once that nobody is there
    assert (ends, sent) == (["stopped"], [])


def test_a_reply_that_is_not_wanted_any_more_is_said_to_be_lost(link: Any, run: Any, key: Key) -> None:
    node = link.register(key, "straggles")
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(1.3)
        return Message(RecordDict(), reply_to=message)

    with staying(link, key, app) as (_, sent, _stop):
        run.ask(node, question(), ttl=1)
        until = time.monotonic() + 10
        while not sent:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert sent[0].lost == "the reply came too late"


CLIENT = """
import sys
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from neuralforge.federation.connection import Resident
from neuralforge.federation.flower import connect
from neuralforge_common.certificates import read_private_key

app = ClientApp()

@app.train()
def train(message, context):
    return Message(RecordDict({"answer": ConfigRecord({"ok": 1})}), reply_to=message)

address, ca, key = sys.argv[1], Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]).read_bytes()
with connect(address, ca, read_private_key(key, "the key"), tell=print) as fleet:
    print("online", flush=True)
    Resident(fleet, app).stay()
"""


@pytest.mark.slow  # the server counts a node as gone after twenty seconds without a sign of life
def test_a_client_that_was_killed_is_back_within_half_a_minute(link: Any, run: Any, key: Key, tmp_path: Path) -> None:
    node = link.register(key, "killed")
    (tmp_path / "ca.pem").write_bytes(link.ca)
    (tmp_path / "key").write_bytes(private_pem(key))
    command = [sys.executable, "-c", CLIENT, link.fleet, str(tmp_path / "ca.pem"), str(tmp_path / "key")]

    def started() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line == "online\n":
                return process
            assert "an earlier session of it may still count as online" in line
        raise AssertionError("it ended")

    first = started()
    assert run.reply(run.ask(node, question())).has_content()
    first.send_signal(signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    second = started()
    try:
        assert time.monotonic() - began < 30
        assert run.reply(run.ask(node, question(nonce="b"))).has_content()
    finally:
        second.kill()
        second.wait()


@pytest.mark.slow  # starts a SuperLink of its own
def test_it_goes_on_after_the_server_was_killed_and_started_again(make_link: Callable[[], Any], key: Key) -> None:
    link = make_link()
    node = link.register(key, "outlives")
    with staying(link, key, Counting().app) as (ends, sent, _), link.run() as run:
        assert run.reply(run.ask(node, question())).has_content()
        link.kill()
        link.start()
        assert run.reply(run.ask(node, question(round=2, nonce="b"))).has_content()
        assert ends == []
    assert [one.answer.report and one.answer.report.round for one in sent] == [1, 2]
