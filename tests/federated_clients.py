"""A federation's rounds over a grid in this process, with clients that answer as ours do and learn nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge_common.adapter import AdapterSpec, FloatArray
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.records import plan_of, reply_to_records, state_of
from neuralforge_server import events
from neuralforge_server.aggregation.choose import make_method
from neuralforge_server.ledger import Ledger
from neuralforge_server.strategy import FederatedLoRA
from neuralforge_server.terms import AdapterRequest, Terms
from neuralforge_simulations.clock import VirtualClock
from neuralforge_simulations.grid import PARTITION_ID, Habits, LocalGrid, client_of

LAYOUT = AdapterLayout(modules=(ModuleShape("a.up", 6, 10), ModuleShape("b.down", 9, 5)), rank=2)
SPEC = AdapterSpec(base="b", base_fingerprint="sha256:1234", rank=2, alpha=4.0, target_modules=("up", "down"))
TERMS = Terms(federation="t", adapter=AdapterRequest(base="b", rank=2), rounds=3, min_clients=3, steps=5, quorum=3)

Train = Callable[[RoundPlan, FloatArray, int], FloatArray]


def drift(plan: RoundPlan, state: FloatArray, client: int) -> FloatArray:
    """A delta that depends on everything that it may depend on, and stays within the bound."""
    noise = np.random.default_rng([plan.round, client]).standard_normal(LAYOUT.size).astype(np.float32)
    return (0.002 * noise * (1 + np.abs(state[: LAYOUT.size]).mean()))[LAYOUT.part_slice(plan.part)]


def clients(train: Train = drift, *, fingerprints: Mapping[int, str] | None = None) -> ClientApp:
    app = ClientApp()

    def spec(client: int) -> AdapterSpec:
        return replace(SPEC, base_fingerprint=(fingerprints or {}).get(client, SPEC.base_fingerprint))

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        own = spec(int(context.node_config[PARTITION_ID]))
        return answer(message, {"spec": asdict(own), "layout": LAYOUT.to_json()})

    @app.train()
    def learn(message: Message, context: Context) -> Message:
        plan, client = plan_of(message.content), int(context.node_config[PARTITION_ID])
        state = state_of(message.content, LAYOUT.with_rank(plan.total_rank))
        report = TrainReport(
            round=plan.round,
            nonce=plan.nonce,
            base_fingerprint=spec(client).base_fingerprint,
            rank=2,
            alpha=4.0,
            part=plan.part,
            examples=10 + client,
            steps=5,
            tokens=100,
            loss=2.0,
        )
        return Message(reply_to_records(report, train(plan, state, client), plan.wire), reply_to=message)

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        return answer(message, {"loss": 1.5, "accuracy": 0.5, "tokens": 7})

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        return answer(message, {})

    return app


def answer(message: Message, facts: Mapping[str, object]) -> Message:
    return Message(RecordDict({"answer": ConfigRecord({"json": json.dumps(facts)})}), reply_to=message)


class Federation:
    """One state folder; every `run` is a coordinator that opens it."""

    def __init__(self, folder: Path, *, count: int = 3, method: str = "mean") -> None:
        self.folder, self.count, self.method = folder, count, method
        self.seen: list[events.Event] = []
        self.revoked: set[str] = set()

    def run(
        self,
        app: ClientApp | None = None,
        terms: Terms = TERMS,
        *,
        habits: Habits | None = None,
        stop: Callable[[], bool] = lambda: False,
        on: Callable[[events.Event], None] = lambda event: None,
    ) -> FederatedLoRA:
        clock = VirtualClock()
        grid = LocalGrid(app or clients(), self.count, clock=clock, habits=habits)
        with Ledger.open(self.folder) as ledger:
            strategy = FederatedLoRA(
                replace(terms, method=self.method),
                make_method(method=self.method),  # type: ignore[arg-type]
                ledger,
                roster=self.roster,
                observers=(self.seen.append, on),
                clock=clock,
                stop=stop,
            )
            strategy.start(grid)
        return strategy

    def roster(self, nodes: Iterable[int]) -> Mapping[int, str]:
        names = {node: f"client-{client_of(node)}" for node in nodes}
        return {node: name for node, name in names.items() if name not in self.revoked}

    def turned(self) -> list[tuple[int, str, str]]:
        return [(e.round, e.client, e.reason) for e in self.seen if isinstance(e, events.Turned)]

    def states(self) -> list[str]:
        ledger = Ledger.look(self.folder)
        try:
            return [committed.digest for committed in ledger.rounds()]
        finally:
            ledger.close()
