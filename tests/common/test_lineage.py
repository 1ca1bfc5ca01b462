"""What an adapter says of its parents: it comes back as it was written, and a stranger's is believed in bounds only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.card import model_card
from neuralforge_common.errors import AdapterError
from neuralforge_common.lineage import Composition, Parent, Predecessor
from neuralforge_common.metadata import AdapterMetadata, decode_metadata, encode_metadata

PARENT = {"name": "a", "version": "1.0.0", "digest": "d" * 64, "weight": 0.5}
COMPOSITION = {"method": "cat", "parents": [PARENT, PARENT | {"weight": -1}], "learnt_on": 16}


def encoded(composition: object) -> bytes:
    return json.dumps({"name": "x", "composition": composition}).encode()


def test_a_composition_comes_back_as_it_was_written() -> None:
    parents = (Parent(name="a", version="1.0.0", digest="d" * 64, weight=0.7), Parent(**PARENT | {"weight": -1}))
    metadata = AdapterMetadata(name="x", composition=Composition(method="ties, density 0.5", parents=parents))
    assert decode_metadata(encode_metadata(metadata)) == metadata
    assert decode_metadata(encoded(COMPOSITION | {"of a later version": 1})).composition == Composition(
        method="cat", parents=(Parent(**PARENT), Parent(**PARENT | {"weight": -1})), learnt_on=16
    )


@pytest.mark.parametrize(
    ("hostile", "fault"),
    [
        ("cat", "composition: wanted an object"),
        (COMPOSITION | {"parents": {}}, "composition: parents: wanted a list"),
        (COMPOSITION | {"parents": []}, "composition: wanted 1 to 64 parents, got 0"),
        (COMPOSITION | {"parents": [PARENT] * 65}, "composition: parents: wanted a list of 1 to 64"),
        (COMPOSITION | {"parents": ["a"]}, "composition: parents: wanted an object"),
        (COMPOSITION | {"parents": [{"name": "a"}]}, "composition: parents: version is missing"),
        (COMPOSITION | {"parents": [PARENT | {"weight": "1"}]}, "composition: weight: wanted a finite number"),
        (COMPOSITION | {"parents": [PARENT | {"weight": True}]}, "composition: weight: wanted a finite number"),
        (COMPOSITION | {"parents": [PARENT | {"weight": 1e300}]}, "composition: weight: wanted a finite number"),
        (COMPOSITION | {"parents": [PARENT | {"digest": "../x"}]}, "composition: digest: wanted 64 hex digits"),
        (COMPOSITION | {"parents": [PARENT | {"name": "a\u202eb"}]}, "composition: name: wanted one line of text"),
        (COMPOSITION | {"method": "\x1b[2J"}, "composition: method: wanted one line of text"),
        (COMPOSITION | {"method": None}, "composition: method: wanted one line of text"),
        (COMPOSITION | {"learnt_on": 0}, "composition: learnt_on: wanted a whole number from 1 on"),
    ],
)
def test_what_is_no_composition_is_refused(hostile: Any, fault: str) -> None:
    with pytest.raises(AdapterError, match=rf"metadata\.json: {fault}"):
        decode_metadata(encoded(hostile))


def test_the_adapter_that_a_training_went_on_from_comes_back_as_it_was_written(
    make_spec: Callable[..., AdapterSpec],
) -> None:
    parent = Predecessor(name="old <b>", version="1.0.0", digest="d" * 64)
    metadata = AdapterMetadata(name="new", parent=parent)
    assert decode_metadata(encode_metadata(metadata)) == metadata
    assert rf"- What old \<b\> 1.0.0 had learnt, weights `{'d' * 64}`: " in model_card(metadata, make_spec())
    composed = AdapterMetadata(name="new", composition=Composition(method="cat", parents=(Parent(**PARENT),)))
    assert "\nComposed, not trained: cat." in model_card(composed, make_spec())
    assert "\nComposed, and then trained: cat." in model_card(replace(composed, parent=parent), make_spec())


@pytest.mark.parametrize(
    ("hostile", "fault"),
    [
        ("old", "parent: wanted an object"),
        ({}, "parent: name: wanted one line of text"),
        ({"name": "a", "version": "1\n2", "digest": "d" * 64}, "parent: version: wanted one line of text"),
        ({"name": "a", "version": "1", "digest": "d" * 63}, "parent: digest: wanted 64 hex digits"),
    ],
)
def test_what_is_no_predecessor_is_refused(hostile: Any, fault: str) -> None:
    with pytest.raises(AdapterError, match=rf"metadata\.json: {fault}"):
        decode_metadata(json.dumps({"name": "x", "parent": hostile}).encode())


def test_a_parents_name_cannot_break_the_table_of_the_card(make_spec: Callable[..., AdapterSpec]) -> None:
    parent = Parent(**PARENT | {"name": "a | 9 | `x` <b>"})
    card = model_card(AdapterMetadata(name="x", composition=Composition(method="cat", parents=(parent,))), make_spec())
    (row,) = [line for line in card.splitlines() if line.endswith(f"`{'d' * 64}` |")]
    assert row == rf"| a \| 9 \| \`x\` \<b\> | 1.0.0 | 0.5 | `{'d' * 64}` |"
    assert "learnt from, see their own cards" in card
