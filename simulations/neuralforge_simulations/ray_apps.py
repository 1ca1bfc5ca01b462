"""The components that Flower's Ray engine runs: the same app and the same rounds as in one process.

Run configuration: `scenario`, a YAML file; `place`, the working directory of whoever started it; `home`, a private
folder for the clients' memory and the events. Every Ray actor loads a base of its own, once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from neuralforge_common.errors import FederationError, NeuralForgeError
from neuralforge_server.exchange import SystemClock, questions, replies
from neuralforge_simulations.adversary import PARTITION_ID
from neuralforge_simulations.engine import Crew, habits_of, run_on
from neuralforge_simulations.event_lines import EventFile, Failed
from neuralforge_simulations.population import Population, populate
from neuralforge_simulations.scenario_config import ScenarioConfig, resolve_scenario_config

EVENTS = "events.jsonl"
WHO, ANSWER, OCCASIONS = "query.who", "answer", "occasions"
WHO_SECONDS = 120.0
LONGEST_SLEEP = 5.0
"""A slow client really sleeps here, but no longer than this."""


class RayClientApp(ClientApp):
    """A scenario's client app where it runs in many processes: made on first use, with drop-outs and slowness in it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the client whose number stands in the context."""
        number = int(context.node_config[PARTITION_ID])
        if message.metadata.message_type == WHO:
            answer = RecordDict({ANSWER: ConfigRecord({"number": number})})
            return Message(answer, reply_to=message)
        run = context.run_config
        config, population, app = _actor(str(run["scenario"]), str(run["place"]), str(run["home"]))
        if message.metadata.message_type == "train":
            habits = habits_of(config, population)
            occasion = _count(context)
            if habits.drops(number, occasion):
                raise FederationError("the client has gone")
            if number in habits.slow:
                time.sleep(min(habits.slow_seconds, LONGEST_SLEEP))
        return app(message, context)


client = RayClientApp()
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; what happens goes to the file of events, and so does an expected failure."""
    run = context.run_config
    home = Path(str(run["home"]))
    observe = EventFile(home / EVENTS)
    try:
        config, population, crew = _scenario(str(run["scenario"]), str(run["place"]), str(home / "server"))
        run_on(
            grid,
            config,
            population,
            crew=crew,
            home=home,
            roster=RayRoster(grid, population.names),
            observers=(observe,),
        )
    except NeuralForgeError as fault:
        observe(Failed(message=fault.message, hint=fault.hint))


class RayRoster:
    """Node numbers, which Flower draws, → the clients' names: each node is asked once for its number."""

    def __init__(self, grid: Grid, names: tuple[str, ...]) -> None:
        self._grid = grid
        self._names = names
        self._known: dict[int, str] = {}

    def __call__(self, node_ids: Iterable[int]) -> Mapping[int, str]:
        """The names of those that have answered."""
        here = list(node_ids)
        new = {node: str(node) for node in here if node not in self._known}
        if new:
            asked = questions(new, RecordDict({}), kind=WHO, group="who", deadline=WHO_SECONDS)
            for reply in replies(self._grid, asked, deadline=WHO_SECONDS, clock=SystemClock()):
                if reply.has_content():
                    record = reply.content[ANSWER]
                    if isinstance(record, ConfigRecord) and isinstance(number := record["number"], int):
                        self._known[reply.metadata.src_node_id] = self._names[number]
        return {node: self._known[node] for node in here if node in self._known}


def _scenario(file: str, place: str, home: str) -> tuple[ScenarioConfig, Population, Crew]:
    os.chdir(place)  # relative paths of the scenario are those of whoever started it
    config = resolve_scenario_config(Path(file), {}, {}).config
    population = populate(config)
    return config, population, Crew(config, population, Path(home))


@cache
def _actor(file: str, place: str, home: str) -> tuple[ScenarioConfig, Population, ClientApp]:
    config, population, crew = _scenario(file, place, str(Path(home) / "clients"))
    return config, population, crew.app()


def _count(context: Context) -> int:
    """How often this client was asked before; Flower carries its state from actor to actor."""
    record = context.state.get(OCCASIONS)
    before = json.loads(str(record["count"])) if isinstance(record, ConfigRecord) else 0
    context.state[OCCASIONS] = ConfigRecord({"count": str(before + 1)})
    return int(before)
