"""Composing adapters: the exact sums are exact, the others err by what they say, and what cannot be one is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.composition.compose import compose
from neuralforge.composition.dare import Dare
from neuralforge.composition.exact import Cat, Svd
from neuralforge.composition.linear import Linear
from neuralforge.composition.parents import Part, unproven
from neuralforge.composition.ties import Ties, merge_agreeing, trim
from neuralforge_common.adapter import is_targeted, module_of
from neuralforge_common.errors import AdapterError

Make = Callable[..., Part]
Deltas = Callable[..., dict[str, np.ndarray]]

ALL = (Cat(), Svd(), Linear(), Ties(), Dare())


def weighted_sum(parts: list[Part], delta_of: Deltas) -> dict[str, np.ndarray]:
    total: dict[str, Any] = {}
    for part in parts:
        for module, delta in delta_of(part.spec, part.state).items():
            total[module] = total.get(module, 0) + part.weight * delta
    return total


def distance(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert found.keys() == wanted.keys()
    return float(
        np.sqrt(sum(((found[m] - wanted[m]) ** 2).sum() for m in wanted))
        / np.sqrt(sum((wanted[m] ** 2).sum() for m in wanted))
    )


@given(
    ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 3) | st.floats(-3, -0.1), min_size=4, max_size=4),
    alphas=st.lists(st.floats(0.5, 32), min_size=4, max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_cat_is_the_weighted_sum_to_the_rounding_of_float32(
    make_part: Make, delta_of: Deltas, ranks: list[int], weights: list[float], alphas: list[float]
) -> None:
    parts = [
        make_part(seed, rank=rank, weight=weight, alpha=alpha)
        for seed, (rank, weight, alpha) in enumerate(zip(ranks, weights, alphas, strict=False))
    ]
    composed = compose(parts, Cat())
    assert composed.spec.rank == sum(ranks)
    far = distance(delta_of(composed.spec, composed.state), weighted_sum(parts, delta_of))
    assert far < 1e-6
    assert composed.error == pytest.approx(far, abs=1e-7)


def test_cat_is_exact_to_the_last_bit_where_the_factors_are_powers_of_two(make_part: Make, delta_of: Deltas) -> None:
    parts = [make_part(0, rank=2, alpha=4.0, weight=0.5), make_part(1, rank=4, alpha=1.0, weight=-2.0)]
    composed = compose(parts, Cat())
    for key, a in composed.state.items():
        if ".lora_A." in key:
            halves = [part.weight * part.spec.scaling * part.state[key] for part in parts]
            assert np.array_equal(a, np.vstack(halves))
    assert composed.error == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_is_as_near_as_any_matrix_of_its_rank_can_be(make_part: Make, delta_of: Deltas, rank: int) -> None:
    parts = [make_part(0, rank=3, weight=0.7), make_part(1, rank=2, weight=0.3)]
    composed = compose(parts, Svd(rank=rank))
    wanted = weighted_sum(parts, delta_of)
    singular = {module: np.linalg.svd(delta, compute_uv=False) for module, delta in wanted.items()}
    tail = np.sqrt(sum((values[rank:] ** 2).sum() for values in singular.values()))
    best = tail / np.sqrt(sum((values**2).sum() for values in singular.values()))
    assert best > 0.05
    assert distance(delta_of(composed.spec, composed.state), wanted) == pytest.approx(best, rel=1e-4)
    assert composed.error == pytest.approx(best, rel=1e-4)


def test_svd_loses_nothing_where_the_rank_holds_the_sum(make_part: Make) -> None:
    parts = [make_part(0, rank=3), make_part(1, rank=2, weight=-1.0)]
    composed = compose(parts, Svd(rank=200))
    assert composed.spec.rank == 5
    assert composed.error == pytest.approx(0, abs=1e-6)
    assert compose(parts, Svd()).spec.rank == 3


@pytest.mark.parametrize("method", [Cat(), Svd(), Linear(), Dare(drop_rate=0.0)], ids=lambda m: m.describe())
def test_a_weight_of_one_beside_zeros_is_that_adapter(make_part: Make, delta_of: Deltas, method: Any) -> None:
    first, second = make_part(0), make_part(1)
    composed = compose([replace(first, weight=1.0), replace(second, weight=0.0)], method)
    assert distance(delta_of(composed.spec, composed.state), delta_of(first.spec, first.state)) < 1e-6


@pytest.mark.parametrize("method", ALL[:-1], ids=lambda method: method.describe())
def test_the_order_of_the_adapters_does_not_matter(make_part: Make, delta_of: Deltas, method: Any) -> None:
    parts = [make_part(seed, weight=weight) for seed, weight in enumerate((0.5, 0.3, -0.4))]
    there, back = compose(parts, method), compose(parts[::-1], method)
    assert distance(delta_of(there.spec, there.state), delta_of(back.spec, back.state)) < 1e-6


def test_linear_makes_the_cross_terms_that_it_says(make_part: Make, delta_of: Deltas) -> None:
    one, other = make_part(0, weight=0.7, alpha=3.0), make_part(1, weight=0.3, alpha=3.0)
    composed = compose([one, other], Linear())
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = ([part.state[key.format(side)].astype(float) for part in (one, other)] for side in "AB")
    cross = np.sqrt(0.7 * 0.3) * (b[0] @ a[1] + b[1] @ a[0])
    found = delta_of(composed.spec, composed.state)["model.layers.0.self_attn.q_proj"]
    assert found == pytest.approx(0.7 * b[0] @ a[0] + 0.3 * b[1] @ a[1] + cross, rel=1e-4, abs=1e-5)
    assert composed.error is not None
    assert composed.error > 0.3


def test_ties_by_hand() -> None:
    # Trimming keeps the two largest of four; the sign with more mass wins; the mean is over those that have it.
    one, other = np.array([[3.0, -1.0, 0.5, 2.0]]), np.array([[-1.0, 4.0, -0.1, 2.0]])
    trimmed = [trim(one, 0.5), trim(other, 0.5)]
    assert [t.tolist() for t in trimmed] == [[[3.0, 0, 0, 2.0]], [[0, 4.0, 0, 2.0]]]
    merged = merge_agreeing(np.stack(trimmed), np.array([1.0, 0.5]))
    assert merged.tolist() == [[3.0, 2.0, 0.0, (2.0 + 1.0) / 2]]
    against = merge_agreeing(np.array([[[3.0]], [[-1.0]]]), np.array([1.0, 1.0]))
    assert against.tolist() == [[3.0]]


def test_of_equal_magnitudes_trimming_keeps_the_first() -> None:
    assert trim(np.array([[1.0, -1.0, 1.0, -1.0]]), 0.5).tolist() == [[1.0, -1.0, 0, 0]]


def test_dare_is_a_function_of_its_seed_and_without_dropping_is_linear(make_part: Make) -> None:
    parts = [make_part(0), make_part(1)]
    assert compose(parts, Dare(drop_rate=0.0)).state == compose(parts, Linear()).state
    first = compose(parts, Dare(seed=1)).state
    assert compose(parts, Dare(seed=1)).state == first
    assert compose(parts, Dare(seed=2)).state != first


def test_what_dare_drops_from_a_module_does_not_depend_on_other_modules(make_part: Make) -> None:
    parts = [make_part(0, layers=(1,)), make_part(1, layers=(1,))]
    more = [make_part(2), make_part(3)]
    merged = [replace(big, state=type(big.state)({**big.state, **part.state})) for big, part in zip(more, parts)]  # noqa: B905
    alone, among = compose(parts, Dare(seed=4)).state, compose(merged, Dare(seed=4)).state
    assert all(np.array_equal(among[key], alone[key]) for key in alone)


def test_dare_is_unbiased_for_what_linear_makes(make_part: Make, delta_of: Deltas) -> None:
    parts = [make_part(0, weight=0.6, layers=(0,)), make_part(1, weight=0.4, layers=(0,))]
    plain = compose(parts, Linear())
    wanted = delta_of(plain.spec, plain.state)
    drawn = [compose(parts, Dare(drop_rate=0.3, seed=seed)) for seed in range(400)]
    each = [delta_of(one.spec, one.state) for one in drawn]
    for module, delta in wanted.items():
        samples = np.stack([one[module] for one in each])
        error = (samples.mean(axis=0) - delta) / (samples.std(axis=0) / np.sqrt(len(each)))
        assert np.abs(error).max() < 5  # of 192 values in standard errors; without the rescaling it is over 10
        assert abs(error.mean()) < 0.5


def test_adapters_on_different_modules_are_joined_on_all_of_them(make_part: Make, delta_of: Deltas) -> None:
    parts = [make_part(0, targets=("q_proj",), weight=0.5), make_part(1, targets=("v_proj",), weight=2.0)]
    composed = compose(parts, Cat())
    assert composed.spec.target_modules == ("q_proj", "v_proj")
    assert distance(delta_of(composed.spec, composed.state), weighted_sum(parts, delta_of)) < 1e-6
    narrow = compose(parts, Linear())
    wanted = weighted_sum(parts, delta_of)
    assert distance(delta_of(narrow.spec, narrow.state), wanted) < 1e-6  # nothing to cross with


def test_adapters_on_different_layers_keep_to_the_layers_that_they_have(make_part: Make) -> None:
    def on_layer(index: int, **options: Any) -> Part:
        part = make_part(index, layers=(index,), **options)
        return replace(part, spec=replace(part.spec, layers=(index,)))

    assert compose([on_layer(0), on_layer(1)], Cat()).spec.layers == (0, 1)
    other = [on_layer(0, targets=("q_proj",)), on_layer(1, targets=("v_proj",))]
    spec = compose(other, Cat()).spec
    assert is_targeted(spec, "model.layers.0.self_attn.q_proj")
    assert not is_targeted(spec, "model.layers.1.self_attn.q_proj")
    assert {module_of(key)[0] for key in compose(other, Cat()).state} == set(spec.target_modules)


@pytest.mark.parametrize(
    ("changes", "method", "fault"),
    [
        ({"base_fingerprint": "sha256:" + "0" * 64}, Cat(), "are of different bases"),
        ({"base_fingerprint": "", "base": "another"}, Cat(), "part 1 names the base another, part 0 the base tiny"),
        ({"task": "seq2seq"}, Cat(), "part 1 is for seq2seq models, part 0 for causal ones"),
        ({"rank": 4}, Linear(), "linear adds A to A and B to B, which wants equal ranks; got 3, 4"),
        ({"rank": 4}, Ties(), "ties adds A to A"),
        ({"rank": 4}, Dare(), "dare adds A to A"),
        ({"rank": 254}, Cat(), "cat: the ranks 3 \\+ 254 add up to 257, an adapter has at most 256"),
        ({"weight": float("nan")}, Cat(), "the weight of part 1 is nan"),
    ],
)
def test_what_cannot_be_one_adapter_is_refused(make_part: Make, changes: Any, method: Any, fault: str) -> None:
    with pytest.raises(AdapterError, match=fault):
        compose([make_part(0), make_part(1, **changes)], method)


def test_shapes_of_another_base_are_refused_where_nobody_knows_the_fingerprint(make_part: Make) -> None:
    one = make_part(0, base_fingerprint="")
    wide = {key: np.hstack([a, a]) if ".lora_A." in key else a for key, a in one.state.items()}
    other = replace(make_part(1, base_fingerprint=""), state=type(one.state)(wide))
    with pytest.raises(AdapterError, match="q_proj is 12 × 16 in part 0, 12 × 32 in part 1"):
        compose([one, other], Cat())


def test_a_base_on_trust_is_said_to_be_so_and_the_known_fingerprint_stays(make_part: Make) -> None:
    parts = [make_part(0, base_fingerprint=""), make_part(1)]
    assert compose(parts, Cat()).spec.base_fingerprint == parts[1].spec.base_fingerprint
    assert unproven(parts) == (
        "part 0 does not record the fingerprint of its base: that it fits the others is taken on trust",
    )


def test_a_single_adapter_is_no_composition(make_part: Make) -> None:
    with pytest.raises(AdapterError, match="wanted 2 to 64 adapters to compose, got 1"):
        compose([make_part(0)], Cat())


@pytest.mark.parametrize("make", [lambda: Ties(density=0), lambda: Dare(drop_rate=1.0), lambda: Svd(rank=257)])
def test_options_out_of_bounds_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(AdapterError):
        make()


def test_weights_that_cancel_leave_nothing_to_compare_with(make_part: Make) -> None:
    one = make_part(0)
    composed = compose([replace(one, weight=0.0), replace(one, weight=0.0)], Cat())
    assert composed.error is None
