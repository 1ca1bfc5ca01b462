"""What a simulated federation can be told: a server's sections as they are, and who the clients are."""

import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from neuralforge_common.config.document import Conflict, Document
from neuralforge_common.config.fields import (
    ABOVE_0,
    FLAG,
    FROM_0,
    FROM_1,
    NUMBER_FROM_0,
    PATH,
    AnyPath,
    Number,
    Paths,
    Ranks,
    Section,
    Share,
    Texts,
    Wanted,
    Whole,
)
from neuralforge_common.config.resolve import Resolved, resolve
from neuralforge_server.config import FederationConfig
from neuralforge_server.config_rules import ALTERNATIVES, federation_conflicts, federation_notices

_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_COUNTED = ("dirichlet", "size")


def _package_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_PACKAGE.fullmatch(name) for name in names):
        raise ValueError("not the names of packages")
    return names


class ClientsSection(Section):
    """`clients:` who holds what, and how well they answer.

    `sources` are repositories or folders, `packages` installed import packages that play repositories. A client drops
    out of a round with the probability `dropout`; a `slow_fraction` of them takes `slow_seconds` longer. `ranks` are
    dealt out to the clients in turn; without them all hold the server's.
    """

    count: Annotated[Whole | None, Field(ge=1, le=100_000), Wanted("a whole number from 1 to 100,000")] = None
    partition: Annotated[
        Literal["repository", "author", "language", "dirichlet", "size"],
        Wanted("repository, author, language, dirichlet or size"),
    ] = "repository"
    dirichlet_alpha: Annotated[Number, Field(gt=0, le=1e6), ABOVE_0] = 0.5
    sources: Paths = ()
    packages: Annotated[Texts, AfterValidator(_package_names), Wanted("a list of import packages such as rich")] = ()
    dropout: Share = 0.0
    slow_fraction: Annotated[Number, Field(ge=0, le=1), Wanted("a number from 0 to 1")] = 0.0
    slow_seconds: Annotated[Number, Field(ge=0, le=86_400), NUMBER_FROM_0] = 1.0
    max_samples_per_client: Annotated[Whole | None, Field(ge=1), FROM_1] = 200
    max_eval_samples: Annotated[Whole | None, Field(ge=1), FROM_1] = 40
    ranks: Ranks = ()


class AdversariesSection(Section):
    """`adversaries:` how many of the clients do harm, and how; `scale` multiplies what they send."""

    kind: Annotated[
        Literal["none", "sign-flip", "scale", "nan", "wrong-shape", "backdoor", "noise"],
        Wanted("none, sign-flip, scale, nan, wrong-shape, backdoor or noise"),
    ] = "none"
    count: Annotated[Whole, Field(ge=0), FROM_0] = 0
    scale: Annotated[Number, Field(gt=0, le=1e9), ABOVE_0] = 10.0


class RunSection(Section):
    """`run:` how the simulation runs; `seed` is that of the partition, of who drops out and of who does harm."""

    backend: Annotated[Literal["local", "ray"], Wanted("local or ray")] = "local"
    seed: Annotated[Whole, Field(ge=0), FROM_0] = 0
    directory: Annotated[AnyPath, PATH] = Path("simulation")
    plots: Annotated[bool, FLAG] = True


class ScenarioConfig(FederationConfig):
    """Everything that a simulation can be told; where the data come from is still to be said."""

    clients: ClientsSection = ClientsSection()
    adversaries: AdversariesSection = AdversariesSection()
    run: RunSection = RunSection()


def _conflicts(config: ScenarioConfig) -> Iterator[Conflict]:
    yield from federation_conflicts(config)
    clients, count = config.clients, config.clients.count
    if clients.partition in _COUNTED and count is None:
        yield (
            ("clients.partition", "clients.count"),
            f"{clients.partition} needs clients.count: the data do not say how many",
        )
    if clients.partition == "author" and clients.packages:
        yield ("clients.packages", "clients.partition"), "cannot be split by author: installed packages have no history"
    if count is not None:
        for key, wanted in (
            ("federation.min_clients", config.federation.min_clients),
            ("federation.sample", config.federation.sample or 0),
        ):
            if wanted > count:
                yield (key, "clients.count"), f"{wanted} clients never come: there are {count} (clients.count)"
        if config.adversaries.count >= count:
            yield ("adversaries.count", "clients.count"), f"leaves no honest client among {count} (clients.count)"
    if clients.ranks and max(clients.ranks) > config.adapter.rank:
        yield (
            ("clients.ranks", "adapter.rank"),
            f"{max(clients.ranks)} is above the server's {config.adapter.rank} (adapter.rank)",
        )

    if config.secure_aggregation.trust == "peers":
        if config.run.backend == "ray":
            yield (
                ("secure_aggregation.trust", "run.backend"),
                "with peers a client keeps its keys in memory, and Ray's actors change clients: wanted local",
            )
        if config.adversaries.kind != "none":
            yield (
                ("secure_aggregation.trust", "adversaries.kind"),
                "adversaries change what a client sends, and under masks that is noise already: wanted none",
            )


def _notices(config: ScenarioConfig, given: Container[str]) -> Iterator[str]:
    yield from federation_notices(config, given)
    clients, adversaries = config.clients, config.adversaries
    if "clients.dirichlet_alpha" in given and clients.partition != "dirichlet":
        yield "clients.dirichlet_alpha has no effect without clients.partition: dirichlet"
    if "clients.slow_seconds" in given and clients.slow_fraction == 0:
        yield "clients.slow_seconds has no effect without clients.slow_fraction"
    if (adversaries.kind == "none") != (adversaries.count == 0):
        missing = "adversaries.count" if adversaries.count == 0 else "adversaries.kind"
        yield f"nobody does harm: {missing} is {'0' if adversaries.count == 0 else 'none'}"


SCENARIO = Document(
    root=ScenarioConfig,
    prefix="NF_SIM_",
    alternatives=ALTERNATIVES,
    conflicts=_conflicts,
    notices=_notices,
)


def resolve_scenario_config(
    file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> Resolved[ScenarioConfig]:
    """A simulation's configuration, with the origin of each value and notices.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    return resolve(SCENARIO, file, overrides, environ)
