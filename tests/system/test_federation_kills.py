"""Federations to whose processes and disks bad things happen: they go on, or end with one line and go on later."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from federation_rig import Process, Team, four_free_ports, wait_until
from flwr.app import ConfigRecord, Message, RecordDict

from neuralforge.federation.flower import connect
from neuralforge_common.certificates import openssh_public_key
from neuralforge_server.flower import Control, open_grid
from neuralforge_server.state_folder import create_state_folder
from neuralforge_server.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_federation.py"
POINTS = 20
STEADY = 60.0


def test_whatever_is_killed_when_the_adapter_ends_as_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--points", str(POINTS), "--rounds", "8", "--kills", "10"),
            *("--keep", str(tmp_path / "kills"), "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=890,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["points"] == len(summary["made"]) == POINTS
    assert {"coordinator", "SuperLink", "ann", "bob"} == set(summary["killed"])
    assert summary["clients_with_the_adapter"] >= summary["federations"]


def test_a_round_goes_on_without_a_client_that_never_comes_back_and_names_it(tmp_path: Path) -> None:
    with Team(place=tmp_path, rounds=1, quorum=1, steps=60) as team:
        team.wait_for_server(server := team.start_server())
        team.join_all()
        ann, bob = (team.start_client(name) for name in team.members)
        server.says("round 1: asked 2 clients", seconds=90)
        bob.kill()
        assert server.ends(120) == 0, server.said
        assert ann.ends(60) == 0, ann.said
        turned = [record for record in team.records if record["kind"] == "Turned"]
        assert [(record["client"], record["reason"]) for record in turned] == [("bob", "gone")]
        assert [entry["clients"] for entry in team.status()["rounds"]] == [1]
        # Twenty seconds without a sign of life, not the three minutes until the deadline.
        (seconds,) = re.findall(r"round 1 of 1 committed: 1 clients.*, (\d+) s", server.said)
        assert int(seconds) < STEADY
        shown = team.run("nf-server", "status").stdout
        assert re.search(r"bob +│ gone", shown), shown


def test_a_question_that_died_with_its_session_is_asked_again_though_nobody_saw_the_node_go(tmp_path: Path) -> None:
    state = create_state_folder(
        tmp_path / "state", hosts=["127.0.0.1"], config="", now=datetime.datetime.now(datetime.UTC)
    )
    first = four_free_ports()
    admin, fleet = f"127.0.0.1:{first + 1}", f"127.0.0.1:{first}"
    key = ec.generate_private_key(ec.SECP384R1())
    with (
        Supervisor(state.path, host="127.0.0.1", fleet_port=first, admin_port=first + 1) as supervisor,
        Control(admin, state.secret) as control,
    ):
        supervisor.wait_healthy(60)
        node = control.register_node(openssh_public_key(key.public_key()), "laptop")
        with open_grid(admin, state.secret) as grid:
            with connect(fleet, state.authority_pem, key) as session:
                content = RecordDict({"text": ConfigRecord({"text": "?"})})
                (asked,) = grid.push_messages([Message(content, dst_node_id=node, message_type="train", ttl=120.0)])
                wait_until(lambda: session.receive() is not None, seconds=20, what="the question arrives")
            with connect(fleet, state.authority_pem, key) as session:
                # Whoever waits was looking elsewhere while the node was away.
                assert list(grid.pull_messages([asked])) == []
                again = session.receive()
                assert again is not None
                session.send(Message(content, reply_to=again))
                wait_until(lambda: grid.pull_messages([asked]), seconds=20, what="the answer arrives")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lasting]:
    """A federation of two that is far from its end; a test may stop its server, and leaves one running."""
    place = tmp_path_factory.mktemp("lasting")
    with Team(place=place, rounds=5000, steps=1) as team, small_disk(team) as has_disk:
        federation = Lasting(team, has_disk)
        federation.start()
        team.join_all()
        for name in team.members:
            federation.clients[name] = team.start_client(name)
        federation.goes_on()
        yield federation


class Lasting:
    """The federation, its server as it runs now, and its clients."""

    def __init__(self, team: Team, has_disk: bool) -> None:
        self.team = team
        self.has_disk = has_disk
        self.clients: dict[str, Process] = {}
        self.server: Process

    def start(self) -> Process:
        self.server = self.team.start_server()
        self.team.wait_for_server(self.server)
        return self.server

    def goes_on(self, rounds: int = 1) -> None:
        """Wait until the server that runs now has committed some."""
        wait_until(
            lambda: self.server.said.count("committed:") >= rounds,
            seconds=2 * STEADY,
            what=f"{rounds} rounds more",
            told=lambda: self.server.said[-3000:] + "".join(c.said[-800:] for c in self.clients.values()),
        )

    def stop(self) -> str:
        """End the server as a service manager does; returns what it said last."""
        self.server.popen.send_signal(signal.SIGTERM)
        assert self.server.ends(30) == 128 + signal.SIGTERM, self.server.said
        return self.server.said.splitlines()[-1]

    @property
    def newest(self) -> tuple[int, str]:
        """The newest committed round, and its state's digest."""
        return max(self.team.states.items())


@contextmanager
def small_disk(team: Team) -> Iterator[bool]:
    """Moves the server's folder to a file system of its own that can be filled; False where that is not allowed."""
    aside = team.place / "aside"
    team.server.rename(aside)
    team.server.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", str(team.server)], capture_output=True
    )
    try:
        for path in aside.iterdir():
            shutil.move(path, team.server / path.name)
        aside.rmdir()
        yield mounted.returncode == 0
    finally:
        team.stop_all()
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(team.server)], check=True)


def test_a_server_that_is_told_to_end_says_so_and_goes_on_at_the_next_start(lasting: Lasting) -> None:
    last = lasting.stop()
    assert "the next nf-server start goes on from there" in last
    before = lasting.team.states
    lasting.start()
    lasting.goes_on()
    assert f"going on after round {max(before)}" in lasting.server.said
    after = lasting.team.states
    assert max(after) > max(before)
    assert before.items() <= after.items()
    assert all(client.goes_on for client in lasting.clients.values())  # they waited
    # The round that was given up is nobody's fault.
    assert not any(record["kind"] == "Turned" for record in lasting.team.records)


def test_a_client_that_is_interrupted_may_come_back_at_once(lasting: Lasting) -> None:
    ann = lasting.clients["ann"]
    ann.popen.send_signal(signal.SIGINT)
    assert ann.ends(30) == 128 + signal.SIGINT
    assert "stopped, and the server knows" in ann.said
    assert "Traceback" not in ann.said
    began = lasting.server.said.count("committed:")
    again = lasting.clients["ann"] = lasting.team.start_client("ann")
    again.says(r"round \d+/5000", seconds=STEADY)
    assert "earlier session" not in again.said
    lasting.goes_on(began + 1)


def test_a_killed_client_comes_back_when_its_old_session_is_over(lasting: Lasting) -> None:
    lasting.clients["bob"].kill()
    began = time.monotonic()
    bob = lasting.clients["bob"] = lasting.team.start_client("bob")
    bob.says(r"round \d+/5000", seconds=STEADY)
    # Two heartbeats of ten seconds, what starting takes, and a round; not the deadline of three minutes.
    assert time.monotonic() - began < STEADY
    assert "earlier session" in bob.said


def test_a_killed_superlink_is_started_again_and_the_round_goes_on(lasting: Lasting) -> None:
    before = lasting.server.said.count("committed:")
    child = lasting.team.superlink(lasting.server)
    assert child is not None
    child.kill()
    lasting.goes_on(before + 2)
    replaced = lasting.team.superlink(lasting.server)
    assert replaced is not None
    assert replaced.pid != child.pid
    assert lasting.server.goes_on


def test_a_state_that_was_damaged_is_set_aside_and_the_one_before_it_counts(lasting: Lasting) -> None:
    lasting.goes_on(2)
    lasting.stop()
    number, digest = lasting.newest
    path = lasting.team.server / "states" / f"{digest}.nfstate"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    lasting.start()
    lasting.goes_on()
    assert re.search(rf"{digest}\.nfstate is damaged", lasting.server.said)
    assert f"going on from round {number - 1}, the newest whose state is whole" in lasting.server.said
    assert f"going on after round {number - 1}" in lasting.server.said
    assert path.with_suffix(".damaged").read_bytes() == content
    # With the same clients it comes to the same bytes again.
    assert lasting.team.states[number] == digest


def test_a_damaged_ledger_is_set_aside_and_made_anew(lasting: Lasting) -> None:
    lasting.stop()
    number, digest = lasting.newest
    database = lasting.team.server / "rounds.db"
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    content = bytearray(database.read_bytes())
    content[:64] = os.urandom(64)
    database.write_bytes(content)
    told = lasting.team.run("nf-server", "status")
    assert told.returncode == 1
    assert "Traceback" not in told.stderr
    lasting.start()
    lasting.goes_on()
    said = lasting.server.said
    assert re.search(r"rounds\.db was damaged", said)
    assert re.search(rf"rounds\.db was made anew from .*states: rounds .*\b{number}\b", said)
    assert f"going on after round {number}" in said
    assert lasting.team.states[number] == digest
    assert [path.read_bytes() for path in lasting.team.server.glob("rounds.db.damaged-????????")] == [bytes(content)]


def test_a_damaged_superlink_database_costs_nothing(lasting: Lasting) -> None:
    lasting.stop()
    number, _ = lasting.newest
    database = lasting.team.server / "superlink.db"
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(os.urandom(4096))
    lasting.start()
    lasting.goes_on()
    assert f"going on after round {number}" in lasting.server.said
    assert all(client.goes_on for client in lasting.clients.values())
    assert "was damaged" in (lasting.team.server / "superlink.log").read_text()


def test_a_full_disk_is_one_line_and_the_rounds_go_on_when_there_is_space(lasting: Lasting) -> None:
    if not lasting.has_disk:
        pytest.skip("needs a file system of its own to fill, which only root can mount")
    ballast = lasting.team.server / "ballast"
    before = lasting.team.states
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 2**20):
            pass
    server = lasting.server
    # Two minutes where it is the SuperLink that finds out first.
    assert server.ends(4 * STEADY) == 1, server.said
    assert re.search("full|No space", server.errors[0]), server.said
    assert all(line.startswith("  hint: ") for line in server.errors[1:]), server.said
    ballast.unlink()
    assert before.items() <= lasting.team.states.items()
    lasting.start()
    lasting.goes_on()
    assert before.items() <= lasting.team.states.items()
    assert not [path for path in lasting.team.server.rglob("*") if path.suffix in (".new", ".old")]
    for line in (lasting.team.server / "records.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("offset", range(4), ids=["enrolment", "membership", "fleet", "admin"])
def test_any_port_that_is_in_use_is_one_line(tmp_path: Path, offset: int) -> None:
    with Team(place=tmp_path) as team, socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", team.first_port + offset))
        taken.listen()
        done = team.run("nf-server", "start", "--config", "server.yaml")
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.splitlines()
        assert re.search(rf"^error: .*127\.0\.0\.1:{team.first_port + offset}\b.*in use", lines[0]), done.stderr
        assert all(line.startswith("  hint: ") for line in lines[1:]), done.stderr
