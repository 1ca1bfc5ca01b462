"""Who holds what: examples dealt out to clients, whole files at a time, the same way for the same seed.

A file never goes to two clients: neighbours in a file give each other away, so the split into learnt and held out that
each client makes afterwards would leak across clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from neuralforge.data.example import Example
from neuralforge_common.errors import DataError

By: TypeAlias = Literal["repository", "author", "language", "dirichlet", "size"]

ZIPF_EXPONENT = 1.0
"""By size, the k-th client is meant to hold a share that goes with k to the power of minus this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one client holds."""

    name: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Every example, each in one share; `notices` are lines for the person who asked."""

    shares: tuple[Share, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    label: str
    examples: tuple[Example, ...]


def partition(
    examples: Iterable[Example],
    *,
    by: By,
    clients: int | None = None,
    alpha: float = 0.5,
    seed: int = 0,
    author_of: Callable[[Example], str] | None = None,
) -> Partition:
    """Deal the examples out.

    - repository, author, language: a client each, or `clients` of them that hold several, evened out by examples.
    - dirichlet: `clients` clients of about equal size, each with its own mixture of languages (of repositories where
      there is one language), drawn from Dir(alpha): the smaller alpha, the more one-sided (Hsu et al. 2019,
      arXiv:1909.06335, §3.1).
    - size: `clients` clients of the same kind, the first much larger than the last (Zipf).

    Clients that would come out empty are left out, with a notice.

    Raises:
        DataError: no examples, or fewer labels than clients.
    """
    everything = list(examples)
    if not everything:
        raise DataError("there are no examples to deal out to clients")
    if by == "author":
        if author_of is None:
            raise DataError(
                "authors are not known", hint="clients.sources wants git repositories for clients.partition: author"
            )
        return _by_label(_files(everything, author_of), "authors", clients)
    if by == "repository":
        return _by_label(_files(everything, _repository), "repositories", clients)
    if by == "language":
        return _by_label(_files(everything, _language), "languages", clients)
    if clients is None:
        raise DataError(f"clients.partition: {by} wants clients.count")
    generator = np.random.Generator(np.random.Philox(key=seed))
    if by == "size":
        return _numbered(_by_size(_files(everything, _repository), clients, generator))
    one_language = len({_language(example) for example in everything}) == 1
    what = "repositories" if one_language else "languages"
    files = _files(everything, _repository if one_language else _language)
    notices: tuple[str, ...] = ()
    if len({file.label for file in files}) == 1:
        notices = ("dirichlet: there is one language and one repository, so all clients hold the same mixture",)
    elif one_language:
        notices = (f"dirichlet: there is one language, so clients differ in their mixture of {what}",)
    return _numbered(_dirichlet(files, clients, alpha, generator), notices)


def _repository(example: Example) -> str:
    return example.repo or "no repository"


def _language(example: Example) -> str:
    return example.language or "no language"


def _files(examples: Sequence[Example], label_of: Callable[[Example], str]) -> list[_File]:
    """The examples by file, in order of appearance; one that names no file is a file of its own."""
    groups: dict[object, list[Example]] = {}
    for number, example in enumerate(examples):
        key = (example.repo, example.path) if example.path else number
        groups.setdefault(key, []).append(example)
    return [_File(label_of(group[0]), tuple(group)) for group in groups.values()]


def _by_label(files: Sequence[_File], what: str, clients: int | None) -> Partition:
    held: dict[str, list[Example]] = {}
    for file in files:
        held.setdefault(file.label, []).extend(file.examples)
    if clients is None:
        return Partition(shares=tuple(Share(name=name, examples=tuple(held[name])) for name in sorted(held)))
    if len(held) < clients:
        named = ", ".join(sorted(held)[:6]) + (", …" if len(held) > 6 else "")
        raise DataError(
            f"wanted {clients} clients, but the examples come from {len(held)} {what}: {named}",
            hint="ask for fewer clients (clients.count), or deal out by dirichlet or size (clients.partition)",
        )
    # The largest label goes to whoever holds least (longest processing time first; Graham 1969).
    dealt: list[list[str]] = [[] for _ in range(clients)]
    sizes = [0] * clients
    for label in sorted(held, key=lambda label: (-len(held[label]), label)):
        smallest = sizes.index(min(sizes))
        dealt[smallest].append(label)
        sizes[smallest] += len(held[label])
    return Partition(
        shares=tuple(
            Share(name=_joined(labels), examples=tuple(e for label in labels for e in held[label])) for labels in dealt
        )
    )


def _dirichlet(
    files: Sequence[_File], clients: int, alpha: float, generator: np.random.Generator
) -> list[list[Example]]:
    waiting: dict[str, list[_File]] = {}
    for place in generator.permutation(len(files)):
        waiting.setdefault(files[place].label, []).append(files[place])
    labels = sorted(waiting)
    counts = np.array([sum(len(file.examples) for file in waiting[label]) for label in labels], np.float64)
    # Parameters as in the paper, alpha × the share of each label: a large alpha gives everybody the same mixture.
    prior = np.maximum(alpha * counts / counts.sum(), 1e-12)
    mixtures = generator.dirichlet(prior, size=clients)
    dealt: list[list[Example]] = [[] for _ in range(clients)]
    for _ in files:
        # Whoever holds least draws the next file: clients end up of about one size, and none waits for another.
        client = min(range(clients), key=lambda number: len(dealt[number]))
        left = np.array([bool(waiting[label]) for label in labels])
        chances = np.where(left, mixtures[client], 0.0)
        if not chances.sum() > 0:
            chances = left.astype(np.float64)
        label = labels[int(generator.choice(len(labels), p=chances / chances.sum()))]
        dealt[client].extend(waiting[label].pop().examples)
    return dealt


def _by_size(files: Sequence[_File], clients: int, generator: np.random.Generator) -> list[list[Example]]:
    wanted = np.arange(1, clients + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    wanted *= sum(len(file.examples) for file in files) / wanted.sum()
    dealt: list[list[Example]] = [[] for _ in range(clients)]
    missing = wanted.copy()
    for place in generator.permutation(len(files)):
        client = int(np.argmax(missing / wanted))
        dealt[client].extend(files[place].examples)
        missing[client] -= len(files[place].examples)
    return dealt


def _numbered(dealt: Sequence[Sequence[Example]], notices: tuple[str, ...] = ()) -> Partition:
    width = len(str(len(dealt)))
    shares = tuple(
        Share(name=f"client-{number:0{width}d}", examples=tuple(examples))
        for number, examples in enumerate(dealt, start=1)
        if examples
    )
    if empty := len(dealt) - len(shares):
        notices += (f"{empty} of {len(dealt)} clients hold nothing and take no part: there are too few files",)
    return Partition(shares=shares, notices=notices)


def _joined(labels: Sequence[str]) -> str:
    """What a client that holds several labels is called."""
    return " + ".join(labels) if len(labels) <= 2 else f"{labels[0]} + {len(labels) - 1} more"
