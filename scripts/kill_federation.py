"""kill -9 at random moments of a federation: it ends, no committed round is lost, the adapter is the same bytes.

    python scripts/kill_federation.py                 a thousand points, a few hours
    python scripts/kill_federation.py --points 20     some minutes

Federations of a coordinator and two clients run on loopback, with TLS, as people start them. The first is left alone.
In all others a point is a moment, random but for the seed, at which the coordinator, its SuperLink or a client is
killed and (but for the SuperLink, which its coordinator looks after) started again; some fall into what a kill before
them has not yet got over. The updates are rounded to int8 and the server has momentum, so that on both sides there is
something to keep from round to round.

What is checked: every state that was committed is there after every kill, and is the same as in the federation that was
left alone; a coordinator's SuperLink dies with it and leaves its ports; in the end all exit statuses are 0, and the
adapters of the server and of the clients are those of the one left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from neuralforge_common.errors import StorageError
from neuralforge_server.ledger import Ledger

BIN = Path(sys.executable).parent
MEMBERS = ("ann", "bob")
COORDINATOR, SUPERLINK = "coordinator", "SuperLink"
VICTIMS = (COORDINATOR, COORDINATOR, SUPERLINK, SUPERLINK, *MEMBERS)
"""A client costs the half minute until its old session counts as over: not the most of the points."""
AT_ONCE_SHARE = 0.3
"""So many points do not wait until a round is under way again."""
ASKED = re.compile(r"round (\d+): asked")
AWAY = re.compile(r"error: .*(cannot reach|does not answer)")
COMMITTED = re.compile(r"round (\d+) of \d+ committed")
PATIENCE = 240.0
MODULE = '''"""What {name} works with."""


def total_{name}(items, start=0):
    result = start
    for item in items:
        if item.kind == "{name}":
            result += item.{name} * {number}
    return result


class {title}Store:
    def __init__(self, path):
        self.path = path

    def load_{name}(self, key):
        value = self.read("{name}", key)
        if value is None:
            raise KeyError(f"no {name} called {{key}}")
        return value
'''


class Broken(Exception):
    """What may not be was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A kill; `waited` is since the one before it, `under_way` the round that was asked for last."""

    number: int
    run: int
    victim: str
    waited: float
    under_way: int
    committed: int

    def line(self) -> str:
        """The point as a person reads it."""
        return (
            f"point {self.number:4}  run {self.run:3}  {self.victim:11} killed after {self.waited:5.2f} s, "
            f"round {self.under_way} under way, {self.committed} committed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a federation came to: the digest of every round's state, and the adapters' bytes by their owner."""

    states: Mapping[int, str]
    adapters: Mapping[str, bytes]
    seconds: float


class Points:
    """The numbers that are left, which the federations share."""

    def __init__(self, count: int) -> None:
        self._left, self._taken, self._lock = count, 0, threading.Lock()

    def take(self) -> int | None:
        """The next number; None where there is none."""
        with self._lock:
            if self._taken == self._left:
                return None
            self._taken += 1
            return self._taken

    @property
    def are_left(self) -> bool:
        """Whether `take` would give one."""
        with self._lock:
            return self._taken < self._left


@dataclass
class Federation:
    """A coordinator and its clients in one folder; `run` starts them, has them killed, and waits for the end."""

    root: Path
    number: int
    rounds: int
    logs: dict[str, list[Path]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _first_port: int = 0

    def run(self, *, points: Points, most: int, chance: random.Random, tell: Callable[[Point], None]) -> Outcome:
        """Until all rounds are done, with at most so many kills.

        Raises:
            Broken: it did not end, or not as it should.
        """
        began = time.monotonic()
        try:
            self._begin()
            self._kill_now_and_then(points, most, chance, tell)
            adapters = self._end()
        except Broken as fault:
            raise Broken(f"run {self.number}: {fault}\n{self._last_words()}") from fault
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
        return Outcome(states=self._committed(), adapters=adapters, seconds=time.monotonic() - began)

    def _begin(self) -> None:
        self.root.mkdir(parents=True)
        self._first_port = four_free_ports(27000 + 40 * (self.number % 100))
        self._call("nf-server", "init", "--host", "localhost", "--name", "killed", "--port", self._first_port)
        self.root.joinpath("server.yaml").write_text(
            f"federation: {{name: killed, rounds: {self.rounds}, min_clients: {len(MEMBERS)}, deadline_minutes: 10, "
            "wait_minutes: 5, max_attempts: 100, evaluate_every: 3}\n"
            "adapter: {base: nf-tiny, rank: 4}\n"
            "training: {steps: 3, batch_size: 2, max_length: 64}\n"
            "aggregation: {optimizer: momentum}\n"
            "wire: {format: int8}\n"
            f"listen: {{host: 127.0.0.1, port: {self._first_port}, member_port: {self._first_port + 1}, "
            f"fleet_port: {self._first_port + 2}, admin_port: {self._first_port + 3}}}\n"
        )
        self._start_coordinator()
        self._wait(lambda: not is_free(self._first_port + 1), "the coordinator lets members in")
        for number, name in enumerate(MEMBERS):
            self._write_client(name, number)
            invitation = self._call("nf-server", "invite", name)
            line = next(line for line in invitation.splitlines() if " join " in line)
            self._call("nf-client", *shlex.split(line)[1:], home=name)
            self._start_client(name)

    def _kill_now_and_then(
        self, points: Points, most: int, chance: random.Random, tell: Callable[[Point], None]
    ) -> None:
        victims: list[str] = []
        last = time.monotonic()
        for _ in range(most):
            if not victims:
                victims = chance.sample(VICTIMS, len(VICTIMS))
            victim = victims.pop()
            if chance.random() >= AT_ONCE_SHARE:
                self._wait_for_a_round()
                time.sleep(chance.uniform(0, 2.5))
            else:
                time.sleep(chance.uniform(0, 6))
            if self._is_over or (number := points.take()) is None:
                return
            before = self._committed()
            point = Point(
                number=number,
                run=self.number,
                victim=victim,
                waited=time.monotonic() - last,
                under_way=self._newest(ASKED),
                committed=max(before, default=0),
            )
            last = time.monotonic()
            self._kill(victim)
            after = self._committed()
            if lost := before.items() - after.items():
                raise Broken(f"point {number}: committed states are lost: {sorted(lost)}")
            if (told := self._newest(COMMITTED)) > max(after, default=0):
                raise Broken(f"point {number}: round {told} was told committed, {max(after, default=0)} is")
            tell(point)

    def _kill(self, victim: str) -> None:
        if victim == SUPERLINK:
            # Where it is just being started again there is none to kill: its coordinator sees to that.
            for child in self._superlinks():
                child.kill()
        elif victim == COORDINATOR:
            children = self._superlinks()
            self._kill_process(COORDINATOR)
            self._wait(lambda: not any(is_running(child) for child in children), "the SuperLink dies, too", seconds=5)
            for port in range(self._first_port, self._first_port + 4):
                self._wait(lambda port=port: is_free(port), f"port {port} is free", seconds=5)
            self._start_coordinator()
        else:
            self._kill_process(victim)
            self._start_client(victim)

    def _kill_process(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def _end(self) -> dict[str, bytes]:
        self._wait(lambda: self._is_over, "the federation ends", seconds=PATIENCE + 20 * self.rounds)
        if status := self.processes[COORDINATOR].returncode:
            raise Broken(f"the coordinator ended with {status}")
        adapters = {"server": adapter_bytes(self.root / "nf-server" / "adapter.lora")}
        for name in MEMBERS:
            process = self.processes[name]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            # Whoever was killed shortly before the end may find nobody there any more.
            if process.returncode == 0:
                adapters[name] = adapter_bytes(self.root / f"{name}.lora")
            elif len(self.logs[name]) == 1:
                raise Broken(f"{name}, whom nobody killed, ended with {process.returncode}")
        if left := [path.name for path in (self.root / "nf-server").rglob("*") if path.suffix in (".new", ".old")]:
            raise Broken(f"files were left behind: {left}")
        for line in (self.root / "nf-server" / "records.jsonl").read_text().splitlines():
            json.loads(line)
        return adapters

    @property
    def _is_over(self) -> bool:
        return self.processes[COORDINATOR].poll() is not None

    def _committed(self) -> dict[int, str]:
        try:
            ledger = Ledger.look(self.root / "nf-server")
        except StorageError as fault:
            if "no round was ever begun" in fault.message:
                return {}
            raise Broken(str(fault)) from fault
        try:
            return {done.round: done.digest for done in ledger.rounds()}
        finally:
            ledger.close()

    def _wait_for_a_round(self) -> None:
        """Until a round was asked for by the coordinator that runs now, after this moment."""
        log = self.logs[COORDINATOR][-1]
        there = len(log.read_text())
        self._wait(lambda: self._is_over or ASKED.search(log.read_text()[there:]) is not None, "a round begins")

    def _newest(self, pattern: re.Pattern[str]) -> int:
        said = "".join(log.read_text() for log in self.logs[COORDINATOR])
        return max((int(number) for number in pattern.findall(said)), default=0)

    def _superlinks(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.processes[COORDINATOR].pid).children()
        return []

    def _start_coordinator(self) -> None:
        self._start(COORDINATOR, "nf-server", "start", "--config", "server.yaml")

    def _start_client(self, name: str) -> None:
        self._start(
            *(name, "nf-client", "train", "--server", f"nf://localhost:{self._first_port}", "--config", f"{name}.yaml")
        )

    def _start(self, name: str, *words: object) -> None:
        logs = self.logs.setdefault(name, [])
        logs.append(self.root / f"{name}-{len(logs) + 1}.log")
        with logs[-1].open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command(words),
                cwd=self.root,
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _call(self, *words: object, home: str = "nobody") -> str:
        done = subprocess.run(
            command(words),
            cwd=self.root,
            env=self._environment(home),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise Broken(f"{words[0]} {words[1]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def _environment(self, name: str) -> dict[str, str]:
        ours = {"NEURALFORGE_HOME": str(self.root / f"home-{name}"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return os.environ | ours

    def _write_client(self, name: str, number: int) -> None:
        code = self.root / f"code-{name}"
        code.mkdir()
        for index, word in enumerate(("price", "weight", "height", "volume", "colour", "length")):
            text = MODULE.format(name=f"{word}_{name}", title=f"{word}{name}".title(), number=10 * number + index)
            (code / f"{word}.py").write_text(text)
        (self.root / f"{name}.yaml").write_text(
            f"model: {{base: nf-tiny, adapter_name: {name}}}\ndataset: {{sources: [code-{name}], eval_fraction: 0.2}}\n"
        )

    def _wait(self, holds: Callable[[], bool], what: str, *, seconds: float = PATIENCE) -> None:
        ends = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > ends:
                raise Broken(f"not within {seconds:.0f} s: {what}")
            self._look_after_clients()
            time.sleep(0.05)

    def _look_after_clients(self) -> None:
        """Start a client again that found nobody at its start, as an operating system's service manager would."""
        for name in MEMBERS if not self._is_over else ():
            if name not in self.processes or not (status := self.processes[name].poll()):
                continue
            if not AWAY.search(self.logs[name][-1].read_text()):
                raise Broken(f"{name} ended with {status} before the federation did")
            time.sleep(0.5)
            self._start_client(name)

    def _last_words(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}"
            for logs in self.logs.values()
            for log in logs[-2:]
        )


def command(words: tuple[object, ...]) -> list[str]:
    """What a person would type, with the programs of this environment."""
    return [str(BIN / str(words[0])), *map(str, words[1:])]


def adapter_bytes(folder: Path) -> bytes:
    """The weights of an adapter's folder."""
    try:
        return (folder / "adapter_model.safetensors").read_bytes()
    except OSError as fault:
        raise Broken(f"there is no adapter: {fault}") from fault


def four_free_ports(first: int) -> int:
    """The first of four ports in a row, in the forty from `first` on, on which nobody listens now."""
    for port in range(first, first + 40, 4):
        if all(is_free(port + offset) for offset in range(4)):
            return port
    raise Broken(f"there are no four free ports in a row between {first} and {first + 39}")


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def is_running(process: psutil.Process) -> bool:
    """Whether a process goes on; one that nobody has waited for does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def compare(number: int, found: Outcome, wanted: Outcome) -> None:
    """Raises Broken where a federation did not come to the same as the one that was left alone."""
    for name, states in (("found", found.states), ("left alone", wanted.states)):
        if len(states) != max(states) + 1:
            raise Broken(f"run {number}: {name}: rounds {sorted(states)} are committed")
    if differing := [number for number in wanted.states if found.states.get(number) != wanted.states[number]]:
        raise Broken(f"run {number}: the states of rounds {differing} are not those of the run that was left alone")
    for owner, adapter in found.adapters.items():
        if adapter != wanted.adapters["server"]:
            raise Broken(f"run {number}: the adapter of {owner} is not that of the run that was left alone")


def main() -> int:
    """Run it all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=1000, help="how many kills (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims (0)")
    parser.add_argument("--rounds", type=int, default=12, help="of each federation (12)")
    parser.add_argument("--kills", type=int, default=7, help="at most, in each federation (7)")
    parser.add_argument("--at-once", type=int, default=2, help="federations that run beside each other (2)")
    parser.add_argument("--keep", type=Path, help="a new folder for everything that is written, which stays then")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, lines on the other")
    args = parser.parse_args()
    place = args.keep or Path(tempfile.mkdtemp(prefix="kill-federation-"))
    lines, made = sys.stderr if args.json else sys.stdout, []

    def tell(point: Point) -> None:
        made.append(point)
        print(point.line(), file=lines, flush=True)

    def run(number: int) -> Outcome | None:
        if broken or (number and not points.are_left):
            return None
        try:
            outcome = Federation(root=place / f"run-{number}", number=number, rounds=args.rounds).run(
                points=points if number else Points(0),
                most=args.kills if number else 0,
                chance=random.Random(f"{args.seed}-{number}"),  # noqa: S311 - moments, not secrets
                tell=tell,
            )
            if number:
                compare(number, outcome, alone.result())
                shutil.rmtree(place / f"run-{number}")
        except Exception as fault:
            broken.append(fault)
            raise
        what = f"ended with the same bytes, {len(outcome.adapters) - 1} clients have them" if number else "left alone"
        print(f"run {number}: {what}; {outcome.seconds:.0f} s", file=lines, flush=True)
        return outcome

    points, broken, began = Points(args.points), list[Exception](), time.monotonic()
    with ThreadPoolExecutor(1 + args.at_once) as pool:
        alone = pool.submit(run, 0)
        runs = [pool.submit(run, number) for number in range(1, args.points + 1)]
        outcomes = [one.result() for one in runs if one.exception() is None]
    whole = [outcome for outcome in outcomes if outcome is not None]
    for fault in broken:
        print(f"error: {fault}", file=sys.stderr)
    summary = {
        "points": len(made),
        "killed": dict(sorted(Counter(point.victim for point in made).items())),
        "federations": len(whole),
        "clients_with_the_adapter": sum(len(outcome.adapters) - 1 for outcome in whole),
        "seconds": round(time.monotonic() - began),
    }
    if args.json:
        print(json.dumps(summary | {"made": [asdict(point) for point in made]}))
    killed = ", ".join(f"{name} {count}" for name, count in summary["killed"].items())
    print(
        f"{len(made)} points ({killed}) in {len(whole)} federations, {summary['seconds']} s: "
        + ("something broke" if broken else "no committed round was lost, every adapter is the same bytes"),
        file=lines,
    )
    if not broken and args.keep is None:
        shutil.rmtree(place)
    elif broken:
        print(f"everything is in {place}", file=sys.stderr)
    return 1 if broken or len(made) < args.points else 0


if __name__ == "__main__":
    sys.exit(main())
