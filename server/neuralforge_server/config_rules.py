"""What must hold between keys of a federation whose single values are fine, and how a coordinator's file is read."""

import itertools
import math
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from neuralforge_common.adapter import MAX_RANK
from neuralforge_common.config.document import Conflict, Document
from neuralforge_common.config.resolve import Resolved, resolve
from neuralforge_server.config import FederationConfig, ServerConfig
from neuralforge_server.privacy_rules import privacy_conflicts, privacy_notices
from neuralforge_server.secagg.rules import masking_conflicts, masking_notices

ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "training.steps": ("training.epochs",),
    "training.epochs": ("training.steps",),
}

_REFACTORED = ("stacking", "svd")
_GROWING = ("stacking", "residual")
_FREE_BASIS = ("stacking", "residual", "svd")
_ADAPTIVE = ("fedadam", "fedyogi")
_PORTS = ("port", "member_port", "fleet_port", "admin_port")


def federation_conflicts(config: FederationConfig) -> Iterator[Conflict]:
    """Yields every broken rule of the sections that server and simulation share. Values alone decide."""
    federation, aggregation = config.federation, config.aggregation
    quorum = federation.resolved_quorum
    if config.training.steps is not None and config.training.epochs is not None:
        yield ("training.epochs", "training.steps"), "cannot be used together with training.steps"
    if federation.sample is not None and quorum > federation.sample:
        yield (
            ("federation.quorum", "federation.sample"),
            f"{quorum} updates never arrive: a round takes {federation.sample} (federation.sample)",
        )
    if quorum > federation.min_clients:
        yield (
            ("federation.quorum", "federation.min_clients"),
            f"a round may begin with {federation.min_clients} clients (federation.min_clients), fewer than {quorum}",
        )
    if aggregation.robust not in ("none", "clip") and aggregation.method in _FREE_BASIS:
        # ΔW = B·A = (B·M⁻¹)·(M·A) for any M: the coordinates of two clients' factors mean different things.
        yield (
            ("aggregation.robust", "aggregation.method"),
            f"{aggregation.robust} compares updates coordinate by coordinate, and the factors of "
            f"{aggregation.method} have a free basis: wanted none or clip, or another aggregation.method",
        )
    if aggregation.optimizer != "fedavg" and aggregation.method in _REFACTORED:
        yield (
            ("aggregation.optimizer", "aggregation.method"),
            f"{aggregation.optimizer} keeps moments of the matrices, and {aggregation.method} factors them anew every "
            "round: wanted fedavg, or another aggregation.method",
        )
    needed = 2 * aggregation.byzantine + 3
    if aggregation.robust == "multi-krum" and quorum < needed:
        yield (
            ("aggregation.robust", "aggregation.byzantine", "federation.quorum", "federation.min_clients"),
            f"multi-krum against {aggregation.byzantine} (aggregation.byzantine) needs {needed} updates, and a round "
            f"may count with {quorum}: raise federation.min_clients and federation.quorum",
        )
    total = config.adapter.rank + aggregation.residual_rank
    if aggregation.method in _GROWING and total > MAX_RANK:
        yield (
            ("aggregation.residual_rank", "adapter.rank"),
            f"makes a rank of {total} together with adapter.rank, at most {MAX_RANK} are possible",
        )
    yield from privacy_conflicts(config)
    yield from masking_conflicts(config)


def federation_notices(config: FederationConfig, given: Container[str]) -> Iterator[str]:
    """Yields a line for each setting of the shared sections that has no effect or a surprising one."""
    federation, training, aggregation = config.federation, config.training, config.aggregation
    # key, whether anything reads it, what would
    readers = (
        ("federation.over_select", federation.sample or federation.over_select == 1, "federation.sample"),
        ("aggregation.trim", aggregation.robust == "trimmed-mean", "aggregation.robust: trimmed-mean"),
        ("aggregation.byzantine", aggregation.robust == "multi-krum", "aggregation.robust: multi-krum"),
        ("aggregation.residual_rank", aggregation.method in _GROWING, f"aggregation.method: {' or '.join(_GROWING)}"),
        ("aggregation.momentum", aggregation.optimizer != "fedavg", "an aggregation.optimizer other than fedavg"),
        ("aggregation.beta2", aggregation.optimizer in _ADAPTIVE, f"aggregation.optimizer: {' or '.join(_ADAPTIVE)}"),
        ("aggregation.tau", aggregation.optimizer in _ADAPTIVE, f"aggregation.optimizer: {' or '.join(_ADAPTIVE)}"),
        (
            "aggregation.max_weight",
            aggregation.weighting == "examples" or config.counts_clients_alike,
            "aggregation.weighting: examples",
        ),
    )
    for key, is_read, reader in readers:
        if key in given and not is_read:
            yield f"{key} has no effect without {reader}"
    steps = training.resolved_steps
    if steps is not None and training.warmup_steps >= steps:
        yield (
            f"training.warmup_steps ({training.warmup_steps}) is not below training.steps ({steps}): "
            "the warm-up will be cut"
        )
    quorum = federation.resolved_quorum
    if aggregation.robust == "trimmed-mean" and math.floor(aggregation.trim * quorum) == 0:
        yield (
            f"trimmed-mean cuts nothing from a round of {quorum} updates: aggregation.trim is {aggregation.trim:g}, "
            "and federation.quorum or federation.min_clients allows so few"
        )
    yield from privacy_notices(config, given)
    yield from masking_notices(config, given)


def _server_conflicts(config: ServerConfig) -> Iterator[Conflict]:
    yield from federation_conflicts(config)
    for first, second in itertools.combinations(_PORTS, 2):
        port = getattr(config.listen, second)
        if getattr(config.listen, first) == port:
            yield (f"listen.{second}", f"listen.{first}"), f"{port} is listen.{first} already"


SERVER = Document(
    root=ServerConfig,
    prefix="NF_SERVER_",
    alternatives=ALTERNATIVES,
    conflicts=_server_conflicts,
    notices=federation_notices,
)


def resolve_server_config(
    file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> Resolved[ServerConfig]:
    """A coordinator's configuration, with the origin of each value and notices.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    return resolve(SERVER, file, overrides, environ)
