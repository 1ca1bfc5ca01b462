"""What is said under masks comes back as it was, and nothing else is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from neuralforge_common.errors import NeuralForgeError
from neuralforge_common.secagg.messages import (
    SEALED_BYTES,
    Advert,
    Confirmation,
    Delivery,
    Sealed,
    Survivors,
    Unmasking,
    UnmaskRequest,
    adverts_from_json,
    adverts_to_json,
)
from neuralforge_common.secagg.shamir import SHARE_BYTES

ADVERT = Advert(
    name="ann", identity=b"i" * 32, mask_key=b"m" * 32, seal_key=b"s" * 32, promise=b"p" * 32, signature=b"g" * 64
)
MESSAGES: tuple[Any, ...] = (
    ADVERT,
    Sealed(shares={"ann": b"x" * SEALED_BYTES}),
    Delivery(dealers=("ann", "bob"), shares={"bob": b"x" * SEALED_BYTES}),
    Survivors(names=("ann", "bob")),
    Confirmation(signature=b"g" * 64),
    UnmaskRequest(survivors=("ann",), dropped=("bob",), signatures={"ann": b"g" * 64}),
    Unmasking(seeds={"ann": b"h" * SHARE_BYTES}, mask_keys={}),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: Any) -> None:
    assert type(message).from_json(message.to_json()) == message


def test_everybodys_keys_come_back() -> None:
    assert adverts_from_json(adverts_to_json([ADVERT, ADVERT])) == (ADVERT, ADVERT)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("value", [None, 7, True, "zz", "x" * 64, [1], ["b", "a"], ["a", "a"], {"a": 1}, {"\n": "00"}])
def test_a_field_of_another_kind_is_refused(message: Any, value: object) -> None:
    document = json.loads(message.to_json())
    for field in document:
        if field == "name" and isinstance(value, str) and len(value) <= 64:
            continue  # a name like any other
        with pytest.raises(NeuralForgeError):
            type(message).from_json(json.dumps(document | {field: value}))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_field_too_many_or_too_few_is_refused(message: Any) -> None:
    document = json.loads(message.to_json())
    with pytest.raises(NeuralForgeError):
        type(message).from_json(json.dumps(document | {"more": 1}))
    document.popitem()
    with pytest.raises(NeuralForgeError):
        type(message).from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"name": "a", "name": "b"}', "\ud800", '{"names": NaN}'])
def test_what_is_no_message_is_refused(text: str) -> None:
    for message in MESSAGES:
        with pytest.raises(NeuralForgeError):
            type(message).from_json(text)
    with pytest.raises(NeuralForgeError):
        adverts_from_json(text)


@pytest.mark.parametrize("digits", ["6G" * 64, " 6" * 64, "6" * 127, "6" * 129, "６" * 128, "AB" * 64])
def test_bytes_are_lower_case_hexadecimal_of_their_length(digits: str) -> None:
    with pytest.raises(NeuralForgeError):
        Confirmation.from_json(json.dumps({"signature": digits}))
