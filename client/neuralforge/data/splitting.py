"""A dataset divided so that what is held out measures something.

Near-duplicates go first, over the whole dataset: after that no two examples are alike, and no division leaks. By file
is the default, because neighbours in a file share the names that a random division gives away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from neuralforge.data.dataset import held_out_groups
from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.example import Example
from neuralforge_common.errors import DataError

By = Literal["file", "time", "repo", "author", "random"]
WAYS: tuple[By, ...] = get_args(By)

_FROM = {
    "time": "extract-dataset writes it",
    "author": "extract-dataset --keep-author writes it",
    "repo": "create-dataset and extract-dataset write it",
    "file": "create-dataset and extract-dataset write it; or --by random",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Both sides, in the order in which they came, and what was dropped because it repeats something."""

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def split_examples(examples: Sequence[Example], *, by: By, fraction: float, seed: int) -> Split:
    """Hold out `fraction` of the examples: whole files, repositories or authors, the newest, or any.

    Raises:
        DataError: an example does not say what is divided by, or there is nothing to divide.
    """
    dropped: Counter[str] = Counter()
    alike = Deduplicator()
    kept = []
    # By time the first that said it stays: the newer one would otherwise be held out and stand in the past.
    ordered = sorted(examples, key=lambda example: example.time) if by == "time" else examples
    for example in ordered:
        if repeats := alike.add(example_text(example)):
            dropped[f"{repeats} duplicate"] += 1
        else:
            kept.append(example)
    held_out = _newest(kept, fraction) if by == "time" else _groups(kept, by, fraction, seed)
    places = {id(example) for example in held_out}
    left = {id(example) for example in kept} - places
    return Split(
        train=tuple(example for example in examples if id(example) in left),
        evaluation=tuple(example for example in examples if id(example) in places),
        dropped=dropped,
    )


def _groups(examples: list[Example], by: By, fraction: float, seed: int) -> list[Example]:
    numbers = {id(example): number for number, example in enumerate(examples)}
    keys: dict[str, Callable[[Example], Hashable]] = {
        "file": lambda example: (example.repo, example.path),
        "repo": lambda example: example.repo,
        "author": lambda example: example.author,
        "random": lambda example: numbers[id(example)],
    }
    if by != "random":
        _all_say(examples, by, lambda example: example.path if by == "file" else str(keys[by](example)))
    sizes: Counter[Hashable] = Counter(map(keys[by], examples))
    if len(sizes) < 2:
        what = "one file" if by == "file" else f"one {by}"
        raise DataError(f"nothing can be held out by {by}: all examples are of {what}", hint="another --by")
    chosen = held_out_groups(sizes, fraction, seed)
    return [example for example in examples if keys[by](example) in chosen]


def _newest(ordered: list[Example], fraction: float) -> list[Example]:
    _all_say(ordered, "time", lambda example: example.time)
    count = max(1, round(fraction * len(ordered)))
    # Examples of one moment, as of one commit, stay together: on the side of learning.
    first = ordered[-count].time
    held_out = [example for example in ordered if example.time > first]
    held_out = held_out or [example for example in ordered if example.time == ordered[-1].time]
    if len(held_out) == len(ordered):
        raise DataError("nothing can be held out by time: all examples are of one moment", hint="another --by")
    return held_out


def _all_say(examples: Sequence[Example], by: str, value: Callable[[Example], str]) -> None:
    silent = sum(not value(example) for example in examples)
    if silent:
        raise DataError(
            f"--by {by}: {silent:,} of {len(examples):,} examples do not say their {by}", hint=_FROM.get(by, "")
        )
