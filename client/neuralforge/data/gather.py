"""One dataset from wherever it was asked to come from: a repository, folders, or JSONL files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuralforge.data.dataset import Dataset, build_dataset, dataset_from_examples
from neuralforge.data.git import read_git_tree
from neuralforge.data.jsonl import read_examples
from neuralforge.data.source import join_sources, read_source_tree
from neuralforge_common.errors import DataError


def gather(
    *,
    from_git: Path | None = None,
    since: str | None = None,
    sources: Sequence[Path] = (),
    train_file: Path | None = None,
    eval_file: Path | None = None,
    patterns: Sequence[str] = (),
    languages: Sequence[str] = (),
    eval_fraction: float = 0.1,
    max_samples: int | None = None,
    max_eval_samples: int | None = 100,
    seed: int = 0,
) -> Dataset:
    """Read, clean and split; nothing on the training side stands, or nearly stands, on the held-out side.

    `since` is of `from_git`, see `read_git_tree`. Raises DataError where there is nothing to learn from.
    """
    if train_file is not None:
        return dataset_from_examples(
            read_examples(train_file),
            evaluation=read_examples(eval_file) if eval_file is not None else None,
            eval_fraction=eval_fraction,
            max_samples=max_samples,
            max_eval_samples=max_eval_samples,
            seed=seed,
        )
    if from_git is None and not sources:
        raise DataError(
            "no data: nothing says what to learn from",
            hint="give --from-git DIR, --source DIR or --dataset FILE",
        )
    streams = [read_source_tree(source, patterns=patterns, languages=languages) for source in sources]
    if from_git is not None:
        streams.insert(0, read_git_tree(from_git, since=since, patterns=patterns, languages=languages))
    return build_dataset(
        join_sources(streams),
        eval_fraction=eval_fraction,
        max_samples=max_samples,
        max_eval_samples=max_eval_samples,
        seed=seed,
    )
