"""The gate before a registry: signed, evaluated, better than its base; or worse, and saying so."""

from __future__ import annotations

import pytest

from neuralforge_common.errors import AdapterError
from neuralforge_common.metadata import AdapterMetadata, Evaluation, Scores, decode_metadata, encode_metadata
from neuralforge_common.registry.gate import check_publishable


def metadata(base: Scores, adapter: Scores, *, allow_worse: bool = False) -> AdapterMetadata:
    evaluation = Evaluation(base=base, adapter=adapter, samples=9)
    return AdapterMetadata(name="x", evaluation=evaluation, allow_worse=allow_worse)


BETTER = (Scores(perplexity=9.0), Scores(perplexity=8.9))
WORSE = (Scores(perplexity=9.0), Scores(perplexity=9.0))


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        BETTER,
        (Scores(accuracy=0.5), Scores(accuracy=0.51)),
        # Perplexity decides where both have one.
        (Scores(perplexity=9.0, accuracy=0.5), Scores(perplexity=8.0, accuracy=0.4)),
        (Scores(perplexity=9.0, accuracy=0.5), Scores(accuracy=0.6)),
    ],
)
def test_what_beats_its_base_passes(base: Scores, adapter: Scores) -> None:
    check_publishable(metadata(base, adapter), signed=True)


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        WORSE,
        (Scores(accuracy=0.5), Scores(accuracy=0.5)),
        (Scores(perplexity=9.0, accuracy=0.5), Scores(perplexity=9.1, accuracy=0.9)),
    ],
)
def test_what_does_not_passes_only_if_it_says_so(base: Scores, adapter: Scores) -> None:
    with pytest.raises(AdapterError, match="does not beat its base") as caught:
        check_publishable(metadata(base, adapter), signed=True)
    assert "--allow-worse" in caught.value.hint
    check_publishable(metadata(base, adapter, allow_worse=True), signed=True)


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        (Scores(), Scores(perplexity=1.0, accuracy=1.0)),
        (Scores(perplexity=9.0), Scores(accuracy=0.9)),
        (Scores(perplexity=9.0), Scores(perplexity=float("inf"))),
    ],
)
def test_nothing_lets_the_unmeasured_pass(base: Scores, adapter: Scores) -> None:
    for allow_worse in (False, True):
        with pytest.raises(AdapterError, match="was not evaluated"):
            check_publishable(metadata(base, adapter, allow_worse=allow_worse), signed=True)
    with pytest.raises(AdapterError, match="was not evaluated"):
        check_publishable(AdapterMetadata(name="x", allow_worse=True), signed=True)


def test_nothing_lets_the_unsigned_pass() -> None:
    with pytest.raises(AdapterError, match="not signed"):
        check_publishable(metadata(*BETTER, allow_worse=True), signed=False)


def test_allow_worse_is_in_the_metadata_file_and_is_true_or_false() -> None:
    written = metadata(*WORSE, allow_worse=True)
    assert decode_metadata(encode_metadata(written)).allow_worse is True
    assert decode_metadata(b'{"name": "x"}').allow_worse is False
    for wrong in (b"1", b'"yes"', b"null"):
        with pytest.raises(AdapterError, match="allow_worse: wanted true or false"):
            decode_metadata(b'{"name": "x", "allow_worse": %b}' % wrong)
