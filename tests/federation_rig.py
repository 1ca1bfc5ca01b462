"""A whole federation in processes of its own, as people start it: loopback, TLS, nf-tiny, one thread each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

# Below the ports from which systems take their own: 6 rows of 500 times four.
ROW_OF_PORTS = 500
_given = itertools.count()
MODULES = {"nf-server": "neuralforge_server.cli.main", "nf-client": "neuralforge.cli.main"}
CODE = """def total_{name}(items, start=0):
    result = start
    for item in items:
        if item.kind == "{name}":
            result += item.{name} * {number}
    return result


class {title}Store:
    def __init__(self, path):
        self.path = path
        self.entries = {{}}

    def load_{name}(self, key):
        value = self.entries.get(key)
        if value is None:
            raise KeyError(f"no {name} called {{key}}")
        return value
"""


def wait_until(holds: Callable[[], object], *, seconds: float, what: str, told: Callable[[], str] = lambda: "") -> None:
    """Wait until something holds, and fail with `what` where it does not in time; `told` is what may explain it."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"not in {seconds:.0f} s: {what}\n{told()}"
        time.sleep(0.05)


@dataclass
class Process:
    """A command that runs beside the test, its lines in a file."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def errors(self) -> list[str]:
        """Its error, as lines: the one that says what is wrong, and hints."""
        lines = self.said.splitlines()
        first = next((number for number, line in enumerate(lines) if line.startswith("error: ")), len(lines))
        return lines[first:]

    @property
    def goes_on(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def says(self, words: str, *, seconds: float = 60) -> None:
        """Wait until it has said something, given as a pattern."""
        wait_until(
            lambda: re.search(words, self.said) or not self.goes_on,
            seconds=seconds,
            what=f"{self.log.name} says {words}",
            told=lambda: self.said[-3000:],
        )
        assert re.search(words, self.said), f"ended without {words}:\n{self.said[-3000:]}"

    def ends(self, seconds: float) -> int:
        try:
            return self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:.0f} s:\n{self.said[-3000:]}") from None


@dataclass
class Team:
    """A federation's server folder and its clients, below one folder."""

    place: Path
    members: tuple[str, ...] = ("ann", "bob")
    rounds: int = 3
    steps: int = 3
    min_clients: int | None = None
    quorum: int | None = None
    deadline_minutes: float = 3
    evaluate_every: int = 0
    more: str = ""
    first_port: int = 0
    processes: list[Process] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first_port = self.first_port or four_free_ports()
        self.place.mkdir(parents=True, exist_ok=True)
        done = self.run("nf-server", "init", "--host", "localhost", "--name", "t", "--port", self.first_port)
        assert done.returncode == 0, done.stderr
        least = self.min_clients or len(self.members)
        (self.place / "server.yaml").write_text(
            f"federation: {{name: t, rounds: {self.rounds}, min_clients: {least}, quorum: {self.quorum or least}, "
            f"deadline_minutes: {self.deadline_minutes}, wait_minutes: 3, max_attempts: 50, "
            f"evaluate_every: {self.evaluate_every}}}\n"
            "adapter: {base: nf-tiny, rank: 4}\n"
            f"training: {{steps: {self.steps}, batch_size: 2, max_length: 64}}\n"
            f"listen: {{host: 127.0.0.1, port: {self.first_port}, member_port: {self.first_port + 1}, "
            f"fleet_port: {self.first_port + 2}, admin_port: {self.first_port + 3}}}\n" + self.more
        )
        for number, name in enumerate(self.members):
            self._write_client(name, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    @property
    def server(self) -> Path:
        return self.place / "nf-server"

    @property
    def address(self) -> str:
        return f"nf://localhost:{self.first_port}"

    @property
    def adapter_bytes(self) -> bytes:
        return (self.server / "adapter.lora" / "adapter_model.safetensors").read_bytes()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What has happened so far; a line that is being written is left out."""
        text = (self.server / "records.jsonl").read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def states(self) -> dict[int, str]:
        """The committed rounds → the digests of their states."""
        connection = sqlite3.connect(f"file:{self.server / 'rounds.db'}?mode=ro", uri=True)
        try:
            return dict(connection.execute("SELECT round, digest FROM commits ORDER BY round"))
        finally:
            connection.close()

    def status(self) -> dict[str, object]:
        done = self.run("nf-server", "status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def committed(self) -> int:
        rounds = self.status()["rounds"]
        assert isinstance(rounds, list)
        return len(rounds)

    def run(self, program: str, *words: object, home: str = "nobody") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(program, words),
            cwd=self.place,
            env=self._environment(home),
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def start(self, program: str, *words: object, home: str = "nobody") -> Process:
        number = self.counts[program + home] = self.counts.get(program + home, 0) + 1
        log = self.place / f"{program}-{home}-{number}.log"
        with log.open("wb") as file:
            popen = subprocess.Popen(
                self._command(program, words),
                cwd=self.place,
                env=self._environment(home),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    def start_server(self) -> Process:
        return self.start("nf-server", "start", "--config", "server.yaml")

    def start_client(self, name: str, *more: object) -> Process:
        return self.start(
            *("nf-client", "train", "--server", self.address, "--config", f"{name}.yaml", *more), home=name
        )

    def wait_for_server(self, server: Process) -> None:
        def listens() -> bool:
            assert server.popen.poll() is None, server.said
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.first_port + 1)) == 0

        wait_until(listens, seconds=60, what="the server listens")

    def join(self, name: str) -> None:
        invited = self.run("nf-server", "invite", name)
        assert invited.returncode == 0, invited.stderr
        line = next(line for line in invited.stdout.splitlines() if " join " in line)
        joined = self.run("nf-client", *shlex.split(line)[1:], home=name)
        assert joined.returncode == 0, joined.stderr

    def join_all(self) -> None:
        for name in self.members:
            self.join(name)

    def stop_all(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()

    def superlink(self, server: Process) -> psutil.Process | None:
        """The child of the coordinator that is Flower's SuperLink."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return next(iter(psutil.Process(server.popen.pid).children()), None)
        return None

    def _command(self, program: str, words: tuple[object, ...]) -> list[str]:
        return [sys.executable, "-m", MODULES[program], *map(str, words)]

    def _environment(self, home: str) -> dict[str, str]:
        # Flower sets that one where a test imports it; a person's shell has none.
        inherited = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        return inherited | {"NEURALFORGE_HOME": str(self.place / f"home-{home}"), "OMP_NUM_THREADS": "1"}

    def _write_client(self, name: str, number: int) -> None:
        code = self.place / f"code-{name}"
        code.mkdir()
        for index, word in enumerate(("price", "weight", "height", "volume", "colour", "length")):
            text = CODE.format(name=f"{word}_{name}", title=f"{word}{name}".title(), number=10 * number + index)
            (code / f"{word}.py").write_text(text)
        (self.place / f"{name}.yaml").write_text(
            f"model: {{base: nf-tiny, adapter_name: {name}-together}}\n"
            f"dataset: {{sources: [code-{name}], eval_fraction: 0.2}}\n"
        )


def four_free_ports() -> int:
    """The first of four ports in a row that nobody uses now, and nobody else is given while their server is down.

    Each process that runs tests has its own row of ports, and goes through all of it before it comes back to one.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    row = int(worker) % 4 if worker else 4 + os.getpid() % 2
    for _ in range(ROW_OF_PORTS):
        first = 20_000 + 4 * (row * ROW_OF_PORTS + next(_given) % ROW_OF_PORTS)
        probes = [socket.socket() for _ in range(4)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no four free ports in a row")
