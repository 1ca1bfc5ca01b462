"""The flat vector: everything comes back, parts are slices, ranks are cut and padded, impossible shapes are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.adapter import AdapterState
from neuralforge_common.errors import AdapterError
from neuralforge_common.layout import MAX_WIDTH, AdapterLayout, ModuleShape

MODULES = (ModuleShape("layers.0.k", 5, 3), ModuleShape("layers.0.q", 5, 7), ModuleShape("layers.10.q", 4, 6))
LAYOUT = AdapterLayout(modules=MODULES, rank=3)

widths = st.integers(1, 9)
layouts = st.builds(
    lambda shapes, rank: AdapterLayout(
        modules=tuple(ModuleShape(f"m{index}", *shape) for index, shape in enumerate(shapes)), rank=rank
    ),
    st.lists(st.tuples(widths, widths), min_size=1, max_size=4),
    st.integers(1, 6),
)


def a_vector(layout: AdapterLayout, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(layout.size, dtype=np.float32)


@given(layout=layouts)
def test_flatten_undoes_unflatten_and_the_layout_is_found_again(layout: AdapterLayout) -> None:
    vector = a_vector(layout)
    state = layout.unflatten(vector)
    assert AdapterLayout.of(state) == layout
    assert layout.flatten(state).tobytes() == vector.tobytes()


@given(layout=layouts)
def test_the_text_of_a_layout_is_the_layout(layout: AdapterLayout) -> None:
    found = AdapterLayout.from_json(layout.to_json())
    assert found == layout
    assert found.to_json() == layout.to_json()
    assert found.digest == layout.digest
    assert layout.with_rank(layout.rank + 1).digest != layout.digest


def test_every_a_stands_before_every_b_in_the_order_of_names() -> None:
    vector = np.arange(LAYOUT.size, dtype=np.float32)
    state = LAYOUT.unflatten(vector)
    sides = [
        state[f"base_model.model.{module.name}.lora_{side}.weight"].reshape(-1) for side in "AB" for module in MODULES
    ]
    assert np.concatenate(sides).tolist() == vector.tolist()
    assert [m.name for m in MODULES] == ["layers.0.k", "layers.0.q", "layers.10.q"]


def test_parts_are_slices_and_make_up_the_whole() -> None:
    vector = a_vector(LAYOUT)
    a, b = vector[LAYOUT.part_slice("A")], vector[LAYOUT.part_slice("B")]
    assert (a.size, b.size) == (LAYOUT.part_size("A"), LAYOUT.part_size("B"))
    assert a.size == 3 * (5 + 5 + 4)
    assert b.size == 3 * (3 + 7 + 6)
    assert np.array_equal(np.concatenate([a, b]), vector[LAYOUT.part_slice("both")])
    assert LAYOUT.part_size("both") == LAYOUT.size


def test_factors_are_views() -> None:
    vector = np.zeros(LAYOUT.size, np.float32)
    for module, a, b in LAYOUT.factors(vector):
        assert a.shape == (3, module.d_in)
        assert b.shape == (module.d_out, 3)
        a += 1
        b += 2
    assert (vector[LAYOUT.part_slice("A")] == 1).all()
    assert (vector[LAYOUT.part_slice("B")] == 2).all()


@given(layout=layouts, rank=st.integers(1, 8), part=st.sampled_from(["both", "A", "B"]))
def test_another_rank_has_the_first_components_and_zeros(layout: AdapterLayout, rank: int, part: Any) -> None:
    vector = a_vector(layout)
    found = layout.resized(vector[layout.part_slice(part)], rank, part=part)
    other = layout.with_rank(rank)
    assert found.shape == (other.part_size(part),)
    whole = np.zeros(other.size, np.float32)
    whole[other.part_slice(part)] = found
    kept = min(rank, layout.rank)
    for (_, a, b), (_, a_old, b_old) in zip(other.factors(whole), layout.factors(vector), strict=True):
        if part != "B":
            assert np.array_equal(a[:kept], a_old[:kept])
            assert not a[kept:].any()
        if part != "A":
            assert np.array_equal(b[:, :kept], b_old[:, :kept])
            assert not b[:, kept:].any()
    # Up and down again is nothing.
    if rank >= layout.rank:
        assert np.array_equal(other.resized(found, layout.rank, part=part), vector[layout.part_slice(part)])


@given(layout=layouts, seed=st.integers(0, 2**63 - 1))
def test_a_drawn_adapter_adds_nothing_and_is_the_same_every_time(layout: AdapterLayout, seed: int) -> None:
    vector = layout.draw(seed)
    assert not vector[layout.part_slice("B")].any()
    for module, a, _ in layout.factors(vector):
        assert np.abs(a).max() <= module.d_in**-0.5 + 1e-7
    assert layout.draw(seed).tobytes() == vector.tobytes()


def test_other_seeds_draw_others() -> None:
    assert LAYOUT.draw(1).tobytes() != LAYOUT.draw(2).tobytes()


@pytest.mark.parametrize(
    ("modules", "rank"),
    [
        ((), 2),
        (MODULES, 0),
        (MODULES, 257),
        (MODULES[::-1], 2),
        ((MODULES[0], MODULES[0]), 2),
        ((ModuleShape("a", 2, 3), ModuleShape("a", 3, 2)), 2),
        ((ModuleShape("", 2, 3),), 2),
        ((ModuleShape("a/../b", 2, 3),), 2),
        ((ModuleShape("a", 0, 3),), 2),
        ((ModuleShape("a", 2, -3),), 2),
        ((ModuleShape("a", MAX_WIDTH + 1, 3),), 2),
        ((ModuleShape("a", MAX_WIDTH, MAX_WIDTH),), 256),
    ],
)
def test_shapes_that_no_adapter_has_are_refused(modules: tuple[ModuleShape, ...], rank: int) -> None:
    with pytest.raises(AdapterError):
        AdapterLayout(modules=modules, rank=rank)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "text",
        None,
        {"rank": 3},
        {"modules": [["a", 2, 3]]},
        {"rank": "3", "modules": [["a", 2, 3]]},
        {"rank": True, "modules": [["a", 2, 3]]},
        {"rank": 3.0, "modules": [["a", 2, 3]]},
        {"rank": 3, "modules": [["a", 2]]},
        {"rank": 3, "modules": [["a", 2, 3, 4]]},
        {"rank": 3, "modules": [["a", 2.0, 3]]},
        {"rank": 3, "modules": [["a", True, 3]]},
        {"rank": 3, "modules": [[5, 2, 3]]},
        {"rank": 3, "modules": "abc"},
        {"rank": 3, "modules": {"abc": 1}},
        {"rank": 3, "modules": [["a", 2, 3]], "more": 1},
        {"rank": 10**400, "modules": [["a", 2, 3]]},
    ],
)
def test_text_that_is_no_layout_is_refused(document: object) -> None:
    with pytest.raises(AdapterError):
        AdapterLayout.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nul"])
def test_text_that_is_not_even_json_is_refused(text: str) -> None:
    with pytest.raises(AdapterError):
        AdapterLayout.from_json(text)


def test_an_adapter_of_other_shapes_is_refused() -> None:
    state = dict(LAYOUT.unflatten(a_vector(LAYOUT)))
    with pytest.raises(AdapterError, match="differ"):
        LAYOUT.with_rank(2).flatten(AdapterState(state))
    first = "base_model.model.layers.0.k.lora_A.weight"
    for broken in (
        {name: array for name, array in state.items() if name != first},
        state | {first: np.ones((2, 5), np.float32)},
        state | {first: np.ones(15, np.float32)},
        state | {"base_model.model.lm_head.weight": np.ones((3, 5), np.float32)},
    ):
        with pytest.raises(AdapterError):
            LAYOUT.flatten(broken)
    with pytest.raises(AdapterError, match="wanted a vector"):
        LAYOUT.unflatten(a_vector(LAYOUT)[1:])
