"""Near-duplicates are those whose shingles overlap by 0.8, exactly, whatever finds them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shingles import token_shingles

from neuralforge.data.dedup import THRESHOLD, Deduplicator, example_text, line_shingles, token_prints
from neuralforge.data.example import Example
from neuralforge.data.extract import extract_examples
from neuralforge.data.source import read_source_tree


def jaccard(first: str, second: str, shingles: Callable[[str], Sequence[str]] = token_shingles) -> float:
    one, other = set(shingles(first)), set(shingles(second))
    return len(one & other) / len(one | other)


def judged(first: str, second: str) -> str:
    seen = Deduplicator()
    assert seen.add(first) == ""
    return seen.add(second)


FUNCTION = "\n".join(f"    value_{i} = compute(value_{i - 1}, {i})" for i in range(30))


def test_the_same_text_is_an_exact_duplicate() -> None:
    assert judged(FUNCTION, FUNCTION) == "exact"


def test_the_same_tokens_in_other_spacing_are_an_exact_duplicate() -> None:
    assert judged(FUNCTION, FUNCTION.replace("    ", "\t").replace(", ", " ,\n")) == "exact"


def test_one_changed_name_is_a_near_duplicate() -> None:
    assert judged(FUNCTION, FUNCTION.replace("value_15 =", "result =")) == "near"


def test_other_code_is_no_duplicate() -> None:
    assert judged(FUNCTION, FUNCTION.replace("compute", "derive")) == ""


def test_what_was_not_kept_makes_no_later_text_a_near_duplicate() -> None:
    def text(begin: int) -> str:
        return " ".join(f"t{i}" for i in range(begin, begin + 100))

    assert jaccard(text(0), text(8)) >= THRESHOLD > jaccard(text(0), text(16))
    seen = Deduplicator()
    assert [seen.add(text(begin)) for begin in (0, 8, 16)] == ["", "near", ""]


def test_a_near_duplicate_that_comes_again_is_an_exact_one() -> None:
    seen = Deduplicator()
    changed = FUNCTION.replace("value_15 =", "result =")
    assert [seen.add(text) for text in (FUNCTION, changed, changed)] == ["", "near", "exact"]


@settings(deadline=None, max_examples=300)
@given(st.integers(5, 120), st.integers(0, 60), st.integers(0, 60))
def test_two_texts_are_near_exactly_from_the_threshold_on(shared: int, only_first: int, only_second: int) -> None:
    # Lines in two texts that overlap by design, so that the similarity takes every value around 0.8.
    common = [f"common {i}" for i in range(shared)]
    first = "\n".join([*common, *(f"first {i}" for i in range(only_first))])
    second = "\n".join([*common, *(f"second {i}" for i in range(only_second))])
    assume(first != second)
    seen = Deduplicator(line_shingles)
    assert seen.add(first) == ""
    assert seen.add(second) == ("near" if jaccard(first, second, line_shingles) >= THRESHOLD else "")


@pytest.mark.parametrize(
    ("shared", "other", "verdict"), [(8, 2, "near"), (79, 21, ""), (80, 20, "near"), (400, 100, "near")]
)
def test_the_threshold_itself_is_near_and_just_below_it_is_not(shared: int, other: int, verdict: str) -> None:
    first = "\n".join(f"line {i}" for i in range(shared + other))
    second = "\n".join(f"line {i}" for i in range(shared))
    seen = Deduplicator(line_shingles)
    assert [seen.add(first), seen.add(second)] == ["", verdict]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=25).map(" ".join), max_size=20))
def test_each_verdict_is_what_brute_force_says(texts: list[str]) -> None:
    seen = Deduplicator()
    kept: list[str] = []
    met: set[tuple[str, ...]] = set()
    for text in texts:
        verdict = seen.add(text)
        name = tuple(token_shingles(text))
        if name in met:
            assert verdict == "exact"
        else:
            assert verdict == ("near" if any(jaccard(text, one) >= THRESHOLD for one in kept) else "")
        met.add(name)
        if not verdict:
            kept.append(text)


def test_of_real_code_no_two_kept_are_near_and_each_dropped_is_near_a_kept_one(library: Path) -> None:
    originals = [
        example_text(example) for file in read_source_tree(library / "asyncio") for example in extract_examples(file)
    ][:400]
    # Every second one comes again with some of its names changed: some copies stay above the threshold, some do not.
    copies = [re.sub(r"\bself\b", "this", re.sub(r"\bNone\b", "Null", text)) for text in originals[::2]]
    texts = originals + copies
    random.Random(0).shuffle(texts)
    seen = Deduplicator()
    verdicts = [seen.add(text) for text in texts]
    kept = [set(token_shingles(text)) for text, verdict in zip(texts, verdicts, strict=True) if not verdict]

    def similarity(one: set[str], other: set[str]) -> float:
        return len(one & other) / len(one | other)

    assert all(similarity(a, b) < THRESHOLD for i, a in enumerate(kept) for b in kept[:i])
    dropped = [set(token_shingles(text)) for text, verdict in zip(texts, verdicts, strict=True) if verdict == "near"]
    assert 10 < len(dropped) < len(copies), "these texts show nothing"
    assert all(any(similarity(a, b) >= THRESHOLD for b in kept) for a in dropped)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "𝔸", "x"])
def test_texts_too_short_for_a_shingle_are_compared_all_the_same(text: str) -> None:
    assert judged(text, text) == "exact"
    assert judged(text, "another text") == ""


WORDS = st.lists(st.sampled_from(["a", "b", "_x1", "é", "数", "(", "𝔸", "\x1c", "\n", " "]), max_size=30)


@settings(deadline=None)
@given(st.lists(WORDS.map("".join), max_size=6))
def test_prints_are_the_same_alone_and_together_and_hold_each_shingle_once(texts: list[str]) -> None:
    prints = token_prints(texts)
    assert prints == [one for text in texts for one in token_prints([text])]
    assert [len(one.hashes) // 8 for one in prints] == [len(set(token_shingles(text))) for text in texts]
    names = [tuple(token_shingles(text)) for text in texts]
    assert [[a == b for b in names] for a in names] == [[a.name == b.name for b in prints] for a in prints]


def test_a_short_text_is_one_shingle_and_a_long_one_runs_of_five_tokens() -> None:
    sizes = [len(one.hashes) // 8 for one in token_prints(["", "a = b + c", "f(x) ; y", "a a a a a a a"])]
    assert sizes == [1, 1, 2, 1]
    assert judged("a a a a a", "a a a a a a") == "near", "the same set of runs"
    assert line_shingles("  a\n\n\tb \n") == ["a", "b"]


def test_an_example_is_its_completion_behind_the_line_that_it_continues() -> None:
    example = Example(context="import os\ndef area(r):\n", completion="    return 3 * r * r\n")
    assert example_text(example) == "def area(r):\n    return 3 * r * r\n"
    assert example_text(Example(context="", completion="x")) == "\nx"
    assert example_text(Example(context="y" * 5000, completion="x")) == "y" * 120 + "\nx"


def test_the_same_answer_behind_other_imports_is_a_duplicate_and_behind_another_signature_is_not() -> None:
    body = "    total = sum(values)\n    return total / len(values)\n"
    first = Example(context="import os\ndef mean(values):\n", completion=body)
    moved = Example(context="import sys\nimport re\ndef mean(values):\n", completion=body)
    renamed = Example(context="import os\ndef average_of_everything(numbers, weights=None):\n", completion=body)
    assert judged(example_text(first), example_text(moved)) == "exact"
    assert judged(example_text(first), example_text(renamed)) == ""
