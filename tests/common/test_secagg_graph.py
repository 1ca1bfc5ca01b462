"""The sparse graph: everybody has as many neighbours, it hangs together, and no neighbourhood is easily bought."""

from __future__ import annotations

import os
from math import comb

import numpy as np
import pytest

from neuralforge_common.secagg.graph import fewest_neighbours, graph_of, is_connected, needed


def names(count: int) -> list[str]:
    return [f"c{number:04d}" for number in range(count)]


@pytest.mark.parametrize("count", [3, 10, 20, 21, 47, 48, 50, 100, 1000])
def test_everybody_has_as_many_neighbours_and_is_one_of_theirs(count: int) -> None:
    wanted = fewest_neighbours(count)
    graph = graph_of(names(count), wanted, b"seed")
    assert {len(neighbours) for neighbours in graph.values()} == {min(count - 1, wanted)}
    for name, neighbours in graph.items():
        assert name not in neighbours
        assert all(name in graph[other] for other in neighbours)
    assert wanted == count - 1 if count <= 47 else wanted < count - 1


def test_another_seed_is_another_graph_and_the_same_seed_the_same() -> None:
    one = graph_of(names(100), 20, b"one")
    assert one == graph_of(names(100), 20, b"one")
    assert one != graph_of(names(100), 20, b"two")


def test_it_hangs_together_when_four_of_ten_are_gone() -> None:
    random = np.random.default_rng(0)
    for count in (50, 200):
        for _ in range(20):
            graph = graph_of(names(count), fewest_neighbours(count), os.urandom(8))
            left = random.choice(names(count), int(0.6 * count), replace=False).tolist()
            assert is_connected(graph, left)


def test_parts_that_hold_no_neighbour_of_each_other_do_not_hang_together() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("a"), "c": frozenset("d"), "d": frozenset("c")}
    assert is_connected(graph, ["a", "b"])
    assert not is_connected(graph, ["a", "b", "c"])
    assert is_connected(graph, [])


@pytest.mark.parametrize("count", [21, 50, 100, 200, 500, 1000, 5000])
def test_fewer_than_one_round_in_a_million_has_a_neighbourhood_that_fails(count: int) -> None:
    """Union bound over hypergeometric tails; a fifth has dropped out, another fifth is in league."""
    neighbours = fewest_neighbours(count)
    threshold = needed(0.5, neighbours + 1)
    fifth = count // 5
    cannot_be_unmasked = count * _at_least(neighbours - threshold + 1, count - 1, fifth, neighbours)
    is_unmasked_alone = count * _at_least(threshold, count - 1, fifth, neighbours)
    assert cannot_be_unmasked < 1e-6
    assert is_unmasked_alone < 1e-6


def _at_least(least: int, population: int, marked: int, drawn: int) -> float:
    ways = sum(comb(marked, k) * comb(population - marked, drawn - k) for k in range(least, min(marked, drawn) + 1))
    return ways / comb(population, drawn)


@pytest.mark.parametrize(
    ("share", "holders", "wanted"),
    [(0.5, 10, 6), (0.5, 3, 3), (0.5, 4, 3), (0.5, 5, 3), (0.5, 11, 6), (2 / 3, 9, 7), (2 / 3, 10, 7), (0.99, 10, 10)],
)
def test_more_than_the_share_and_three_at_least_are_needed(share: float, holders: int, wanted: int) -> None:
    assert needed(share, holders) == wanted
