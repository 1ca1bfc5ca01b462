"""metadata.json: what is written comes back, what is not of its type is refused, NaN is never written."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge_common.errors import AdapterError
from neuralforge_common.metadata import AdapterMetadata, Evaluation, Scores, decode_metadata, encode_metadata

printable = st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
line = st.text(printable, max_size=20)
name = line.filter(str.strip)
digest = st.text("0123456789abcdef", min_size=64, max_size=64)
fraction = st.floats(0, 1)
number = st.floats(0, 1e12)
scores = st.builds(Scores, perplexity=st.none() | number, accuracy=st.none() | fraction)
metadata = st.builds(
    AdapterMetadata,
    name=name,
    version=st.sampled_from(["1.0.0", "0.1", "2.0.0-rc.1", "3"]),
    base_model=line,
    description=st.text(printable | st.sampled_from("\n\t"), max_size=40),
    author=line,
    license=line,
    training_samples=st.none() | st.integers(0, 2**53 - 1),
    accuracy=st.none() | fraction,
    size_mb=st.none() | number,
    base_revision=st.none() | line,
    base_fingerprint=line,
    rank=st.none() | st.integers(1, 256),
    alpha=st.none() | number,
    target_modules=st.lists(line, max_size=3).map(tuple),
    created=st.sampled_from(["", "2026-01-31T09:30:00Z", "2026-01-31T09:30:00.123Z"]),
    neuralforge_version=line,
    dataset_digest=digest,
    evaluation=st.none() | st.builds(Evaluation, base=scores, adapter=scores, samples=st.none() | st.integers(0, 99)),
    digests=st.dictionaries(line, digest, max_size=3),
)


@settings(max_examples=50)
@given(metadata)
def test_written_metadata_reads_back_the_same(given: AdapterMetadata) -> None:
    assert decode_metadata(encode_metadata(given)) == given


@settings(max_examples=50)
@given(metadata)
def test_written_metadata_is_json_that_any_reader_takes(given: AdapterMetadata) -> None:
    json.loads(encode_metadata(given), parse_constant=lambda constant: pytest.fail(constant))


def test_the_guides_metadata_reads_with_unknown_facts_left_open() -> None:
    guide = b"""{
      "name": "spring-boot-expert",
      "version": "1.0.0",
      "base_model": "codet5-770m",
      "description": "Optimized for Spring Boot microservices",
      "author": "YourName",
      "license": "Apache-2.0",
      "training_samples": 5000,
      "accuracy": 0.85,
      "size_mb": 42
    }"""
    read = decode_metadata(guide)
    assert (read.name, read.training_samples, read.accuracy, read.size_mb) == ("spring-boot-expert", 5000, 0.85, 42.0)
    assert (read.rank, read.base_fingerprint, read.evaluation, read.target_modules) == (None, "", None, ())


def test_the_guides_fields_stand_first_and_in_its_order() -> None:
    keys = list(json.loads(encode_metadata(AdapterMetadata(name="x"))))
    guide = [
        "name",
        "version",
        "base_model",
        "description",
        "author",
        "license",
        "training_samples",
        "accuracy",
        "size_mb",
    ]
    assert keys[: len(guide)] == guide


def test_unknown_keys_are_ignored_at_every_level() -> None:
    document = {"name": "x", "colour": "red", "evaluation": {"base": {"bleu": 1}, "when": 3}}
    assert decode_metadata(json.dumps(document).encode()) == AdapterMetadata(name="x", evaluation=Evaluation())


def test_scores_that_overflowed_are_not_measured_rather_than_nan() -> None:
    scores = Scores(perplexity=math.inf, accuracy=math.nan)
    assert scores == Scores()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("name", None),
        ("name", "two\nlines"),
        ("name", "\x1b]0;title\x07"),
        ("author", "turned \u202e around"),
        ("description", "bell \x07"),
        ("version", "latest"),
        ("version", 1.0),
        ("training_samples", "5000"),
        ("training_samples", 5000.0),
        ("training_samples", -1),
        ("training_samples", True),
        ("accuracy", "high"),
        ("accuracy", 85),
        ("accuracy", True),
        ("size_mb", -1),
        ("rank", 8.5),
        ("target_modules", "q_proj"),
        ("target_modules", [1]),
        ("created", "yesterday"),
        ("created", "2026-02-31T00:00:00Z"),
        ("created", "2026-01-31T09:30:00+02:00"),
        ("evaluation", 0.5),
        ("evaluation", {"base": 9.2}),
        ("evaluation", {"adapter": {"perplexity": "low"}}),
        ("evaluation", {"adapter": {"accuracy": 2}}),
        ("evaluation", {"samples": "all"}),
        ("digests", ["sha"]),
        ("digests", {"README.md": "abc"}),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(AdapterError, match=rf"metadata\.json: .*({key}|perplexity|accuracy|samples)"):
        decode_metadata(json.dumps({"name": "x", key: value}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"name": "x", "name": "y"}',
        b'{"name": "x", "accuracy": NaN}',
        b'{"name": "x", "size_mb": Infinity}',
        b'{"name": "x", "size_mb": 1e999}',
        b'{"name": "x", "training_samples": ' + b"9" * 5000 + b"}",
        b'{"name": ' + b"[" * 100_000,
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"name": "' + b"x" * 2**20 + b'"}',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_not_a_metadata_file_is_refused(data: bytes) -> None:
    with pytest.raises(AdapterError, match=r"metadata\.json"):
        decode_metadata(data)


def test_nan_cannot_get_into_metadata() -> None:
    with pytest.raises(AdapterError, match="accuracy"):
        AdapterMetadata(name="x", accuracy=math.nan)
