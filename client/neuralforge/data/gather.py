"""One dataset from wherever it was asked to come from: a repository, folders, or JSONL files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from neuralforge.data.dataset import Dataset, build_dataset, dataset_from_examples
from neuralforge.data.decision import Watch, nobody
from neuralforge.data.git import read_git_tree
from neuralforge.data.jsonl import read_examples
from neuralforge.data.license import license_of_folder, license_of_repository
from neuralforge.data.quality import Quality
from neuralforge.data.source import SourceFiles, join_sources, read_source_tree
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
    quality: Quality | None = None,
    balance: float | None = None,
    watch: Watch = nobody,
) -> Dataset:
    """Read, clean and split; nothing on the training side stands, or nearly stands, on the held-out side.

    `since` is of `from_git`, see `read_git_tree`; `quality`, `balance` and `watch` are those of `build_dataset`. Raises
    DataError where there is nothing to learn from.
    """
    if train_file is not None:
        return dataset_from_examples(
            read_examples(train_file),
            evaluation=read_examples(eval_file) if eval_file is not None else None,
            eval_fraction=eval_fraction,
            max_samples=max_samples,
            max_eval_samples=max_eval_samples,
            seed=seed,
            quality=quality,
            balance=balance,
        )
    if from_git is None and not sources:
        raise DataError(
            "no data: nothing says what to learn from",
            hint="give --from-git DIR, --source DIR or --dataset FILE",
        )
    streams = []
    if from_git is not None:
        tree = read_git_tree(from_git, since=since, patterns=patterns, languages=languages)
        streams.append(_licensed(tree, license_of_repository, from_git, quality))
    for source in sources:
        tree = read_source_tree(source, patterns=patterns, languages=languages)
        streams.append(_licensed(tree, license_of_folder, source, quality))
    return build_dataset(
        join_sources(streams),
        eval_fraction=eval_fraction,
        max_samples=max_samples,
        max_eval_samples=max_eval_samples,
        seed=seed,
        quality=quality,
        balance=balance,
        watch=watch,
    )


def _licensed(
    stream: SourceFiles, license_of: Callable[[Path], str], place: Path, quality: Quality | None
) -> SourceFiles:
    """Each file with the license of its repository, where a license decides anything: looking for it takes a moment."""
    if quality is None or not quality.asks_license:
        return stream
    license_name = license_of(place)
    return SourceFiles((replace(file, license=license_name) for file in stream), stream.tally)
