"""A federation on one machine, from start to end, on real code: `make demo-federation`.

Three teams are played by the authors of three packages whose sources lie in this environment. Each has a client with a
home of its own; a coordinator asks them for rounds over TLS on loopback. In the end every adapter is judged on files of
every team that nobody learnt from: the base, what each team would have got alone, what they got together, and what one
machine with everybody's code would have got. What runs are the commands that people would type.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TEAMS = ("peft", "rich", "flwr")
ROUNDS, STEPS, BATCH, LENGTH = 5, 16, 4, 160
SAMPLES, HELD_OUT = 320, 48
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the demo's files are."""

    root: Path

    def train(self, team: str) -> Path:
        """What a team learns from."""
        return self.root / f"{team}-train.jsonl"

    def held_out(self, team: str) -> Path:
        """What it is judged on."""
        return self.root / f"{team}-eval.jsonl"

    def home(self, team: str) -> dict[str, str]:
        """The environment of a team's machine: keys of its own, one thread of the two that three must share."""
        return {"NEURALFORGE_HOME": str(self.root / f"home-{team}"), "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Run it all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of a client in a round")
    parser.add_argument("--output", type=Path, default=Path("demo-federation"))
    args = parser.parse_args()
    began = time.monotonic()
    place = Place(root=args.output)
    place.root.mkdir(exist_ok=True)
    for team in TEAMS:
        prepare(place, team)
    federated = federate(place, args)
    budget = args.rounds * args.steps
    alone = {team: learn_alone(place, args, team, [place.train(team)], budget) for team in TEAMS}
    everything = place.root / "everybody-train.jsonl"
    everything.write_text("".join(place.train(team).read_text() for team in TEAMS))
    together = learn_alone(place, args, "everybody", [everything], budget * len(TEAMS))
    adapters = {f"{team} alone": path for team, path in alone.items()}
    adapters |= {"federated": federated, "all data in one place": together}
    show(place, args, adapters)
    print(f"\n{time.monotonic() - began:.0f} seconds in all; everything is in {place.root}")
    return 0


def prepare(place: Place, team: str) -> None:
    """A team's code as a dataset, some of its files held out."""
    found = importlib.util.find_spec(team)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"error: the package {team} is not installed\n  hint: make demo-federation installs it")
    run(
        *("nf-client", "create-dataset", "--source", found.submodule_search_locations[0]),
        *("--output", place.train(team), "--eval-output", place.held_out(team), "--max-samples", SAMPLES),
    )


def federate(place: Place, args: argparse.Namespace) -> Path:
    """A coordinator and three clients, until all rounds are done; returns the adapter."""
    server = place.root / "server"
    first = free_ports(4)
    run("nf-server", "init", "--directory", server, "--host", "localhost", "--name", "demo", "--port", first)
    config = place.root / "server.yaml"
    config.write_text(
        f"federation: {{name: demo, rounds: {args.rounds}, min_clients: {len(TEAMS)}, deadline_minutes: 20}}\n"
        f"adapter: {{base: {args.base}}}\n"
        f"training: {{steps: {args.steps}, batch_size: {BATCH}, max_length: {LENGTH}, schedule: linear}}\n"
        "wire: {format: fp16}\n"
        f"listen: {{host: 127.0.0.1, port: {first}, member_port: {first + 1}, fleet_port: {first + 2}, "
        f"admin_port: {first + 3}}}\n"
        f"storage: {{directory: {server}}}\n"
    )
    started = []
    coordinator = start("nf-server", "start", "--config", config, log=place.root / "server.log")
    wait_for_port(first, coordinator, place.root / "server.log")
    for team in TEAMS:
        line = join_line(run("nf-server", "invite", team, "--directory", server, quiet=True))
        run(*line, environment=place.home(team))
        client = place.root / f"{team}.yaml"
        client.write_text(
            f"dataset: {{train_file: {place.train(team)}, eval_file: {place.held_out(team)}, "
            f"max_eval_samples: {HELD_OUT}}}\n"
            f"model: {{base: {args.base}, adapter_name: federated-{team}}}\n"
            f"output: {{directory: {place.root}}}\n"
        )
        command = ("nf-client", "train", "--server", f"nf://localhost:{first}", "--config", client)
        started.append(start(*command, log=place.root / f"{team}.log", environment=place.home(team)))
    follow(place.root / "server.log", coordinator)
    statuses = [coordinator.wait(), *(process.wait(timeout=120) for process in started)]
    if any(statuses):
        raise SystemExit(f"error: exit statuses {statuses}\n  hint: see the logs in {place.root}")
    return server / "adapter.lora"


def learn_alone(place: Place, args: argparse.Namespace, name: str, data: list[Path], steps: int) -> Path:
    """The same number of steps a client takes in all rounds, without the others."""
    run(
        *("nf-client", "train", "--dataset", data[0], "--eval-fraction", 0, "--base", args.base, "--name", name),
        *("--output", place.root, "--max-steps", steps, "--epochs", 100, "--batch-size", BATCH),
        *("--max-length", LENGTH, "--learning-rate", 0.003),
    )
    return place.root / f"{name}.lora"


def show(place: Place, args: argparse.Namespace, adapters: dict[str, Path]) -> None:
    """Perplexity of every adapter on every team's held-out files."""
    base: dict[str, float] = {}
    rows: dict[str, list[float]] = {}
    for name, adapter in adapters.items():
        for team in TEAMS:
            said = run(
                *("nf-client", "test-adapter", adapter, "--test-file", place.held_out(team), "--limit", HELD_OUT),
                *("--max-length", LENGTH, "--rows", 0, "--show", 0, "--json"),
                quiet=True,
            )
            document = json.loads(said)["summary"]
            base[team] = document["base"]["perplexity"]
            rows.setdefault(name, []).append(document["adapter"]["perplexity"])
    print(f"\nheld-out perplexity on {HELD_OUT} samples of each team (lower is better)\n")
    print(f"{'':24}" + "".join(f"{team:>10}" for team in TEAMS) + f"{'mean':>10}")
    for name, values in {"base": [base[team] for team in TEAMS], **rows}.items():
        mean = sum(values) / len(values)
        print(f"{name:24}" + "".join(f"{value:10.2f}" for value in values) + f"{mean:10.2f}")


def run(*words: object, environment: dict[str, str] | None = None, quiet: bool = False) -> str:
    """Show a command as it would be typed and run it; returns what it printed."""
    typed = [str(word) for word in words]
    if not quiet:
        print(f"\n$ {shown(typed)}", flush=True)
    done = subprocess.run(
        [str(BIN / typed[0]), *typed[1:]],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def start(*words: object, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Begin a command that goes on beside us, its lines in a file."""
    typed = [str(word) for word in words]
    print(f"\n$ {shown(typed)} &", flush=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(BIN / typed[0]), *typed[1:]],
            env=os.environ | (environment or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def follow(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Show what a process writes until it ends."""
    with log.open() as file:
        while True:
            line = file.readline()
            if line:
                print(f"  {line}", end="", flush=True)
            elif process.poll() is not None:
                return
            else:
                time.sleep(0.2)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until somebody listens."""
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise SystemExit(f"error: nf-server ended with {process.returncode}:\n{log.read_text()}")
        time.sleep(0.2)
    raise SystemExit(f"error: nf-server does not listen on port {port}")


def join_line(invitation: str) -> list[str]:
    """The words of the line that `nf-server invite` says to type."""
    line = next(line for line in invitation.splitlines() if " join " in line)
    return ["nf-client", *shlex.split(line)[1:]]


def free_ports(count: int) -> int:
    """The first of some ports in a row that nobody uses now."""
    for first in range(18470, 28470, count):
        with_sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(with_sockets):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in with_sockets:
                probe.close()
    raise SystemExit("error: no four free ports in a row from 18470 on")


def shown(typed: list[str]) -> str:
    """A command line without this machine's folders."""
    words = (str(Path(os.path.relpath(word))) if Path(word).is_absolute() else word for word in typed)
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
