"""The signed index: what a client believes of it, and the attacks that TUF names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.errors import SignatureError
from neuralforge_common.registry.index import (
    INDEX_TYPE,
    MAX_INDEX_BYTES,
    STEPS,
    Index,
    IndexEntry,
    check_current,
    read_index,
    sign_index,
)
from neuralforge_common.signing.envelope import encode_bundle, seal
from neuralforge_common.signing.keys import generate_key
from neuralforge_common.signing.statement import PAYLOAD_TYPE

KEY, OTHER = generate_key("p256"), generate_key("p256")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entry(version: str = "1.0.0", *, name: str = "spring", digest: str = "a" * 64, yanked: bool = False) -> IndexEntry:
    return IndexEntry(team="blue", name=name, version=version, digest=digest, size=9, yanked=yanked)


def index(*entries: IndexEntry, version: int = 7, view: str = "", life: timedelta = timedelta(days=1)) -> Index:
    return Index(registry="team", view=view, version=version, expires=NOW + life, entries=entries)


def refused(step: str, call: Callable[..., object], *arguments: object, **named: object) -> SignatureError:
    with pytest.raises(SignatureError) as caught:
        call(*arguments, **named)
    assert caught.value.step == step in STEPS
    return caught.value


def read_or_step(data: bytes) -> Index | str:
    """What is read, or the step at which it is refused."""
    try:
        return read_index(data, KEY.public)
    except SignatureError as error:
        return error.step


def test_what_is_signed_is_read_again() -> None:
    made = index(entry(), entry("2.0.0-rc.1", yanked=True), entry(name="go"), view="member:ann blue=publish")
    assert read_index(sign_index(made, KEY), KEY.public) == made
    assert sign_index(made, KEY) == sign_index(made, KEY)


def test_another_key_is_refused() -> None:
    assert (
        "not signed by the registry's key"
        in refused("index", read_index, sign_index(index(), OTHER), KEY.public).message
    )


def test_a_signature_over_another_type_of_text_is_no_index() -> None:
    payload = json.dumps(
        {"registry": "team", "view": "", "version": 1, "expires": "2026-03-02T00:00:00Z", "entries": []}
    )
    assert read_index(encode_bundle(seal(KEY, INDEX_TYPE, payload.encode())), KEY.public).version == 1
    refused("index", read_index, encode_bundle(seal(KEY, PAYLOAD_TYPE, payload.encode())), KEY.public)


@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_no_flipped_bit_is_believed(place: int, bit: int) -> None:
    made = index(entry())
    data = bytearray(sign_index(made, KEY))
    data[place % len(data)] ^= 1 << bit
    # What stands around the signature (the hint of a key) may read otherwise; what was signed may not.
    assert read_or_step(bytes(data)) in (made, "index")


@given(st.binary(max_size=300))
def test_no_bytes_end_otherwise_than_in_a_refusal(data: bytes) -> None:
    refused("index", read_index, data, KEY.public)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_FIELD = st.sampled_from(
    ["registry", "view", "version", "expires", "entries", "team", "name", "digest", "size", "yanked"]
)


@given(_FIELD, _JSON)
def test_no_text_of_the_owner_ends_otherwise_than_in_an_index_or_a_refusal(field: str, value: object) -> None:
    one = {"team": "blue", "name": "x", "version": "1.0.0", "digest": "a" * 64, "size": 1, "yanked": False}
    document = {"registry": "t", "view": "", "version": 1, "expires": "2026-03-02T00:00:00Z", "entries": [one]}
    (document if field in document else one)[field] = value
    read = read_or_step(encode_bundle(seal(KEY, INDEX_TYPE, json.dumps(document).encode())))
    assert read == "index" or read_or_step(sign_index(read, KEY)) == read


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"registry": "t", "registry": "u"}',
        json.dumps({"registry": "t", "view": "", "version": 10**400, "expires": "", "entries": []}).encode(),
        json.dumps(
            {"registry": "t", "view": "", "version": 1, "expires": "2026-02-31T00:00:00Z", "entries": []}
        ).encode(),
        json.dumps(
            {"registry": "t\x1b[2J", "view": "", "version": 1, "expires": "2026-03-02T00:00:00Z", "entries": []}
        ).encode(),
    ],
    ids=["deep", "twice", "large", "no day", "terminal"],
)
def test_hostile_texts_are_refused(payload: bytes) -> None:
    refused("index", read_index, encode_bundle(seal(KEY, INDEX_TYPE, payload)), KEY.public)


def test_an_index_that_is_too_large_is_not_parsed() -> None:
    assert "at most" in refused("index", read_index, b" " * (MAX_INDEX_BYTES + 1), KEY.public).message


def test_a_version_stands_there_once_whatever_its_build() -> None:
    twice = {**vars_of(index(entry())), "entries": [entry_document("1.0.0"), entry_document("1.0.0+b")]}
    data = encode_bundle(seal(KEY, INDEX_TYPE, json.dumps(twice).encode()))
    assert "twice" in refused("index", read_index, data, KEY.public).message


def vars_of(made: Index) -> dict[str, object]:
    return {
        "registry": made.registry,
        "view": made.view,
        "version": made.version,
        "expires": f"{made.expires:%Y-%m-%dT%H:%M:%SZ}",
    }


def entry_document(version: str) -> dict[str, object]:
    return {"team": "blue", "name": "x", "version": version, "digest": "a" * 64, "size": 1, "yanked": False}


def test_an_expired_index_is_refused_from_its_last_second_on() -> None:
    made = index()
    check_current(made, (), now=made.expires - timedelta(seconds=1))
    refused("expiry", check_current, made, (), now=made.expires)


def test_an_older_index_is_refused_and_the_same_one_is_not() -> None:
    newer = index(entry(), version=8)
    check_current(newer, (newer,), now=NOW)
    refused("rollback", check_current, index(entry(), version=7), (newer,), now=NOW)
    # Of another view it is older just the same.
    refused("rollback", check_current, index(version=7, view="token:1"), (newer,), now=NOW)


def test_a_version_never_gets_other_files() -> None:
    before = index(entry(digest="a" * 64))
    for now in (entry(digest="b" * 64), entry("1.0.0+other")):
        assert "other files" in refused("history", check_current, index(now, version=8), (before,), now=NOW).message


def test_what_was_seen_is_missing_only_from_other_eyes() -> None:
    before = index(entry(), entry("1.1.0"), view="token:1 blue=read")
    left = index(entry(), version=8, view="token:1")
    check_current(left, (before,), now=NOW)
    error = refused("history", check_current, replace(left, view=before.view), (before,), now=NOW)
    assert "blue/spring@1.1.0 was seen before and is gone" in error.message


def test_a_yank_is_not_taken_back() -> None:
    before = index(entry(yanked=True))
    refused("history", check_current, index(entry(), version=8), (before,), now=NOW)
    check_current(index(entry(yanked=True), version=8), (index(entry()),), now=NOW)


@given(st.lists(st.sampled_from(["1.0.0", "1.1.0", "2.0.0-rc.1", "2.0.0", "10.0.0"]), unique=True), st.data())
def test_growing_is_always_right_and_forgetting_never(versions: list[str], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(versions), unique=True)) if versions else []
    before, after = index(*map(entry, kept)), index(*map(entry, versions), version=8)
    check_current(after, (before,), now=NOW)
    if set(kept) != set(versions):
        refused("history", check_current, replace(before, version=9), (after,), now=NOW)


def test_the_latest_is_neither_yanked_nor_a_prerelease_where_there_is_a_release() -> None:
    made = index(entry("1.9.0"), entry("1.10.0"), entry("2.0.0-rc.1"), entry("3.0.0", yanked=True))
    latest = made.latest("blue", "spring")
    assert latest is not None
    assert latest.version == "1.10.0"
    only = index(entry("2.0.0-rc.1"), entry("2.0.0-rc.2")).latest("blue", "spring")
    assert only is not None
    assert only.version == "2.0.0-rc.2"
    found = made.find("blue", "spring", "3.0.0")
    assert found is not None
    assert found.yanked
    assert made.latest("blue", "go") is None
