"""Secure aggregation over TLS with real processes: at each stage some clients are killed, and the sum is the plain sum.

    python scripts/secagg_dropouts.py                                     10 clients, 4 killed at each of 5 stages
    python scripts/secagg_dropouts.py --clients 4 --dropouts 1 --stages train

For every stage a federation of its own: `nf-server` with Flower's SuperLink, and clients that have joined it with a
token each, on loopback, one process each. The clients are ours but for the model: what they send is drawn from their
number, so that everybody's update is known here, and they kill themselves (SIGKILL) when the stage's question arrives.

What is checked: the round is committed; the state is, bit for bit, what the plain mean of the fixed-point numbers of
exactly those clients gives whose update had arrived; and that mean is within a thousandth of the updates' own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge.federation.connection import Resident
from neuralforge.federation.home import JoinedFederation
from neuralforge.federation.join import join
from neuralforge.federation.secagg.answers import answer_question, train_masked
from neuralforge.federation.secagg.member import member_of
from neuralforge.federation.session import find_federation, open_session
from neuralforge_common.adapter import AdapterSpec, FloatArray
from neuralforge_common.address import FederationAddress
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_of
from neuralforge_common.secagg.fixed_point import FixedPoint
from neuralforge_common.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK

BIN = Path(sys.executable).parent
STAGES = (KEYS, SHARES, "train", SURVIVORS, UNMASK)
LAYOUT = AdapterLayout(modules=(ModuleShape("layers.0.down", 1024, 512), ModuleShape("layers.0.up", 512, 1024)), rank=8)
SPEC = AdapterSpec(base="b", base_fingerprint="sha256:1234", rank=8, alpha=16.0, target_modules=("up", "down"))
STEPS, LEARNING_RATE, SIGMA = 20, 3e-3, 1e-4
PATIENCE = 240.0


class Broken(Exception):
    """What may not be was found."""


def main() -> int:
    """Run the stages, or be one of their clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--dropouts", type=int, default=4)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--client", nargs=4, metavar=("ADDRESS", "HOME", "NUMBER", "STAGE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        address, home, number, stage = args.client
        take_part(find_federation(address, home=Path(home)), int(number), stage)
        return 0
    found = []
    for stage in args.stages:
        with tempfile.TemporaryDirectory(prefix="secagg-") as place:
            result = run_stage(Path(place), stage, clients=args.clients, dropouts=args.dropouts)
        found.append(result)
        if not args.json:
            print(
                f"{args.dropouts} of {args.clients} killed at {stage}: the sum of {result['counted']} is the plain "
                f"sum, off by {result['relative_error']:.1e} of the updates; {result['seconds']:.0f} s",
                flush=True,
            )
    if args.json:
        print(json.dumps({"clients": args.clients, "dropouts": args.dropouts, "stages": found}))
    return 0


def run_stage(place: Path, stage: str, *, clients: int, dropouts: int) -> dict[str, Any]:
    """A federation of one round, in which the first `dropouts` clients are killed at a stage."""
    began = time.monotonic()
    port = free_ports()
    run("nf-server", "init", "--host", "localhost", "--name", "t", "--port", port, place=place)
    (place / "server.yaml").write_text(
        f"federation: {{name: t, rounds: 1, min_clients: {clients}, quorum: {clients - dropouts}, evaluate_every: 0, "
        "deadline_minutes: 0.3, max_attempts: 1}\n"
        f"adapter: {{base: b, rank: {LAYOUT.rank}}}\n"
        f"training: {{steps: {STEPS}, learning_rate: {LEARNING_RATE}}}\nsecure_aggregation: {{trust: peers}}\n"
        f"listen: {{host: 127.0.0.1, port: {port}, member_port: {port + 1}, fleet_port: {port + 2}, "
        f"admin_port: {port + 3}}}\n"
    )
    processes = []
    log = place / "server.log"
    with log.open("wb") as output:
        server = start(["nf-server", "start", "--config", "server.yaml"], place, output)
        processes.append(server)
        try:
            wait_for(port + 1)
            address = str(json_of(run("nf-server", "status", "--json", place=place))["fingerprint"])
            for number in range(clients):
                name, home = f"client-{number}", place / f"home-{number}"
                invited = run("nf-server", "invite", name, place=place).stdout
                token = next(line for line in invited.splitlines() if " join " in line).split()[-1]
                join(FederationAddress(host="localhost", port=port, fingerprint=address), token, home=home)
                dies = stage if number < dropouts else "never"
                command = [sys.executable, __file__, "--client", f"nf://localhost:{port}", home, number, dies]
                with (place / f"{name}.log").open("wb") as words:
                    processes.append(start(command, place, words))
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
    if server.returncode != 0:
        raise Broken(f"the coordinator ended with {server.returncode}:\n{log.read_text()}")
    killed = sum(process.returncode == -signal.SIGKILL for process in processes[1 : 1 + dropouts])
    if killed != dropouts:
        raise Broken(f"{killed} of {dropouts} clients were killed:\n{log.read_text()}")
    return {"stage": stage, **check(place / "nf-server", stage, clients, dropouts), "seconds": time.monotonic() - began}


def check(folder: Path, stage: str, clients: int, dropouts: int) -> dict[str, Any]:
    """Hold the committed state against the plain sum; raises Broken."""
    from neuralforge_server.aggregation.choose import make_method
    from neuralforge_server.aggregation.method import GlobalState, Update
    from neuralforge_server.aggregation.state_file import decode_state
    from neuralforge_server.ledger import Ledger
    from neuralforge_server.secagg.terms import masking_terms

    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    (unmasked,) = (record for record in records if record["kind"] == "Unmasked")
    first = 0 if stage in (SURVIVORS, UNMASK) else dropouts  # whose update has arrived is in the sum
    numbers = range(first, clients)
    if unmasked["clients"] != [f"client-{number}" for number in numbers]:
        raise Broken(f"in the sum are {unmasked['clients']}")
    ledger = Ledger.look(folder)
    try:
        latest = ledger.latest()
    finally:
        ledger.close()
    if latest is None or latest.round != 1:
        raise Broken("the round was not committed")
    size = LAYOUT.size
    norm = STEPS * LEARNING_RATE * np.sqrt(size)
    form = FixedPoint.of(
        masking_terms(
            asked=clients, steps=STEPS, learning_rate=LEARNING_RATE, max_norm=norm, threshold=0.5, neighbours=None
        )
    )
    total = np.zeros(size, form.dtype)
    for number in numbers:
        total += form.encode(update_of(number))
    plain = (form.decode(total) / len(numbers)).astype(np.float32)
    fold = make_method().begin(GlobalState(layout=LAYOUT, vector=LAYOUT.draw(0)), 1)
    fold.add(Update(client="all", rank=LAYOUT.rank, part="both", delta=plain))
    if not np.array_equal(decode_state(latest.state).vector, fold.finish().state.vector):
        raise Broken("the state is not the one before plus the plain mean")
    exact = np.mean([update_of(number).astype(np.float64) for number in numbers], axis=0)
    error = float(np.linalg.norm(plain - exact) / np.linalg.norm(exact))
    if error > 1e-3:
        raise Broken(f"the mean is off by {error:.1e}")
    return {"counted": len(numbers), "relative_error": error}


def update_of(number: int) -> FloatArray:
    """What a client sends: known to whoever knows its number."""
    return (SIGMA * np.random.default_rng(number).standard_normal(LAYOUT.size)).astype(np.float32)


def take_part(joined: JoinedFederation, number: int, dies_at: str) -> None:
    """One client, in a process of its own."""
    member = member_of(joined)
    if member is None:
        raise Broken("joined without an identity")
    app = ClientApp()

    def answer(message: Message, facts: dict[str, Any]) -> Message:
        return Message(RecordDict({"answer": ConfigRecord({"json": json.dumps(facts)})}), reply_to=message)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return answer(message, {"spec": spec_document(), "layout": LAYOUT.to_json()})

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        return answer(message, {})

    def learn(plan: RoundPlan, state: FloatArray) -> tuple[TrainReport, FloatArray]:
        report = TrainReport(
            round=plan.round,
            nonce=plan.nonce,
            base_fingerprint=SPEC.base_fingerprint,
            rank=LAYOUT.rank,
            alpha=SPEC.alpha,
            part=plan.part,
            examples=1,
            steps=STEPS,
            tokens=0,
        )
        return report, update_of(number)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        die("train")
        return Message(train_masked(member, plan_of(message.content), message.content, LAYOUT, learn), reply_to=message)

    def question(kind: str, message: Message, context: Context) -> Message:
        die(kind)
        return Message(answer_question(member, kind, plan_of(message.content), message.content), reply_to=message)

    def die(kind: str) -> None:
        if kind == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for kind in (KEYS, SHARES, SURVIVORS, UNMASK):
        app.query(kind)(partial(question, kind))
    with open_session(joined, tell=print) as fleet:
        Resident(fleet, app, tell=print).stay()


def spec_document() -> dict[str, Any]:
    """The adapter's description, as JSON has it."""
    from dataclasses import asdict

    return asdict(SPEC)


def run(*words: object, place: Path) -> subprocess.CompletedProcess[str]:
    """One of our commands, to its end."""
    command = [str(BIN / str(words[0])), *map(str, words[1:])]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, env=environment())


def start(command: list[Any], place: Path, output: Any) -> subprocess.Popen[bytes]:
    """A process beside this one."""
    words = [str(word) for word in command]
    if words[0] == "nf-server":
        words[0] = str(BIN / "nf-server")
    return subprocess.Popen(words, cwd=place, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment())


def environment() -> dict[str, str]:
    """One thread each: there are many of them."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a command printed."""
    return dict(json.loads(done.stdout))


def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise Broken(f"nobody listens on {port}")


def free_ports() -> int:
    """The first of four ports in a row that nobody uses now."""
    for first in range(21000 + os.getpid() % 5000, 32000, 4):
        probes = [socket.socket() for _ in range(4)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise Broken("no four free ports in a row")


if __name__ == "__main__":
    sys.exit(main())
