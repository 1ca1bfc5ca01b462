"""What secure aggregation costs a round: processor time of a client and of the coordinator, and bytes.

    python benchmarks/secure_aggregation.py            about two minutes
    python benchmarks/secure_aggregation.py --quick    fewer clients at 10 M parameters, under 50 seconds

Clients and coordinator are the real ones, in one process, without a network and without training: what is timed is
what masks add to a round. A fifth of the clients drop out after they have dealt their shares, which is the dearest
moment for the coordinator. Every update is masked and added up, and the mean is compared with the plain mean of the
same fixed-point numbers. A client's figures are means over those that stay; times are of one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from neuralforge.federation.secagg.member import SecureMember
from neuralforge.federation.secagg.pins import Pins
from neuralforge_common.adapter import AdapterSpec, FloatArray
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.fixed_point import FixedPoint
from neuralforge_common.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK, Survivors, adverts_to_json
from neuralforge_server.secagg.tally import Tally
from neuralforge_server.secagg.terms import masking_terms

CLIENTS = (5, 10, 20, 50)
SIZES = (500_000, 10_000_000)
QUICK = {500_000: CLIENTS, 10_000_000: (5, 10)}
STEPS, LEARNING_RATE, SIGMA = 20, 3e-3, 1e-4
DISTINCT = 4
"""Updates that differ; more clients than that send the same ones again."""
SPEC = AdapterSpec(base="b", base_fingerprint="sha256:1234", rank=8, alpha=16.0, target_modules=("up",))
COORDINATOR = "coordinator"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--clients", type=int, nargs="+", help="instead of 5, 10, 20 and 50")
    args = parser.parse_args()
    rows = []
    for size in SIZES:
        for count in args.clients or (QUICK[size] if args.quick else CLIENTS):
            rows.append(row := measure(count, size))
            if not args.json:
                print(line(row), flush=True)
    if args.json:
        print(json.dumps({"rounds": rows}))


@dataclass(slots=True)
class Costs:
    """Seconds of one core, and bytes, by whose they are."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    up: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    down: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def of(self, whose: str) -> Iterator[None]:
        """Note what the work within takes."""
        began = time.process_time()
        yield
        self.seconds[whose] += time.process_time() - began


def measure(count: int, size: int) -> dict[str, Any]:
    """One round of so many clients and parameters."""
    terms = masking_terms(
        asked=count,
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        max_norm=STEPS * LEARNING_RATE * size**0.5,
        threshold=0.5,
        neighbours=None,
    )
    plan = RoundPlan(
        federation="t",
        round=1,
        rounds=1,
        nonce="n",
        spec=SPEC,
        layout_digest="d" * 64,
        steps=STEPS,
        batch_size=4,
        learning_rate=LEARNING_RATE,
        max_length=64,
        weighting="uniform",
        trust="peers",
        masking=terms,
    )
    names = [f"client-{number:03d}" for number in range(count)]
    stay = names[: count - count // 5]
    draws = [np.random.default_rng(number) for number in range(DISTINCT)]
    distinct = [np.float32(SIGMA) * draw.standard_normal(size, np.float32) for draw in draws]
    updates = [distinct[number % DISTINCT] for number in range(len(stay))]
    costs = Costs()
    mean = run_round(costs, plan, names, dict(zip(stay, updates, strict=True)))

    form = FixedPoint.of(terms)
    total = np.zeros(size, form.dtype)
    for update in updates:
        total += form.encode(update)
    plain = (form.decode(total) / len(stay)).astype(np.float32)
    exact = np.mean(updates, axis=0, dtype=np.float64)
    return {
        "clients": count,
        "dropped": count - len(stay),
        "parameters": size,
        "neighbours": min(count - 1, terms.neighbours),
        "bits": terms.bits,
        "client_seconds": float(np.mean([costs.seconds[name] for name in stay])),
        "coordinator_seconds": costs.seconds[COORDINATOR],
        "client_bytes_up": int(np.mean([costs.up[name] for name in stay])),
        "client_bytes_down": int(np.mean([costs.down[name] for name in stay])),
        "bytes_up_without_masks": 4 * size,
        "is_plain_sum": bool(np.array_equal(mean, plain)),
        "relative_error": float(np.linalg.norm(mean - exact) / np.linalg.norm(exact)),
    }


def run_round(costs: Costs, plan: RoundPlan, names: list[str], updates: dict[str, FloatArray]) -> FloatArray:
    """All stages; whoever has no update drops out before it would send one."""
    size = next(iter(updates.values())).size
    tally = Tally(plan, size=size, needed=3, registered=None)
    overhead = len(plan.to_json())
    with tempfile.TemporaryDirectory() as folder:
        members = {
            name: SecureMember(name, Ed25519PrivateKey.generate(), Pins(Path(folder, f"{name}.json"))) for name in names
        }

        def ask(question: str, name: str, text: str, add: Callable[[str, str], None]) -> None:
            with costs.of(name):
                answer = members[name].answer(question, plan, text)
            costs.down[name] += len(text) + overhead
            costs.up[name] += len(answer)
            with costs.of(COORDINATOR):
                add(name, answer)

        for name in names:
            ask(KEYS, name, "{}", tally.add_keys)
        with costs.of(COORDINATOR):
            everybody = adverts_to_json(tally.roster().adverts)
        for name in names:
            ask(SHARES, name, everybody, tally.add_shares)
        for name, update in updates.items():
            with costs.of(COORDINATOR):
                delivery = tally.delivery(name).to_json()
            with costs.of(name):
                members[name].collect(plan, delivery)
                masked = members[name].mask(plan, update)
            costs.down[name] += len(delivery) + overhead
            costs.up[name] += len(masked)
            with costs.of(COORDINATOR):
                tally.add_masked(name, masked)
        with costs.of(COORDINATOR):
            told = Survivors(names=tally.survivors).to_json()
        for name in updates:
            ask(SURVIVORS, name, told, tally.add_confirmation)
        with costs.of(COORDINATOR):
            request = tally.request().to_json()
        for name in updates:
            ask(UNMASK, name, request, tally.add_unmasking)
        with costs.of(COORDINATOR):
            return tally.mean()


def line(row: dict[str, Any]) -> str:
    """A round for a person."""
    more = row["client_bytes_up"] / row["bytes_up_without_masks"] - 1
    return (
        f"{row['clients']:3d} clients ({row['dropped']} drop out), {row['parameters'] / 1e6:4.1f} M parameters: client "
        f"{row['client_seconds']:6.3f} s, coordinator {row['coordinator_seconds']:6.2f} s, a client sends "
        f"{row['client_bytes_up'] / 1e6:6.2f} MB ({more:+.1%}), gets {row['client_bytes_down'] / 1e3:5.1f} KB beside "
        f"the state; plain sum: {row['is_plain_sum']}, off by {row['relative_error']:.0e}"
    )


if __name__ == "__main__":
    main()
