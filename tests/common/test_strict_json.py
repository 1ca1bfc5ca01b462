"""JSON from somebody else: bounded, with one meaning only, and what cannot be shown safely is not shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import is_plain_text, kind_of, parse_json_object, shortened

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def parse(text: str | bytes, limit: int = 1000) -> dict[str, object]:
    return parse_json_object(text if isinstance(text, bytes) else text.encode(), what="m.json", limit=limit)


@given(value=st.dictionaries(st.text(), json_values, max_size=4))
def test_what_json_writes_for_an_object_is_read_back(value: dict[str, Any]) -> None:
    assert parse(json.dumps(value), limit=10**6) == value


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_at_all_are_an_object_or_one_readable_error(data: bytes) -> None:
    message = "m.json"
    try:
        parse(data)
    except AdapterError as error:
        message = error.message
    assert message.startswith("m.json")
    assert is_plain_text(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "m.json: the key 'a' is given twice"),
        ('{"x": {"a": 1, "a": 2}}', "m.json: the key 'a' is given twice"),
        ('{"a": NaN}', "m.json: NaN is not a number that JSON knows"),
        ('{"a": [-Infinity]}', "m.json: -Infinity is not a number that JSON knows"),
        ("[" * 100_000, "m.json: nested too deeply"),
        ('{"a":' * 50_000, "m.json: nested too deeply"),
        ("[1]", "m.json: wanted a JSON object, got a list"),
        ("null", "m.json: wanted a JSON object, got null"),
        ('"text"', "m.json: wanted a JSON object, got a text"),
        ("true", "m.json: wanted a JSON object, got true"),
    ],
)
def test_what_has_two_meanings_or_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse(text, limit=10**6)
    assert caught.value.message == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1,}',
        b'{"a": 1} x',
        b"{'a': 1}",
        b'{"\xff": 1}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{}",
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(AdapterError, match=r"^m\.json: not valid JSON \("):
        parse(data, limit=10**6)


def test_the_limit_itself_is_allowed_and_one_byte_more_is_not_even_parsed() -> None:
    assert parse('{"a": 12}', limit=9) == {"a": 12}
    with pytest.raises(AdapterError, match=r"^m\.json holds 9 bytes, at most 8 are allowed$"):
        parse("[" * 9, limit=8)


def test_a_huge_or_hostile_key_is_shown_in_one_short_line() -> None:
    key = "\\u001b[2J\\n" + "k" * 5000
    with pytest.raises(AdapterError, match="is given twice") as caught:
        parse(f'{{"{key}": 1, "{key}": 2}}', limit=10**6)
    assert len(caught.value.message) < 120
    assert is_plain_text(caught.value.message)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1, "a whole number"),
        (1.5, "a number"),
        ("", "a text"),
        ([], "a list"),
        ({}, "an object"),
    ],
)
def test_every_value_of_json_has_its_name(value: object, kind: str) -> None:
    assert kind_of(value) == kind


@given(value=json_values | st.binary(), limit=st.integers(2, 80))
def test_a_shortened_value_is_one_plain_line_within_the_limit(value: object, limit: int) -> None:
    line = shortened(value, limit)
    assert len(line) <= max(limit, len("an object"))
    assert is_plain_text(line)


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "\ud800"], ids=lambda c: f"{ord(c):04x}"
)
def test_what_can_drive_a_terminal_or_turn_a_line_around_is_no_plain_text(character: str) -> None:
    assert not is_plain_text(f"a{character}b")
    assert not is_plain_text(f"a{character}b", multiline=True)


def test_lines_and_tabs_are_plain_only_where_many_lines_are_allowed() -> None:
    assert is_plain_text("naïve 𝔘 →")
    assert not is_plain_text("a\nb\tc")
    assert is_plain_text("a\nb\tc", multiline=True)
    assert not is_plain_text("a\rb", multiline=True)
