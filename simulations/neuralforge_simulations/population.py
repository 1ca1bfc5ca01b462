"""The virtual clients of a scenario: what each holds, how well it answers, and which of them do harm."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neuralforge.data.dataset import Dataset, dataset_from_examples
from neuralforge.data.example import Example
from neuralforge_common.errors import DataError
from neuralforge_simulations.adversary import with_backdoor
from neuralforge_simulations.authors import UNKNOWN, authors_of
from neuralforge_simulations.partition import Share, partition
from neuralforge_simulations.report import ClientFacts
from neuralforge_simulations.scenario_config import ScenarioConfig
from neuralforge_simulations.sources import Source, find_sources, read_pool

EVAL_FRACTION = 0.2
"""Of each client's examples, by file: figures of a client with a handful of files need more than a real run's tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualClient:
    """One client; `rank` None is the server's."""

    number: int
    name: str
    data: Dataset
    rank: int | None = None
    hostile: bool = False
    slow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """All clients, and lines for the person who asked."""

    clients: tuple[VirtualClient, ...]
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names by number."""
        return tuple(client.name for client in self.clients)

    def facts(self, config: ScenarioConfig) -> tuple[ClientFacts, ...]:
        """The clients as a report shows them."""
        return tuple(
            ClientFacts(
                name=client.name,
                train=len(client.data.train),
                held_out=len(client.data.evaluation),
                rank=client.rank,
                role=config.adversaries.kind if client.hostile else "",
                habit=f"{config.clients.slow_seconds:g} s slow" if client.slow else "",
            )
            for client in self.clients
        )


def populate(config: ScenarioConfig) -> Population:
    """Read the code, deal it out, and decide by `run.seed` who is slow and who does harm.

    Raises:
        DataError: nothing to read, or fewer clients than the scenario needs.
    """
    wanted, seed = config.clients, config.run.seed
    sources = find_sources(wanted.sources, wanted.packages)
    pool = read_pool(sources)
    dealt = partition(
        pool.train,
        by=wanted.partition,
        clients=wanted.count,
        alpha=wanted.dirichlet_alpha,
        seed=seed,
        author_of=_author_of(sources) if wanted.partition == "author" else None,
    )
    notices = list(dealt.notices)
    read = {example.repo for example in pool.train}
    notices += [f"{source.name}: not one example" for source in sources if source.name not in read]
    _check_enough(len(dealt.shares), config)
    chosen = np.random.Generator(np.random.Philox(key=[seed, 1]))
    count = len(dealt.shares)
    hostile = set(chosen.permutation(count)[: config.adversaries.count].tolist())
    if config.adversaries.kind == "none":
        hostile = set()
    slow = set(chosen.permutation(count)[: round(wanted.slow_fraction * count)].tolist())
    clients = []
    noticed: dict[str, list[str]] = {}
    for number, share in enumerate(dealt.shares):
        data = _dataset(share, config)
        for notice in data.report.notices:
            noticed.setdefault(notice, []).append(share.name)
        if number in hostile and config.adversaries.kind == "backdoor":
            data = replace(data, train=with_backdoor(data.train, seed=seed))
        clients.append(
            VirtualClient(
                number=number,
                name=share.name,
                data=data,
                rank=wanted.ranks[number % len(wanted.ranks)] if wanted.ranks else None,
                hostile=number in hostile,
                slow=number in slow,
            )
        )
    notices += [f"{_some(names)}: {notice}" for notice, names in noticed.items()]
    return Population(clients=tuple(clients), notices=tuple(notices))


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _dataset(share: Share, config: ScenarioConfig) -> Dataset:
    return dataset_from_examples(
        share.examples,
        eval_fraction=EVAL_FRACTION,
        max_samples=config.clients.max_samples_per_client,
        max_eval_samples=config.clients.max_eval_samples,
        seed=config.run.seed,
    )


def _check_enough(count: int, config: ScenarioConfig) -> None:
    needed, harmful = config.federation.min_clients, config.adversaries.count
    if count < needed:
        raise DataError(
            f"a round needs {needed} clients (federation.min_clients), the data make {count}",
            hint="name more sources, or deal them out otherwise (clients.partition, clients.count)",
        )
    if config.adversaries.kind != "none" and harmful >= count:
        raise DataError(f"{harmful} adversaries (adversaries.count) leave no honest client among {count}")


class _Authors:
    """Examples → the author of their file; only repositories have authors."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self._authors = {source.name: authors_of(source.path) for source in sources if source.has_history}

    def __call__(self, example: Example) -> str:
        return self._authors.get(example.repo, {}).get(example.path, UNKNOWN)


def _author_of(sources: tuple[Source, ...]) -> _Authors | None:
    return _Authors(sources) if any(source.has_history for source in sources) else None
