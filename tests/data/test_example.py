"""An example's id says what it is, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.example import Example
from neuralforge.data.run_folder import run_folder

FIELDS = ("context", "completion", "language", "repo", "path")


@given(st.lists(st.text(st.characters(), max_size=6), min_size=5, max_size=5))
def test_an_id_is_sixteen_hex_digits_and_the_same_every_time(values: list[str]) -> None:
    example = Example(**dict(zip(FIELDS, values, strict=True)))
    assert re.fullmatch("[0-9a-f]{16}", example.id)
    assert replace(example).id == example.id


cuts = st.lists(st.integers(0, 8), min_size=4, max_size=4).map(sorted)


@given(st.text("ab", min_size=8, max_size=8), cuts, cuts)
def test_the_same_letters_divided_otherwise_have_another_id(letters: str, first: list[int], second: list[int]) -> None:
    one, other = (
        Example(**{field: letters[a:b] for field, a, b in zip(FIELDS, [0, *ends], [*ends, 8], strict=True)})
        for ends in (first, second)
    )
    assert (one.id == other.id) == (one == other)


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_but_the_commit_changes_the_id(field: str) -> None:
    example = Example(context="a", completion="b")
    assert replace(example, **{field: "other"}).id != example.id
    assert replace(example, commit="f" * 40).id == example.id


def test_a_lone_surrogate_still_has_an_id() -> None:
    assert Example(context="\ud83d", completion="x").id != Example(context="?", completion="x").id


def test_a_run_lies_beside_its_adapter_in_a_hidden_folder() -> None:
    assert run_folder(Path("out"), "team") == Path("out/.neuralforge/team")
