"""What every way of aggregating promises: one is itself, order is nothing, exact is exact, mixed ranks take part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rounds import (
    LAYOUT,
    METHODS,
    OF_DELTAS,
    average_product,
    client_vector,
    combinations,
    dense,
    distance,
    method_of,
    run,
    same_bits,
    served_product,
    start,
    updates_of,
)

from neuralforge_common.errors import ConfigError, FederationError
from neuralforge_common.layout import AdapterLayout, ModuleShape
from neuralforge_server.aggregation.serve import served

EXACT = ("frozen-a", "alternating", "stacking", "residual")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("round_number", [1, 2])
@pytest.mark.parametrize("weight", [1, 9_999])
def test_aggregate_of_one_is_itself(name: str, round_number: int, weight: int) -> None:
    method = method_of(name)
    state = start(method)
    (update,) = updates_of(method.part(round_number), 1, weights=[weight])
    done = run(method, state, [update], round_number)
    assert done.clients == 1
    assert distance(served_product(done.state), dense(LAYOUT, client_vector(state, update))) < 1e-6
    if name == "personal":
        assert done.exactness_error is None
    else:
        assert done.exactness_error is not None
        assert done.exactness_error <= 1e-6


@pytest.mark.parametrize(("name", "rule", "optimizer"), combinations())
def test_the_order_of_the_clients_does_not_change_a_bit(name: str, rule: str, optimizer: str) -> None:
    method = method_of(name, rule, optimizer)
    state = start(method)
    # Two rounds, so that moments are read as well.
    orders = ((0, 1, 2, 3, 4, 5), (3, 1, 5, 2, 0, 4))
    ends = []
    for order in orders:
        now, errors = state, []
        for round_number in (1, 2):
            updates = updates_of(method.part(round_number), 6, seed=round_number, ranks=[4, 2, 4, 3, 1, 4])
            done = run(method, now, [updates[index] for index in order], round_number)
            now, errors = done.state, [*errors, done.exactness_error, dict(done.figures)]
        ends.append((now, errors))
    assert same_bits(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("round_number", [1, 2])
def test_exact_methods_serve_the_average_of_the_products(name: str, round_number: int) -> None:
    method = method_of(name)
    state = start(method)
    for _ in range(2):  # on frozen components that are not zero any more
        updates = updates_of(method.part(round_number), 4, weights=[3, 1, 10, 6])
        done = run(method, state, updates, round_number)
        assert distance(served_product(done.state), average_product(state, updates)) < 1e-6
        assert done.exactness_error is not None
        assert done.exactness_error <= 1e-6
        state = done.state if name != "stacking" else replace(done.state, vector=start(method).vector)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 5), scale=st.sampled_from([1e-4, 1e-2, 0.5]))
def test_the_reported_error_of_an_exact_method_is_the_true_one(seed: int, count: int, scale: float) -> None:
    # 5 clients of rank 4 do not fit into 6 frozen components: the error is that of the best approximation.
    method = method_of("residual", residual_rank=6)
    state = start(method)
    updates = updates_of("both", count, seed=seed, scale=scale)
    done = run(method, state, updates)
    true = distance(served_product(done.state), average_product(state, updates))
    assert done.exactness_error == pytest.approx(true, rel=1e-3, abs=1e-9)


def test_mean_is_the_mean_of_a_and_of_b() -> None:
    method = method_of("mean")
    state = start(method)
    updates = updates_of("both", 6)
    total = sum(update.weight for update in updates)
    wanted = sum(update.weight / total * client_vector(state, update) for update in updates)
    np.testing.assert_allclose(run(method, state, updates).state.vector, wanted, rtol=0, atol=2e-8)


def test_weights_count_in_proportion() -> None:
    method = method_of("mean")
    state = start(method)
    first, second = updates_of("both", 2, weights=[30, 10])
    heavy = run(method, state, [first, second])
    copies = [replace(first, client=f"copy-{index}", weight=1) for index in range(3)]
    assert same_bits(heavy.state, run(method, state, [*copies, replace(second, weight=1)]).state)
    assert heavy.figures["total_weight"] == 40


def test_the_estimated_error_of_plain_averaging_is_near_the_true_one() -> None:
    layout = AdapterLayout(
        modules=tuple(ModuleShape(f"layers.{index:02d}.q", 24 + index % 3, 20) for index in range(30)), rank=4
    )
    method = method_of("mean")
    state = start(method, layout=layout)
    updates = updates_of("both", 10, layout=layout, scale=0.2)
    done = run(method, state, updates)
    true = distance(served_product(done.state), average_product(state, updates))
    assert true > 0.05
    assert done.exactness_error == pytest.approx(true, rel=0.2)


def test_the_estimate_is_unbiased_over_seeds() -> None:
    from neuralforge_server.aggregation.exactness import Sketch

    method = method_of("mean")
    state = start(method)
    updates = updates_of("both", 4, scale=0.3)
    done = run(method, state, updates)
    true = distance(served_product(done.state), average_product(state, updates))
    found = []
    for seed in range(40):
        sketch = Sketch(LAYOUT, seed=seed)
        for update in updates:
            sketch.add(update.delta, update.weight)
        error = sketch.error(done.state.vector, done.state.vector - state.vector)
        assert error is not None
        found.append(error)
    assert np.mean(found) == pytest.approx(true, rel=0.1)


def test_only_the_part_of_the_round_moves() -> None:
    for name, rounds in (("frozen-a", "BBB"), ("alternating", "BAB"), ("personal", "AAA")):
        method = method_of(name, "none", "fedadam")
        state = start(method)
        for number, part in enumerate(rounds, 1):
            assert method.part(number) == part
            done = run(method, state, updates_of(method.part(number), 3, seed=number), number)
            other = LAYOUT.part_slice("A" if part == "B" else "B")
            assert np.array_equal(done.state.vector[other], state.vector[other])
            for moment, values in done.state.moments.items():
                before = state.moments.get(moment)
                assert before is None or np.array_equal(values[other], before[other])
            state = done.state


@pytest.mark.parametrize("name", METHODS)
def test_a_client_of_a_lower_rank_changes_only_its_own_components(name: str) -> None:
    method = method_of(name)
    state = start(method)
    updates = updates_of(method.part(1), 3, ranks=[2, 2, 2])
    done = run(method, state, updates)
    if name in OF_DELTAS:
        for (_, a, b), (_, a_old, b_old) in zip(
            LAYOUT.factors(done.state.vector), LAYOUT.factors(state.vector), strict=True
        ):
            assert np.array_equal(a[2:], a_old[2:])
            assert np.array_equal(b[:, 2:], b_old[:, 2:])
    if name in ("stacking", "residual"):
        assert distance(served_product(done.state), average_product(state, updates)) < 1e-6


def test_svd_is_the_best_approximation_of_the_average_and_so_is_every_lower_rank_of_it() -> None:
    method = method_of("svd")
    state = start(method)
    updates = updates_of("both", 5, ranks=[4, 1, 2, 4, 3], scale=0.3)
    done = run(method, state, updates)
    wanted = average_product(state, updates)
    missed = 0.0
    for (_, a, b), target in zip(LAYOUT.factors(done.state.vector), wanted, strict=True):
        u, sigma, v = np.linalg.svd(target)
        for rank in (1, 2, 4):
            best = (u[:, :rank] * sigma[:rank]) @ v[:rank]
            np.testing.assert_allclose(b[:, :rank] @ a[:rank], best, atol=1e-5)
        missed += float(np.sum(sigma[4:] ** 2))
        # Balanced: neither side carries the scale alone.
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-5)
    assert done.exactness_error == pytest.approx(np.sqrt(missed / sum(np.sum(w**2) for w in wanted)), rel=1e-4)


def test_a_component_that_the_average_lacks_can_still_be_trained() -> None:
    method = method_of("svd")
    state = start(method, trained=False)
    done = run(method, state, updates_of("both", 1, ranks=[2]))
    for _, a, b in LAYOUT.factors(done.state.vector):
        assert not b[:, 2:].any()
        assert np.abs(a[2:]).min(axis=1).max() > 0


def test_stacking_begins_afresh_and_differently_every_round() -> None:
    method = method_of("stacking")
    state = start(method, trained=False)
    seen = {state.vector.tobytes()}
    for number in (1, 2, 3):
        state = run(method, state, updates_of("both", 2), number).state
        assert not state.vector[LAYOUT.part_slice("B")].any()
        seen.add(state.vector.tobytes())
    assert len(seen) == 4


def test_frozen_components_beyond_their_rank_are_the_best_of_their_rank() -> None:
    method = method_of("stacking", residual_rank=3)
    state = start(method)
    updates = updates_of("both", 4)
    done = run(method, state, updates)
    wanted = average_product(state, updates)
    missed = sum(float(np.sum(np.linalg.svd(target, compute_uv=False)[3:] ** 2)) for target in wanted)
    whole = sum(float(np.sum(target**2)) for target in wanted)
    assert done.exactness_error == pytest.approx(np.sqrt(missed / whole), rel=1e-4)


def test_what_is_served_is_trained_and_frozen_components_with_one_scaling() -> None:
    method = method_of("residual", residual_rank=5)
    state = run(method, start(method), updates_of("both", 3)).state
    layout, vector = served(state)
    assert layout.rank == LAYOUT.rank + 5
    assert state.frozen is not None
    for whole, trained, frozen in zip(
        dense(layout, vector), dense(LAYOUT, state.vector), dense(LAYOUT.with_rank(5), state.frozen), strict=True
    ):
        np.testing.assert_allclose(whole, trained + frozen, atol=1e-6)
    for (_, a, b), (_, a_trained, b_trained) in zip(layout.factors(vector), LAYOUT.factors(state.vector), strict=True):
        assert np.array_equal(a[:4], a_trained)
        assert np.array_equal(b[:, :4], b_trained)


def test_a_server_step_on_the_residual_method_moves_on_from_the_exact_average() -> None:
    plain, fast = method_of("residual"), method_of("residual", server_learning_rate=2.0)
    state = start(plain)
    updates = updates_of("both", 3)
    one, two = run(plain, state, updates), run(fast, state, updates)
    assert one.state.frozen is not None
    assert two.state.frozen is not None
    assert np.array_equal(one.state.frozen, two.state.frozen)
    np.testing.assert_allclose(two.state.vector - state.vector, 2 * (one.state.vector - state.vector), atol=1e-6)
    assert two.exactness_error == one.exactness_error


@pytest.mark.parametrize("name", METHODS)
def test_streaming_methods_and_only_they_forget_updates(name: str) -> None:
    assert method_of(name).streaming is (name in OF_DELTAS)
    if name in OF_DELTAS:
        assert not method_of(name, "median").streaming


@pytest.mark.parametrize(("name", "rule"), [("mean", "none"), ("mean", "median"), ("svd", "none")])
def test_a_fold_refuses_what_admission_would_have_refused(name: str, rule: str) -> None:
    method = method_of(name, rule)
    fold = method.begin(start(method), 1)
    good = updates_of("both", 1)[0]
    fold.add(good)
    with pytest.raises(FederationError, match="already"):
        fold.add(good)
    for bad in (
        replace(good, client="a", rank=5),
        replace(good, client="b", rank=0),
        replace(good, client="c", part="A"),
        replace(good, client="d", delta=good.delta[1:]),
    ):
        with pytest.raises(FederationError, match=bad.client):
            fold.add(bad)
    assert fold.finish().clients == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_round_without_updates_is_refused(name: str) -> None:
    method = method_of(name)
    with pytest.raises(FederationError, match="no update"):
        method.begin(start(method), 1).finish()


@pytest.mark.parametrize("name", METHODS)
def test_a_round_writes_to_nothing_that_it_was_given(name: str) -> None:
    method = method_of(name, "clip")
    state = start(method)
    state.vector.setflags(write=False)
    updates = updates_of(method.part(1), 3)
    for update in updates:
        update.delta.setflags(write=False)
    run(method, state, updates)


@pytest.mark.parametrize("name", METHODS)
def test_clients_that_changed_nothing_change_nothing(name: str) -> None:
    method = method_of(name)
    state = start(method)
    updates = [replace(u, delta=np.zeros_like(u.delta)) for u in updates_of(method.part(1), 3)]
    done = run(method, state, updates)
    assert distance(served_product(done.state), served_product(state)) < 1e-6


@pytest.mark.parametrize(
    "choice",
    [
        {"method": "svd", "robust": "median"},
        {"method": "stacking", "robust": "multi-krum"},
        {"method": "residual", "robust": "geometric-median"},
        {"method": "svd", "optimizer": "fedadam"},
        {"method": "stacking", "server_learning_rate": 0.5},
        {"method": "average"},
        {"method": "mean", "robust": "mode"},
    ],
)
def test_choices_that_mean_nothing_are_refused(choice: dict[str, object]) -> None:
    from neuralforge_server.aggregation.choose import make_method

    with pytest.raises(ConfigError):
        make_method(**choice)  # type: ignore[arg-type]
