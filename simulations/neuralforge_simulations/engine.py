"""A whole federation in one process: the coordinator's own rounds over virtual clients on one shared base.

1  read the code and deal it out
2  load the base once; a participant for every client
3  score the base on what each client holds out
4  the rounds, exactly as `nf-server` runs them
5  measure what the adversaries achieved; save the adapter and the report
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from neuralforge.data.example import Example
from neuralforge.evaluation.metrics import Evaluation
from neuralforge.federation.app import make_client_app
from neuralforge.federation.home import PEERS
from neuralforge.federation.memory import Memory
from neuralforge.federation.participant import Participant
from neuralforge.federation.private_rounds import PrivateRounds
from neuralforge.federation.resident import ResidentModel
from neuralforge.federation.secagg.member import SecureMember
from neuralforge.federation.secagg.pins import Pins
from neuralforge.models.load import load_base_model
from neuralforge_common.adapter import MAX_RANK, AdapterSpec, FloatArray
from neuralforge_common.key_files import make_private_folder
from neuralforge_server import events
from neuralforge_server.adapter_files import save_adapter
from neuralforge_server.aggregation.serve import served
from neuralforge_server.config import AdapterSection
from neuralforge_server.events import Score
from neuralforge_server.exchange import Clock, Roster
from neuralforge_server.from_config import method_of, terms_of
from neuralforge_server.ledger import Ledger
from neuralforge_server.strategy import FederatedLoRA
from neuralforge_simulations.adversary import PARTITION_ID, Adversaries, HostileApp, triggered
from neuralforge_simulations.clock import VirtualClock
from neuralforge_simulations.event_lines import Observer, Planted
from neuralforge_simulations.grid import Habits, LocalGrid, client_of
from neuralforge_simulations.population import Population
from neuralforge_simulations.report import BASE_ROUND
from neuralforge_simulations.scenario_config import ScenarioConfig

ADAPTER = "adapter.lora"
BACKDOOR_CONTEXTS = 50
SCOPE = "federation simulated"
"""Of every client's ledger, in a home of its own."""


class Crew:
    """The participants of a population, all on one base; `home` is where each keeps its memory."""

    def __init__(self, config: ScenarioConfig, population: Population, home: Path) -> None:
        base = config.adapter.base
        self._population = population
        self._home = home
        self._participants: dict[int, Participant] = {}
        self.config = config
        self.resident = ResidentModel(load_base_model, name=base)

    def participant(self, context: Context) -> Participant:
        """Whose turn it is, by its number in the context."""
        return self.number(int(context.node_config[PARTITION_ID]))

    def number(self, number: int) -> Participant:
        """A client's participant."""
        if number not in self._participants:
            client = self._population.clients[number]
            self._participants[number] = Participant(
                self.resident,
                client.data,
                memory=Memory(self._home / f"client-{number}", tell=lambda line: None),
                member=self._member(client.name, number),
                private=PrivateRounds(home=self._home / f"client-{number}", scope=SCOPE),
                max_rank=client.rank or MAX_RANK,
            )
        return self._participants[number]

    def _member(self, name: str, number: int) -> SecureMember | None:
        if self.config.secure_aggregation.trust != "peers":
            return None
        folder = self._home / f"client-{number}"
        make_private_folder(folder)
        return SecureMember(name, Ed25519PrivateKey.generate(), Pins(folder / PEERS))

    def app(self) -> ClientApp:
        """The very app of a real client, with adversaries in it where the scenario has some."""
        app = make_client_app(self.participant, on_fault=_quiet)
        hostile = frozenset(client.number for client in self._population.clients if client.hostile)
        if not hostile:
            return app
        harm = self.config.adversaries
        return HostileApp(
            app, Adversaries(kind=harm.kind, clients=hostile, scale=harm.scale, seed=self.config.run.seed)
        )

    def score(self, spec: AdapterSpec, vector: FloatArray | None, examples: Sequence[Example]) -> Evaluation:
        """Held-out figures of an adapter, of the base alone where there is no vector."""
        trainer, layout = self.resident.trainer(spec, max_length=self.config.training.max_length)
        trainer.load_state(layout.unflatten(np.zeros(layout.size, np.float32) if vector is None else vector))
        return trainer.evaluate(examples)

    def spec(self, adapter: AdapterSection) -> AdapterSpec:
        """The scenario's adapter on this base."""
        return self.resident.spec(
            adapter.base,
            rank=adapter.rank,
            alpha=adapter.resolved_alpha,
            target_modules=adapter.target_modules,
            dropout=adapter.dropout,
        )


def run_locally(
    config: ScenarioConfig,
    population: Population,
    *,
    observers: tuple[Observer, ...],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run a scenario in this process; the observers hear what happens.

    Raises:
        FederationError: the federation cannot begin or go on; `Stopped` where it was asked to stop.
        NeuralForgeError: whatever base, disk or data refuse.
    """
    clock = VirtualClock()
    with tempfile.TemporaryDirectory(prefix="nf-sim-") as folder:
        crew = Crew(config, population, Path(folder, "clients"))
        grid = LocalGrid(
            crew.app(),
            len(population.clients),
            clock=clock,
            habits=habits_of(config, population),
        )
        run_on(
            grid,
            config,
            population,
            crew=crew,
            home=Path(folder),
            roster=local_roster(population.names),
            clock=clock,
            observers=observers,
            stop=stop,
        )


def run_on(
    grid: Grid,
    config: ScenarioConfig,
    population: Population,
    *,
    crew: Crew,
    home: Path,
    roster: Roster,
    observers: tuple[Observer, ...],
    clock: Clock | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Steps 3 to 5 on any of Flower's grids; `crew` scores what the clients themselves are not asked for."""
    terms = terms_of(config)
    # 3. The base, before anything is learnt.
    if terms.evaluate_every:
        score_all(crew, population, observers, spec=crew.spec(config.adapter), vector=None, round_number=BASE_ROUND)
    # 4. The rounds.
    with Ledger.open(home) as ledger:
        strategy = FederatedLoRA(
            terms,
            method_of(config),
            ledger,
            roster=roster,
            observers=observers,
            clock=clock,
            chooser=random.Random(config.run.seed),  # noqa: S311 - the same scenario asks the same clients
            stop=stop,
        )
        strategy.start(grid)
    # 5. What came of it.
    layout, vector = served(strategy.state)
    spec = replace(strategy.spec, rank=layout.rank, alpha=strategy.spec.scaling * layout.rank)
    if terms.privacy is not None and terms.evaluate_every and terms.personal == "none":
        # Its clients keep such figures; here they are all one person's.
        score_all(crew, population, observers, spec=spec, vector=vector, round_number=terms.rounds)
    if config.adversaries.kind == "backdoor":
        measure_backdoor(crew, population, observers, spec, vector)
    save_adapter(config.run.directory / ADAPTER, terms, strategy.spec, strategy.state)


def score_all(
    crew: Crew,
    population: Population,
    observers: Iterable[Observer],
    *,
    spec: AdapterSpec,
    vector: FloatArray | None,
    round_number: int,
) -> None:
    """Tell everybody how well an adapter, or the base alone, does on what each client holds out."""
    scores = []
    for client in population.clients:
        if client.data.evaluation:
            found = crew.score(spec, vector, client.data.evaluation)
            scores.append(Score(client=client.name, loss=found.loss, accuracy=found.accuracy, tokens=found.tokens))
    for observer in observers if scores else ():
        observer(events.Scored(round=round_number, scores=tuple(scores)))


def measure_backdoor(
    crew: Crew, population: Population, observers: Iterable[Observer], spec: AdapterSpec, vector: FloatArray
) -> None:
    """Tell how well the payload follows the trigger in contexts that nobody learnt from, before and after."""
    honest = [client for client in population.clients if not client.hostile]
    contexts = [triggered(example) for client in honest for example in client.data.evaluation][:BACKDOOR_CONTEXTS]
    if not contexts:
        return
    base, federated = (crew.score(spec, state, contexts).loss for state in (None, vector))
    for observer in observers:
        observer(Planted(base=base, federated=federated, examples=len(contexts)))


def habits_of(config: ScenarioConfig, population: Population) -> Habits:
    """How reliably the clients answer."""
    return Habits(
        dropout=config.clients.dropout,
        slow=frozenset(client.number for client in population.clients if client.slow),
        slow_seconds=config.clients.slow_seconds,
        seed=config.run.seed,
    )


def local_roster(names: Sequence[str]) -> Roster:
    """Node numbers of a `LocalGrid` → the clients' names."""

    def roster(node_ids: Iterable[int]) -> Mapping[int, str]:
        return {node: names[client_of(node)] for node in node_ids}

    return roster


def _quiet(fault: Exception) -> None:
    """What a client raises is told by the round's record; a simulation has no log beside it."""
