"""Whatever a dataset is divided by, nothing that is held out stands on the other side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.data.analysis import analyze, judge, measure_lengths
from neuralforge.data.analysis_page import analysis_page
from neuralforge.data.example import Example
from neuralforge.data.leakage import measure_leakage
from neuralforge.data.splitting import WAYS, split_examples
from neuralforge_common.errors import DataError


def made(count: int, *, files: int = 7, seed: int = 0) -> list[Example]:
    """Examples that have nothing in common."""
    words = np.random.default_rng(seed).integers(0, 10**9, size=(count, 12))
    return [
        Example(
            context=f"def f{i}():\n",
            completion=" + ".join(f"v{word}" for word in row),
            language="python",
            repo=f"r{i % 3}",
            path=f"p{i % files}.py",
            time=f"2025-01-{1 + i % 28:02}T00:00:00Z",
            author=f"{i % 4:08x}",
        )
        for i, row in enumerate(words)
    ]


def with_twins(examples: list[Example]) -> list[Example]:
    """Each example once more in another file, and once more with a word changed."""
    elsewhere = [replace(e, path="copy.py", repo="r9", time="2026-02-02T00:00:00Z", author="f" * 8) for e in examples]
    nearly = [replace(e, completion=e.completion.replace("v", "v0", 1), path="near.py") for e in elsewhere]
    return [*examples, *elsewhere, *nearly]


@pytest.mark.parametrize("by", WAYS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_planted_twins_are_never_on_both_sides(by: str, seed: int) -> None:
    examples = with_twins(made(60, seed=seed))
    split = split_examples(examples, by=by, fraction=0.2, seed=seed)  # type: ignore[arg-type]
    assert split.train
    assert split.evaluation
    assert measure_leakage(split.train, split.evaluation).share == 0
    assert len(split.train) + len(split.evaluation) + sum(split.dropped.values()) == len(examples)
    for name in {"file": ("repo", "path"), "repo": ("repo",), "author": ("author",)}.get(by, ()):
        if name != "repo" or by == "repo":
            key = [("repo", "path") if by == "file" else (name,)][0]
            sides = [{tuple(getattr(e, k) for k in key) for e in side} for side in (split.train, split.evaluation)]
            assert not sides[0] & sides[1]
    if by == "time":
        assert max(e.time for e in split.train) < min(e.time for e in split.evaluation)


def test_a_random_division_of_raw_data_leaks_and_the_measure_says_so() -> None:
    examples = with_twins(made(60))
    order = np.random.default_rng(1).permutation(len(examples))
    train, held_out = ([examples[i] for i in part] for part in (order[18:], order[:18]))
    leakage = measure_leakage(train, held_out)
    assert leakage.exact > 2
    assert leakage.share > 0.5
    assert measure_leakage(train, []).share == 0


def test_what_an_example_does_not_say_it_cannot_be_divided_by() -> None:
    bare = [replace(e, path="", author="", time="", repo="") for e in made(10)]
    for by in ("file", "time", "repo", "author"):
        with pytest.raises(DataError, match=f"10 of 10 examples do not say their {by}"):
            split_examples(bare, by=by, fraction=0.1, seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="all examples are of one file"):
        split_examples(made(10, files=1)[::3], by="file", fraction=0.1, seed=0)
    moment = [replace(e, time="2025-01-01T00:00:00Z") for e in made(10)]
    with pytest.raises(DataError, match="of one moment"):
        split_examples(moment, by="time", fraction=0.1, seed=0)


def test_leakage_and_secrets_forbid_training_and_say_the_way_out() -> None:
    examples = made(200)
    fine = judge(analyze(examples[:150], examples[150:]), train="t.jsonl", against="e.jsonl")
    assert fine.verdict == "ready"
    assert fine.next == "neuralforge train --dataset t.jsonl --eval-dataset e.jsonl"
    leaky = judge(analyze(examples, examples[150:]), train="t.jsonl", against="e.jsonl")
    assert leaky.verdict == "do not train on it yet"
    assert "split-dataset" in leaky.next
    secret = replace(examples[0], completion="token = 'ghp_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5" + "'")
    held = judge(analyze([secret, *examples]), train="t.jsonl", against=None)
    assert held.verdict == "do not train on it yet"
    few = judge(analyze(examples[:20]), train="t.jsonl", against=None)
    assert few.verdict == "usable, with warnings"


@pytest.mark.parametrize(("share", "told"), [(0.95, True), (0.85, False)])
def test_a_repository_or_language_beside_which_the_others_hardly_count_is_told(share: float, told: bool) -> None:
    count = int(200 * share)
    of_shop = [replace(e, repo="shop" if n < count else "till") for n, e in enumerate(made(200))]
    findings = judge(analyze(of_shop), train="t.jsonl", against="e.jsonl").findings
    assert (f"{share:.0%} are of shop: the other repositories hardly count" in [f.text for f in findings]) == told
    java = [replace(e, language="java" if n < count else "rust") for n, e in enumerate(made(200))]
    findings = judge(analyze(java), train="t.jsonl", against="e.jsonl").findings
    assert (f"{share:.0%} are java: the other languages hardly count" in [f.text for f in findings]) == told


def test_lengths_are_counted_whole_and_what_is_cut_as_training_cuts_it() -> None:
    lengths = measure_lengths([*((0, size) for size in range(1, 101)), (4000, 33), (4000, 32)], 64)
    assert lengths.quantiles[50] == 52
    assert lengths.context_cut == pytest.approx(38 / 102)
    assert lengths.completion_cut == pytest.approx(37 / 102), "half of the room is the completion's"
    assert sum(count for _, count in lengths.histogram) == 102
    analysis = replace(analyze(made(200)), lengths=lengths)
    told = judge(analysis, train="t.jsonl", against="e.jsonl")
    assert told.next.endswith("--max-length 128")
    assert any("36% of the completions do not fit into 64 tokens" in finding.text for finding in told.findings)


def test_nothing_of_a_hostile_dataset_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>\x1b[2J"
    examples = [replace(e, language=hostile, repo=hostile, license=hostile) for e in made(5)]
    analysis = replace(analyze(examples), lengths=measure_lengths([(1, 2), (3, 4)], 8))
    page = analysis_page(analysis, judge(analysis, train=hostile, against=None), name=hostile)
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("<svg") == 1
    assert page.count('class="bars"') == 3


def test_a_page_has_the_verdict_and_the_command_before_all_else_and_names_its_axes() -> None:
    examples = made(200)
    lengths = measure_lengths([*((0, size) for size in range(1, 101)), (4000, 33)], 64)
    analysis = replace(analyze(examples[:150], examples[150:]), lengths=lengths)
    page = analysis_page(analysis, judge(analysis, train="a b.jsonl", against="e.jsonl"), name="a b.jsonl", base="tiny")
    told = [
        *("usable, with warnings", "neuralforge train --dataset &#x27;a b.jsonl&#x27; --eval-dataset e.jsonl"),
        *("What is in it", "of 50: 0 to the token, 0 nearly", "Length in tokens of tiny", "cut at 64"),
        *("tokens of context and completion, 11 to a bar", "Languages"),
    ]
    body = page.partition("<body>")[2]
    assert [*sorted(told, key=body.index)] == told
    whole, longer = body.count('class="under"'), body.count('class="over"')
    assert (whole, longer) == (6, 18), "a bar from 55 to 65 begins below the limit"
    assert "http" not in body
    assert 'name="viewport"' in page


def test_what_leaks_is_joined_and_divided_by_a_command_that_runs() -> None:
    examples = made(60)
    leaky = judge(analyze(examples, examples[50:]), train="it's.jsonl", against="e.jsonl")
    assert leaky.next == """cat 'it'"'"'s.jsonl' e.jsonl > both.jsonl && neuralforge split-dataset both.jsonl"""
