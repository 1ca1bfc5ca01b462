"""The two apps on a Flower of somebody's own: its unchanged programs, started as `neuralforge_server.app` says."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.federation_rig import CODE, four_free_ports

import neuralforge_server.app
from neuralforge.models.load import load_base_model
from neuralforge_common.folder import read_adapter_folder
from neuralforge_server.flower.bundle import app_description
from neuralforge_server.ledger import Ledger

ROOT = Path(__file__).parents[2]
NODES = ("ann", "bob")
WORDS = ("price", "weight", "height", "volume")


@contextmanager
def running(command: list[str], place: Path, log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A program of Flower's beside the test, ended with all that it has started."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def documented(**words: str) -> dict[str, list[str]]:
    """The commands of the app's own documentation, by program; `words` take the place of what is only an example."""
    commands = {}
    for line in re.findall(r"^    (fl\S+ .*)$", neuralforge_server.app.__doc__ or "", re.MULTILINE):
        for example, real in words.items():
            line = line.replace(EXAMPLES[example], real)
        program, *arguments = shlex.split(line)
        commands[program] = [str(Path(sys.executable).with_name(program)), *arguments]
    assert sorted(commands) == ["flower-superlink", "flower-supernode", "flwr"]
    return commands


EXAMPLES = {
    "address": "127.0.0.1:8000",
    "client": "/home/ann/client.yaml",
    "app": "configs/flower-app",
    "server": "/srv/server.yaml",
    "directory": "/srv/nf-server",
}


def test_the_apps_folder_is_what_our_own_coordinator_runs() -> None:
    assert (ROOT / "configs" / "flower-app" / "pyproject.toml").read_text() == app_description()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flowers_own_programs_run_the_rounds_and_go_on_with_them(tmp_path: Path) -> None:
    sites = {name: tmp_path / name for name in NODES}
    central, home = tmp_path / "central", tmp_path / "flwr"
    central.mkdir()
    for name, site in sites.items():
        write_site(site, name)
    port = four_free_ports()
    address = f"127.0.0.1:{port}"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.team]\naddress = "{address}"\ninsecure = true\n')
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        # The SuperLink finds the programs that it starts there.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def federate(rounds: int) -> str:
        (central / "server.yaml").write_text(server_yaml(rounds))
        words = {"server": str(central / "server.yaml"), "directory": str(central / "state")}
        done = subprocess.run(
            documented(app=str(ROOT / "configs" / "flower-app"), **words)["flwr"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with ExitStack() as stack:
        superlink = [*documented()["flower-superlink"], "--port", str(port), "--database", str(central / "flower.db")]
        stack.enter_context(running(superlink, central, central / "superlink.log", environment))
        wait_for(central / "superlink.log", "Uvicorn running|startup complete")
        for offset, site in enumerate(sites.values(), start=1):
            node = documented(address=address, client=str(site / "client.yaml"))["flower-supernode"]
            own = environment | {"NEURALFORGE_HOME": str(site / "home")}
            stack.enter_context(running([*node, "--port", str(port + offset)], site, site / "node.log", own))

        # 1. A round, its adapter, and the way that it came.
        said = federate(1)
        assert "beginning: nf-tiny: " in said, said
        assert re.search(r"round 1 of 1 committed: 2 clients, loss ", said), said
        assert re.search(r"all 1 rounds are done; the adapter went to node-\d+, node-\d+$", said, re.MULTILINE)
        with Ledger.look(central / "state") as ledger:
            (beginning, first) = ledger.rounds()
            assert (beginning.round, first.round, first.figures["clients"]) == (0, 1, 2.0)
            assert ledger.refusals() == ()
        adapter = read_adapter_folder(central / "state" / "adapter.lora")

        # 2. The same folder, one round more: what was committed stays, and is gone on from.
        said = federate(2)
        assert "going on after round 1: nf-tiny: " in said, said
        assert "round 1: asked" not in said
        assert re.search(r"round 2: held-out loss node-\d+ \d\.\d+, node-\d+ \d\.\d+", said), said
    with Ledger.look(central / "state") as ledger:
        assert [entry.round for entry in ledger.rounds()] == [0, 1, 2]
        assert ledger.rounds()[1] == first
        assert len(ledger.rounds()[2].scores) == 2

    # 3. The adapter is one, it has learnt, and every site has it.
    final = read_adapter_folder(central / "state" / "adapter.lora")
    assert final.spec.base_fingerprint == load_base_model("nf-tiny").fingerprint
    assert any((final.state[name] != adapter.state[name]).any() for name in final.state)
    for name, site in sites.items():
        own = read_adapter_folder(site / f"{name}-together.lora")
        assert all((own.state[module] == final.state[module]).all() for module in final.state)

    # 4. Nothing of anybody's code came to the middle, in its folder or in Flower's.
    for path in (path for folder in (central, home) for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for name in NODES:
            for word in WORDS:
                assert f"{word}_{name}".encode() not in content, path
    # 5. And it is for its owner alone.
    assert (central / "state").stat().st_mode & 0o777 == 0o700
    assert (central / "state" / "rounds.db").stat().st_mode & 0o777 == 0o600


def server_yaml(rounds: int) -> str:
    return (
        f"federation: {{name: stock, rounds: {rounds}, min_clients: 2, deadline_minutes: 5, wait_minutes: 5, "
        "evaluate_every: 2}\n"
        "adapter: {base: nf-tiny, rank: 4}\n"
        "training: {steps: 3, batch_size: 2, max_length: 64}\n"
    )


def write_site(site: Path, name: str) -> None:
    (site / "code").mkdir(parents=True)
    for number, word in enumerate(WORDS):
        text = CODE.format(name=f"{word}_{name}", title=f"{word}{name}".title(), number=number)
        (site / "code" / f"{word}.py").write_text(text)
    (site / "client.yaml").write_text(
        f"model: {{base: nf-tiny, adapter_name: {name}-together}}\n"
        f"dataset: {{sources: [{site / 'code'}], eval_fraction: 0.2}}\n"
    )


def wait_for(log: Path, pattern: str) -> None:
    ends = time.monotonic() + 60
    while not re.search(pattern, log.read_text()):
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.1)
