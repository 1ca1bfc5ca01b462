"""A round's aggregation beside Flower's own FedAvg: same deltas, same machine, same run.

    python benchmarks/aggregation.py            about two minutes
    python benchmarks/aggregation.py --quick    fewer clients in the timing, under 50 seconds

The deltas are those of a LoRA of 80 modules, 10.5 MB a client. Flower's `FedAvg.aggregate_train` gets them as its
clients send them, one Array a matrix; ours as our clients send them, bytes on the wire, and goes all the way: admission
of every reply, the weighted sum, the estimate of the exactness error, the new state. Both take turns, the best round of
each counts, and their results are compared. The rate at which two threads read memory is measured in the same process:
nothing that looks at every value can be faster.

Peak memory is that of a process of its own for every number of clients, above what it held before the round. Replies
are made one after the other, as they arrive; Flower's strategy is handed all of them together.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_common.plan import TrainReport
from neuralforge_common.records import reply_to_records
from neuralforge_server.admission import Expectation, admit
from neuralforge_server.aggregation.choose import make_method
from neuralforge_server.aggregation.method import Aggregate, GlobalState

LAYOUT = AdapterLayout(
    modules=tuple(ModuleShape(f"layers.{index:02d}.proj", 2048, 2048) for index in range(80)), rank=8
)
METHOD = make_method(method="mean")
DISTINCT = 10
"""Deltas that differ; more clients than that send the same ones again, as messages of their own."""
CLIENTS = (10, 50, 500)
FLOWER_CLIENTS = (10, 50)


def main() -> None:
    """Run everything, or one measurement where a child process is told so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--child", choices=("speed", "ours", "flower"), help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=0, help="clients of the timed round (50; quick: 30)")
    parser.add_argument("--rounds", type=int, default=0, help="timed rounds of each (8; quick: 4)")
    arguments = parser.parse_args()
    clients = arguments.clients or (30 if arguments.quick else 50)
    rounds = arguments.rounds or (4 if arguments.quick else 8)
    if arguments.child:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # to make messages outside of a run
        logging.getLogger("flwr").setLevel(logging.ERROR)
        answer = _speed(clients, rounds) if arguments.child == "speed" else _memory(arguments.child, clients)
        print(json.dumps(answer))
        return
    _parent(arguments, clients, rounds)


def _parent(arguments: argparse.Namespace, clients: int, rounds: int) -> None:
    def child(kind: str, count: int) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--clients", str(count)]
        done = subprocess.run([*command, "--rounds", str(rounds)], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: the measurement {kind} {count} ended with {done.returncode}")
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    speed = child("speed", clients)
    ours = {count: child("ours", count)["peak_mb"] for count in CLIENTS}
    flower = {count: child("flower", count)["peak_mb"] for count in FLOWER_CLIENTS}
    summary = {
        "speedup_vs_flower_fedavg": speed["flower_ms_per_client"] / speed["ours_ms_per_client"],
        "fraction_of_memory_read_rate": speed["ours_gb_per_second"] / speed["read_gb_per_second"],
        **{f"peak_mb_{count}_clients": ours[count] for count in CLIENTS},
        **{f"flower_peak_mb_{count}_clients": flower[count] for count in FLOWER_CLIENTS},
    }
    if arguments.json:
        print(json.dumps(summary | speed))
        return
    print(f"{clients} clients, {4 * LAYOUT.size / 1e6:.1f} MB each, {os.cpu_count()} CPUs\n")
    print("| | ms a client | GB/s | peak MB, 10 clients | 50 | 500 |\n|---|---:|---:|---:|---:|---:|")
    for name, said, peaks in (("flower", "Flower FedAvg", flower), ("ours", "ours, admission included", ours)):
        cells = " | ".join(f"{peaks[count]:.0f}" if count in peaks else "–" for count in CLIENTS)
        print(f"| {said} | {speed[f'{name}_ms_per_client']:.2f} | {speed[f'{name}_gb_per_second']:.1f} | {cells} |")
    print(f"| reading memory | {speed['read_ms_per_client']:.2f} | {speed['read_gb_per_second']:.1f} | | | |\n")
    for name, value in (summary | {"largest_difference": speed["largest_difference"]}).items():
        print(f"{name}: {value:.4g}")


# --- The same deltas, as either side sends them ---------------------------------------------------------------------


def _deltas(count: int) -> list[FloatArray]:
    random = np.random.default_rng(0)
    return [np.float32(1e-3) * random.standard_normal(LAYOUT.size, dtype=np.float32) for _ in range(count)]


def _examples(client: int) -> int:
    return 50 + 7 * client % 100


def _our_reply(delta: FloatArray, client: int) -> RecordDict:
    report = TrainReport(
        round=1, nonce="n", base_fingerprint="f", rank=8, alpha=16.0, part="both", examples=_examples(client),
        steps=20, tokens=10_000, loss=1.0,
    )  # fmt: skip
    return reply_to_records(report, delta, "fp32")


def _flower_reply(delta: FloatArray, client: int) -> Message:
    arrays = ArrayRecord({name: Array(array) for name, array in LAYOUT.unflatten(delta).items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": _examples(client), "loss": 1.0})})
    return Message(content, reply_to=Message(RecordDict(), dst_node_id=client + 1, message_type="train"))


def _our_round(state: GlobalState, clients: int, reply: Callable[[int], RecordDict]) -> Aggregate:
    expectation = Expectation(
        round=1, nonce="n", base_fingerprint="f", layout=LAYOUT, scaling=2.0, part="both", wire="fp32",
        weighting="examples", max_weight=10_000, max_norm=100.0, clients=frozenset(map(str, range(clients))),
    )  # fmt: skip
    fold = METHOD.begin(state, 1)
    seen: set[str] = set()
    for client in range(clients):
        update, _ = admit(reply(client), expectation, client=str(client), seen=seen)
        fold.add(update)
    return fold.finish()


def _flower_round(replies: list[Message]) -> ArrayRecord:
    arrays, _ = FedAvg().aggregate_train(1, replies)
    assert arrays is not None  # noqa: S101
    return arrays


# --- The measurements -----------------------------------------------------------------------------------------------


def _speed(clients: int, rounds: int) -> dict[str, Any]:
    deltas = _deltas(DISTINCT)
    state = METHOD.initial(LAYOUT, seed=0)
    ours = [_our_reply(deltas[client % DISTINCT], client) for client in range(clients)]
    flower = [_flower_reply(deltas[client % DISTINCT], client) for client in range(clients)]
    best = {"ours": float("inf"), "flower": float("inf"), "read": float("inf")}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        best[name] = min(best[name], time.perf_counter() - began)
        return result

    with ThreadPoolExecutor(2) as pool:
        halves = np.array_split(np.ones(64 * 2**20, np.float32), 2)  # 268 MB: no cache holds it
        for _ in range(rounds):
            timed("read", lambda: list(pool.map(np.max, halves)))
            record = timed("flower", lambda: _flower_round(flower))
            aggregate = timed("ours", lambda: _our_round(state, clients, lambda client: ours[client]))
    theirs = LAYOUT.flatten({name: array.numpy() for name, array in record.items()})
    size = 4 * LAYOUT.size
    read_seconds = best["read"] * size / sum(half.nbytes for half in halves)
    seconds = {"ours": best["ours"] / clients, "flower": best["flower"] / clients, "read": read_seconds}
    return {
        "clients": clients,
        "bytes_per_client": size,
        **{f"{name}_ms_per_client": 1e3 * value for name, value in seconds.items()},
        **{f"{name}_gb_per_second": size / value / 1e9 for name, value in seconds.items()},
        "exactness_error": aggregate.exactness_error,
        "largest_difference": float(np.abs(aggregate.state.vector - state.vector - theirs).max()),
    }


def _memory(kind: str, clients: int) -> dict[str, Any]:
    delta = _deltas(1)[0]
    state = METHOD.initial(LAYOUT, seed=0)
    gc.collect()
    before = _held()
    _reset_peak()
    if kind == "ours":
        _our_round(state, clients, lambda client: _our_reply(delta, client))
    else:
        _flower_round([_flower_reply(delta, client) for client in range(clients)])
    return {"peak_mb": (_peak() - before) / 1e6}


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * float(line.split()[1])
    raise SystemExit(f"error: this kernel does not tell {name}")


def _held() -> float:
    """Bytes in memory now; elsewhere than on Linux the peak so far, which makes the difference smaller."""
    return _status("VmRSS") if sys.platform == "linux" else _peak()


def _reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    if sys.platform == "linux":
        return _status("VmHWM")
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
