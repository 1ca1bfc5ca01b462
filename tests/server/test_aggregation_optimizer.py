"""The server's step against formulas written down a second time, coordinate by coordinate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_rounds import OPTIMIZERS, method_of, run, same_bits, start, updates_of

from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_server.aggregation.method import GlobalState
from neuralforge_server.aggregation.optimizer import OptimizerName, ServerOptimizer
from neuralforge_server.aggregation.state_file import decode_state, encode_state

LAYOUT = AdapterLayout(modules=(ModuleShape("q", 3, 2),), rank=1)
DELTAS = ([0.5, -0.25, 0.0, 1e-3, -2.0], [0.125, 0.75, -0.5, 1e-3, 0.25], [-1.0, 0.0, 0.5, 1e-3, 0.0])


def by_hand(name: str, eta: float, beta1: float, beta2: float, tau: float) -> list[float]:
    found = []
    for coordinate in range(5):
        x, m, v = 1.0, 0.0, tau**2
        for deltas in DELTAS:
            d = deltas[coordinate]
            if name == "fedavg":
                x += eta * d
            elif name == "momentum":
                m = beta1 * m + d
                x += eta * m
            elif name == "nesterov":
                m = beta1 * m + d
                x += eta * (d + beta1 * m)
            else:
                m = beta1 * m + (1 - beta1) * d
                if name == "fedadam":
                    v = beta2 * v + (1 - beta2) * d * d
                else:
                    sign = (v > d * d) - (v < d * d)
                    v = v - (1 - beta2) * d * d * sign
                x += eta * m / (math.sqrt(v) + tau)
        found.append(x)
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_follow_the_formula(name: OptimizerName) -> None:
    numbers: dict[str, Any] = {"learning_rate": 0.7, "momentum": 0.9, "beta2": 0.95, "tau": 0.01}
    optimizer = ServerOptimizer(name=name, **numbers)
    state = GlobalState(layout=LAYOUT, vector=np.ones(5, np.float32))
    for delta in DELTAS:
        vector, moments = optimizer.step(state, "both", np.array(delta, np.float32))
        state = replace(state, vector=vector, moments=moments)
    np.testing.assert_allclose(state.vector, by_hand(name, 0.7, 0.9, 0.95, 0.01), rtol=1e-4)


def test_without_momentum_all_plain_steps_are_fedavg() -> None:
    state = GlobalState(layout=LAYOUT, vector=np.ones(5, np.float32))
    delta = np.array(DELTAS[0], np.float32)
    wanted, _ = ServerOptimizer().step(state, "both", delta)
    for name in ("momentum", "nesterov"):
        found, _ = ServerOptimizer(name=name, momentum=0.0).step(state, "both", delta)  # type: ignore[arg-type]
        assert np.array_equal(found, wanted)
    assert np.array_equal(wanted, state.vector + delta)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_goes_on_with_the_same_bits(name: str) -> None:
    method = method_of("alternating", "none", name)
    straight = resumed = start(method)
    for number in range(1, 5):
        updates = updates_of(method.part(number), 3, seed=number)
        straight = run(method, straight, updates, number).state
        resumed = run(method, decode_state(encode_state(resumed)), updates, number).state
    assert same_bits(straight, resumed)


def test_the_state_that_a_step_began_from_is_left_alone() -> None:
    optimizer = ServerOptimizer(name="fedyogi")
    state = GlobalState(layout=LAYOUT, vector=np.ones(5, np.float32))
    delta = np.array(DELTAS[0], np.float32)
    _, moments = optimizer.step(state, "both", delta)
    before = {name: values.tobytes() for name, values in moments.items()}
    optimizer.step(replace(state, moments=moments), "both", delta)
    assert {name: values.tobytes() for name, values in moments.items()} == before
    assert np.array_equal(state.vector, np.ones(5))
