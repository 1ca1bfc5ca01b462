"""Client-rounds a second of the in-process engine against Flower's Ray engine, with the very same ClientApp.

    python benchmarks/simulation.py            about two minutes
    python benchmarks/simulation.py --quick    fewer clients and rounds, under 50 seconds

The app reads plan and state and sends a delta of 10,000 values (40 KB) as a real client does, but trains nothing: what
is measured is the engine. Both engines run the same function, Flower's own `grid.send_and_receive` to all clients,
round by round; the first round, in which Ray starts its actors, is not counted, and of the others the fastest is: what
else a machine does only ever adds. Without Ray its figures are null, and `reason` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_of, plan_to_records, raw_reply, reply_to_records, state_of

LAYOUT = AdapterLayout(modules=tuple(ModuleShape(f"layer.{n}.proj", 125, 125) for n in range(5)), rank=8)
"""10,000 values: a delta of 40 KB."""
NO_RAY = "Ray is not installed: pip install 'neuralforge[ray]'"
REPLY_SECONDS = 120.0

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """A client's whole round but for the training."""
    plan = plan_of(message.content)
    state = state_of(message.content, LAYOUT)
    report = TrainReport(
        round=plan.round,
        nonce=plan.nonce,
        base_fingerprint=plan.spec.base_fingerprint,
        rank=plan.spec.rank,
        alpha=plan.spec.alpha,
        part="both",
        examples=1,
        steps=1,
        tokens=1,
    )
    return Message(reply_to_records(report, np.float32(0.5) - state, plan.wire), reply_to=message)


@server.main()
def main_on_ray(grid: Grid, context: Context) -> None:
    """The same rounds on Flower's engine; the seconds of each go to a file."""
    run = context.run_config
    seconds = timed_rounds(grid, clients=int(run["clients"]), rounds=int(run["rounds"]))
    Path(str(run["answer"])).write_text(json.dumps(seconds), encoding="utf-8")


def timed_rounds(grid: Grid, *, clients: int, rounds: int) -> list[float]:
    """Seconds of each round after the first."""
    while len(nodes := list(grid.get_node_ids())) < clients:
        time.sleep(0.05)
    state = LAYOUT.draw(0)
    seconds = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        content = plan_to_records(_plan(number + 1, rounds + 1), state)
        messages = [Message(content, node, "train", ttl=REPLY_SECONDS, group_id=str(number)) for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=REPLY_SECONDS))
        received = sum(len(raw_reply(reply.content).delta) for reply in replies)
        seconds.append(time.perf_counter() - began)
        if len(replies) != clients or received < 4 * LAYOUT.size * clients:
            raise SystemExit(f"error: {len(replies)} of {clients} clients answered")
    return seconds[1:]


def ours(*, clients: int, rounds: int) -> list[float]:
    """Seconds of each round on the in-process grid."""
    from neuralforge_simulations.clock import VirtualClock
    from neuralforge_simulations.grid import LocalGrid

    return timed_rounds(LocalGrid(client, clients, clock=VirtualClock()), clients=clients, rounds=rounds)


def flower_ray(*, clients: int, rounds: int) -> list[float]:
    """Seconds of each round on Flower's Ray engine, started as its documentation says: `flwr run`."""
    from neuralforge_simulations.flower_run import run_flower_app

    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    name = Path(__file__).stem
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "flower.log")
        run_flower_app(
            server=f"{name}:server",
            client=f"{name}:client",
            run_config={"clients": clients, "rounds": rounds, "answer": str(answer)},
            clients=clients,
            folder=Path(folder),
            log=log,
        )
        if not answer.is_file():
            raise SystemExit(f"error: Flower's engine gave no answer:\n{log.read_text(errors='replace')[-2000:]}")
        seconds: list[float] = json.loads(answer.read_text())
        return seconds


def _plan(number: int, rounds: int) -> RoundPlan:
    return RoundPlan(
        federation="benchmark",
        round=number,
        rounds=rounds,
        nonce=f"{number:032x}",
        spec=AdapterSpec(
            base="none",
            base_revision=None,
            base_fingerprint=f"sha256:{0:064x}",
            rank=LAYOUT.rank,
            alpha=16.0,
            target_modules=("proj",),
        ),
        layout_digest=LAYOUT.digest,
        steps=1,
        batch_size=1,
        learning_rate=0.001,
        max_length=64,
    )


def measure(*, clients: int, rounds: int) -> dict[str, Any]:
    """Both engines, one after the other on an otherwise idle machine; null where Ray is missing."""
    from neuralforge_simulations.flower_run import ray_is_installed

    before = ours(clients=clients, rounds=4 * rounds)
    ray = min(flower_ray(clients=clients, rounds=rounds)) / clients if ray_is_installed() else None
    # On either side of Flower's turn, so that a machine that grows busy or idle favours neither.
    local = min(before + ours(clients=clients, rounds=4 * rounds)) / clients
    return {
        "speedup_vs_flower_ray": None if ray is None else ray / local,
        "ms_per_client_round": 1e3 * local,
        "flower_ray_ms_per_client_round": None if ray is None else 1e3 * ray,
        "client_rounds_per_second": 1 / local,
        "delta_bytes": 4 * LAYOUT.size,
        "clients": clients,
        "rounds": rounds,
        "reason": NO_RAY if ray is None else "",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer clients and rounds, under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    answer = measure(clients=100, rounds=5) if arguments.quick else measure(clients=200, rounds=20)
    if arguments.json:
        print(json.dumps(answer))
        return
    print(f"in process: {answer['ms_per_client_round']:.3f} ms a client-round")
    if answer["speedup_vs_flower_ray"] is None:
        print(f"Flower's Ray engine: not measured. {answer['reason']}")
    else:
        print(f"Flower's Ray engine: {answer['flower_ray_ms_per_client_round']:.2f} ms a client-round")
        print(f"{answer['speedup_vs_flower_ray']:.0f} times as fast")


if __name__ == "__main__":
    sys.exit(main())
