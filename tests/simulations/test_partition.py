"""Every example goes to exactly one client, whole files at a time, the same way for the same seed."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.example import Example
from neuralforge_common.errors import DataError
from neuralforge_simulations.partition import By, Partition, partition

LANGUAGES = ("python", "rust", "go", "")


def example(number: int, *, repo: str = "r", path: str = "f.py", language: str = "python") -> Example:
    return Example(
        context=f"context {number}", completion=f"completion {number}", repo=repo, path=path, language=language
    )


@st.composite
def pools(draw: st.DrawFn) -> list[Example]:
    """Examples of a few files in a few repositories and languages; some name no file."""
    files = draw(
        st.lists(
            st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.sampled_from(LANGUAGES), st.integers(1, 5)),
            min_size=1,
            max_size=25,
        )
    )
    found = []
    for repo, name, language, count in files:
        path = f"{name}.{language}" if name else ""
        found += [example(len(found) + n, repo=repo, path=path, language=language) for n in range(count)]
    return found


def author_of(one: Example) -> str:
    return f"author {ord(one.repo) + len(one.path)}"


def dealt(pool: list[Example], by: By, clients: int, seed: int = 0, alpha: float = 0.5) -> Partition:
    """A partition with as many clients as the pool allows, at most `clients`."""
    labels = {"repository": lambda e: e.repo, "author": author_of, "language": lambda e: e.language}
    if by in labels:
        clients = min(clients, len({labels[by](e) for e in pool}))
    return partition(pool, by=by, clients=clients, alpha=alpha, seed=seed, author_of=author_of)


kinds = st.sampled_from(("repository", "author", "language", "dirichlet", "size"))


@given(pool=pools(), by=kinds, clients=st.integers(1, 12), seed=st.integers(0, 2**31), alpha=st.floats(1e-3, 1e4))
def test_every_example_goes_to_exactly_one_client(
    pool: list[Example], by: By, clients: int, seed: int, alpha: float
) -> None:
    found = dealt(pool, by, clients, seed, alpha)
    assert Counter(e for share in found.shares for e in share.examples) == Counter(pool)
    assert all(share.examples for share in found.shares)
    names = [share.name for share in found.shares]
    assert len(set(names)) == len(names)


@given(pool=pools(), by=kinds, clients=st.integers(1, 12))
def test_no_file_is_torn_between_clients(pool: list[Example], by: By, clients: int) -> None:
    holders = defaultdict(set)
    for number, share in enumerate(dealt(pool, by, clients).shares):
        for one in share.examples:
            if one.path:
                holders[one.repo, one.path].add(number)
    assert all(len(found) == 1 for found in holders.values())


@given(pool=pools(), by=kinds, clients=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_the_same_seed_deals_the_same(pool: list[Example], by: By, clients: int, seed: int) -> None:
    assert dealt(pool, by, clients, seed) == dealt(pool, by, clients, seed)


def pool_of(files: int, *, languages: tuple[str, ...] = ("python",), repos: tuple[str, ...] = ("r",)) -> list[Example]:
    return [
        example(4 * f + n, path=f"{f}.x", language=languages[f % len(languages)], repo=repos[f % len(repos)])
        for f in range(files)
        for n in range(4)
    ]


def test_another_seed_deals_otherwise() -> None:
    pool = pool_of(60, languages=("python", "rust", "go"))
    assert dealt(pool, "dirichlet", 5, seed=1) != dealt(pool, "dirichlet", 5, seed=2)


def skew(found: Partition) -> float:
    """Mean share of a client's commonest language."""
    tops = [Counter(e.language for e in s.examples).most_common(1)[0][1] / len(s.examples) for s in found.shares]
    return float(np.mean(tops))


def test_a_smaller_alpha_makes_clients_more_one_sided() -> None:
    pool = pool_of(600, languages=("python", "rust", "go"))
    narrow, wide = dealt(pool, "dirichlet", 10, alpha=0.05), dealt(pool, "dirichlet", 10, alpha=1000)
    assert skew(narrow) > 0.6
    assert skew(wide) < 0.45
    sizes = [len(share.examples) for share in narrow.shares]
    assert max(sizes) - min(sizes) <= 4, "clients of a Dirichlet partition are of one size, to a file"


def test_where_there_is_one_language_dirichlet_mixes_repositories_and_says_so() -> None:
    found = dealt(pool_of(90, repos=("a", "b", "c")), "dirichlet", 3, alpha=0.01)
    assert any("repositories" in notice for notice in found.notices)
    tops = [Counter(e.repo for e in s.examples).most_common(1)[0][1] / len(s.examples) for s in found.shares]
    assert np.mean(tops) > 0.6


def test_by_size_the_first_client_holds_much_more_than_the_last() -> None:
    sizes = [len(share.examples) for share in dealt(pool_of(200), "size", 8).shares]
    assert sizes[0] > 4 * sizes[-1]
    # Zipf: shares of 1, 1/2, 1/3 … to within a file.
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(2 * sizes[1], abs=8)


def test_without_a_count_every_repository_is_a_client_of_its_name() -> None:
    found = partition(pool_of(30, repos=("b", "a", "c")), by="repository")
    assert [share.name for share in found.shares] == ["a", "b", "c"]


def test_more_repositories_than_clients_are_evened_out() -> None:
    pool = pool_of(12, repos=("a", "b", "c", "d"))
    found = partition(pool, by="repository", clients=2)
    assert [len(share.examples) for share in found.shares] == [24, 24]


def test_more_clients_than_repositories_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="wanted 3 clients, but the examples come from 2 repositories: a, b"):
        partition(pool_of(10, repos=("a", "b")), by="repository", clients=3)


def test_clients_who_would_hold_nothing_are_left_out_with_a_notice() -> None:
    found = partition(pool_of(2), by="size", clients=5)
    assert len(found.shares) == 2
    assert any("3 of 5 clients hold nothing" in notice for notice in found.notices)


def test_authors_want_a_history() -> None:
    with pytest.raises(DataError, match="authors are not known"):
        partition(pool_of(3), by="author")


def test_no_examples_are_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        partition([], by="size", clients=2)
