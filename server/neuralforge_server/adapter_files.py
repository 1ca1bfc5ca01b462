"""A federation's adapter as a `.lora` folder: what it may begin with, and what it ends with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neuralforge_common import __version__, metadata
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import FederationError
from neuralforge_common.folder import read_adapter_folder, write_adapter_folder
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.privacy import PrivacyStatement
from neuralforge_server.aggregation.method import GlobalState, Method
from neuralforge_server.aggregation.serve import served
from neuralforge_server.terms import Terms

ADAPTER = "adapter.lora"


def save_adapter(path: Path, terms: Terms, spec: AdapterSpec, state: GlobalState) -> Path | None:
    """Write the federation's adapter as a `.lora` folder; None where its B stays with the clients."""
    if terms.personal != "none":
        return None
    layout, vector = served(state)
    full = replace(spec, rank=layout.rank, alpha=spec.scaling * layout.rank)
    facts = metadata.AdapterMetadata(
        name=terms.federation,
        description=f"Trained together in {terms.rounds} federated rounds ({terms.method}) on {spec.base}",
        base_model=spec.base,
        neuralforge_version=__version__,
        privacy=promised(terms),
        federation_rounds=terms.rounds,
    )
    write_adapter_folder(path, spec=full, state=layout.unflatten(vector), metadata=facts)
    return path


def promised(terms: Terms) -> PrivacyStatement | None:
    """What the federation's adapter tells at most of a client's data; None where nothing bounds that."""
    if terms.privacy is not None:
        private = terms.privacy
        return PrivacyStatement(
            epsilon=private.target_epsilon,
            delta=private.delta,
            unit=private.unit,
            steps=terms.rounds * (terms.steps or 0),
            note="the budget of every client, which its own ledger keeps",
        )
    if terms.central is not None:
        return PrivacyStatement(
            epsilon=terms.central.target_epsilon,
            delta=terms.central.delta,
            unit="client",
            steps=terms.rounds,
            note="by the coordinator's noise, which sees every update itself",
        )
    return None


def start_point(path: Path | None, terms: Terms, method: Method) -> tuple[AdapterSpec, GlobalState] | None:
    """An adapter folder as a federation's beginning; None for a fresh one."""
    if path is None:
        return None
    folder = read_adapter_folder(path)
    layout = AdapterLayout.of(folder.state)
    if layout.rank != terms.adapter.rank:
        raise FederationError(
            f"federation.start_from: {path} has rank {layout.rank}, adapter.rank is {terms.adapter.rank}",
            hint="give adapter.rank the adapter's own",
        )
    if not folder.spec.base_fingerprint:
        raise FederationError(
            f"federation.start_from: {path} does not record its base's fingerprint, so no client could check it",
            hint="start from an adapter that neuralforge has trained",
        )
    begun = method.initial(layout, seed=terms.seed)
    return folder.spec, replace(begun, vector=layout.flatten(folder.state))
