"""One dataset from wherever it was asked to come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge.data.example import Example
from neuralforge.data.gather import gather
from neuralforge.data.jsonl import write_examples
from neuralforge_common.errors import DataError


def module(name: str, functions: int = 5) -> str:
    return "\n\n".join(
        f"def {name}_{i}(value_{name}):\n"
        f"    first_{name} = value_{name} + {i}\n"
        f"    return first_{name} * {name}_{i}_factor"
        for i in range(functions)
    )


def test_a_repository_and_folders_are_read_one_after_the_other(repository: Callable[..., Path], tmp_path: Path) -> None:
    folder = repository({"a.py": module("alpha"), "b.js": module("beta")})
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.py").write_text(module("gamma"))
    (tmp_path / "more" / "same.py").write_text(module("alpha"))
    dataset = gather(from_git=folder, sources=[tmp_path / "more"], eval_fraction=0)
    assert list(dict.fromkeys((e.repo, e.path) for e in dataset.train)) == [
        ("project", "a.py"),
        ("project", "b.js"),
        ("more", "c.py"),
    ]
    assert {len(e.commit) for e in dataset.train if e.repo == "project"} == {40}
    assert dataset.report.files_found == 4
    assert dataset.report.files_skipped == {"same content as another file": 1}


def test_patterns_and_languages_hold_for_every_source(repository: Callable[..., Path], tmp_path: Path) -> None:
    folder = repository({"a.py": module("alpha"), "b.js": module("beta"), "c_test.py": module("gamma")})
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.js").write_text(module("delta"))
    (tmp_path / "more" / "e.py").write_text(module("epsilon"))
    dataset = gather(
        from_git=folder, sources=[tmp_path / "more"], patterns=["?.*"], languages=["py"], eval_fraction=0
    )  # fmt: skip
    assert {e.path for e in dataset.train} == {"a.py", "e.py"}


def test_a_part_of_a_training_file_is_held_out_unless_a_held_out_file_is_given(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    write_examples(train, [Example(context="c", completion=f"unlike{i}") for i in range(40)])
    write_examples(held_out, [Example(context="c", completion=f"unlike{i}") for i in range(30, 50)])
    alone = gather(train_file=train, eval_fraction=0.25)
    assert (len(alone.train), len(alone.evaluation)) == (30, 10)
    both = gather(train_file=train, eval_file=held_out)
    assert [e.completion for e in both.train] == [f"unlike{i}" for i in range(30)]
    assert len(both.evaluation) == 20


def test_limits_and_seed_reach_either_kind_of_source(tmp_path: Path) -> None:
    write_examples(tmp_path / "a.jsonl", [Example(context="c", completion=f"unlike{i}") for i in range(60)])
    (tmp_path / "code").mkdir()
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"):
        (tmp_path / "code" / f"{name}.py").write_text(module(name, functions=10))
    for source in ({"train_file": tmp_path / "a.jsonl"}, {"sources": [tmp_path / "code"]}):
        first, again, other = (
            gather(**source, eval_fraction=0.3, max_samples=5, max_eval_samples=3, seed=seed)  # type: ignore[arg-type]
            for seed in (1, 1, 2)
        )
        assert (len(first.train), len(first.evaluation)) == (5, 3)
        assert first.digest == again.digest != other.digest


def test_nothing_to_learn_from_is_an_error_that_names_the_ways(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing says what to learn from") as refused:
        gather()
    for way in ("--from-git", "--source", "--dataset"):
        assert way in refused.value.hint


def test_a_fault_in_the_last_line_of_a_file_is_found_before_anything_is_learnt(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_examples(file, [Example(context="c", completion=f"unlike{i}") for i in range(60)])
    with file.open("a") as stream:
        stream.write('{"context": "c"')
    with pytest.raises(DataError, match=r"a\.jsonl:61: not valid JSON"):
        gather(train_file=file)
    with pytest.raises(DataError, match=r"a\.jsonl:61: not valid JSON"):
        gather(train_file=tmp_path / "a.jsonl", eval_file=file)


def test_a_missing_source_is_refused_whatever_stands_before_it(repository: Callable[..., Path], tmp_path: Path) -> None:
    folder = repository({"a.py": module("alpha")})
    with pytest.raises(DataError, match="nowhere: no such folder"):
        gather(from_git=folder, sources=[tmp_path / "nowhere"])
