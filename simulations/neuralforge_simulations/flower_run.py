"""Flower's own simulation engine (Ray) on two app components of installed packages.

`run_simulation` and `start_simulation` are deprecated in Flower 1.41; the current way is `flwr run` at a SuperLink in
simulation mode, which starts `flwr-simulation`, which starts Ray. The SuperLink is ours for the one run: a child on a
free port of the loopback, its state in a temporary folder, gone at the end. (Flower's Control API asks for no
password: while a simulation runs, other users of this machine could start runs at it.)
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from neuralforge_common.errors import FederationError

START_SECONDS = 60.0
POLL_SECONDS = 0.2

_APP = """\
[project]
name = "neuralforge-simulation"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "neuralforge"

[tool.flwr.app.components]
serverapp = {server}
clientapp = {client}

[tool.flwr.app.config]
{config}
"""
# A bundle without code: the components are those of the package that is installed here.

_CONNECTION = """\
[superlink]
default = "simulation"

[superlink.simulation]
address = "127.0.0.1:{port}"
insecure = true
"""


def ray_is_installed() -> bool:
    """Whether Flower's engine can run here."""
    return importlib.util.find_spec("ray") is not None


def run_flower_app(
    *,
    server: str,
    client: str,
    run_config: Mapping[str, str | int | float],
    clients: int,
    folder: Path,
    log: Path,
    cpus_per_client: int = 1,
    watch: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run the components (`package.module:attribute`) with so many virtual nodes; returns when the run has ended.

    Whether it ended well is for its ServerApp to say, by a file for instance: `flwr run` does not. `folder` is for
    Flower's state; what it prints goes to `log`. `watch` is called a few times a second.

    Raises:
        FederationError: Ray or Flower's programs are missing, or the SuperLink does not start.
    """
    if not ray_is_installed():
        raise FederationError(
            "the Ray backend needs Ray, which is not installed here",
            hint="pip install 'neuralforge[ray]', or use --backend local",
        )
    home, app = folder / "flower", folder / "app"
    home.mkdir(mode=0o700)
    app.mkdir(mode=0o700)
    port = _free_port()
    (home / "config.toml").write_text(_CONNECTION.format(port=port), encoding="utf-8")
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in run_config.items())
    app.joinpath("pyproject.toml").write_text(
        _APP.format(server=json.dumps(server), client=json.dumps(client), config=lines), encoding="utf-8"
    )
    federation = {"num-supernodes": clients, "client-resources-num-cpus": cpus_per_client}
    options = " ".join(f"{name}={value}" for name, value in federation.items())
    programs = Path(sys.executable).parent
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Flower starts its parts by their names.
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    link = [
        *("flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"),
    ]
    start = ["flwr", "run", str(app), "simulation", "--stream", "--federation-config", options]
    with log.open("w", encoding="utf-8") as output:
        superlink = _started(link, programs, environment, output)
        try:
            _wait_healthy(superlink, port, log)
            run = _started(start, programs, environment, output)
            try:
                while run.poll() is None and superlink.poll() is None and not stop():
                    watch()
                    time.sleep(POLL_SECONDS)
            finally:
                _end(run)
            watch()
        finally:
            _end(superlink)


def _started(
    command: list[str], programs: Path, environment: Mapping[str, str], output: IO[str]
) -> subprocess.Popen[bytes]:
    program = programs / command[0]
    if not program.is_file():
        raise FederationError(
            f"Flower's program {command[0]} is not beside {sys.executable}",
            hint="install flwr into the environment that nf-sim runs in",
        )
    return subprocess.Popen(  # noqa: S603 (no shell; a program of ours, a path of ours and numbers)
        [str(program), *command[1:]],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to pass on
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and what it started: Flower's parts watch for their parent's end, Ray's for their driver's."""
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    if process.poll() is None:
        process.kill()
        process.wait()


def _wait_healthy(superlink: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and superlink.poll() is None:
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise FederationError("Flower's SuperLink did not start", hint=f"it says why in {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
