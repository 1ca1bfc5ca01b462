"""`nf-server init`, `invite`, `revoke` and `nf-client join`, `rotate-key` as a person runs them."""

import ast
import datetime
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuralforge_common.address import FederationAddress
from neuralforge_server.config_rules import resolve_server_config
from neuralforge_server.state_folder import open_state_folder

Run = Callable[..., subprocess.CompletedProcess[str]]

# Serves a state folder as `nf-server start` does, in a process of its own, until its input ends.
SERVE = """
import datetime, sys
from pathlib import Path
from neuralforge_server.config_rules import resolve_server_config
from neuralforge_server.enrolment import serve_enrolment
from neuralforge_server.identity import Identities
from neuralforge_server.state_folder import open_state_folder
state = open_state_folder(Path("nf-server"), now=datetime.datetime.now(datetime.UTC))
listen = resolve_server_config(state.path / "server.yaml", {}, {}).config.listen
running = serve_enrolment(
    state, Identities(state.identities_path), federation="team", host="127.0.0.1",
    port=listen.port, member_port=listen.member_port, fleet_port=listen.fleet_port,
)
print("ready", flush=True)
sys.stdin.read()
running.stop()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `nf-server …` or `nf-client …` in a folder of its own, with a home of its own."""

    def go(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        module = {"nf-server": "neuralforge_server.cli.main", "nf-client": "neuralforge.cli.main"}[program]
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"NEURALFORGE_HOME": str(tmp_path / "home")} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return go


@pytest.fixture
def free_port() -> int:
    """The first of a few ports in a row that nothing uses now."""
    import socket

    for first in range(20_000 + os.getpid() % 10_000, 60_000, 4):
        try:
            for port in range(first, first + 4):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Let enrolment answer for `nf-server`."""
    started: list[subprocess.Popen[str]] = []

    def go() -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    yield go
    for process in started:
        process.communicate("", timeout=20)


def failed(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line of a failure."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    line, hint = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint.startswith("  hint: ")
    return line.removeprefix("error: ")


def join_line(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The address and the token that `invite` printed."""
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"^  nf-client join '(nf://\S+)' (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None
    assert done.stdout.startswith(f"token for laptop-7, for one use within 1 hour: {found[2]}\n")
    return found[1], found[2]


def test_enrolment_is_two_commands(run: Run, serve: Callable[[], None], tmp_path: Path, free_port: int) -> None:
    made = run("nf-server", "init", "--host", "localhost", "--port", free_port)
    assert (made.returncode, made.stderr) == (0, "")
    serve()
    # 1. On the server.
    address, token = join_line(run("nf-server", "invite", "laptop-7"))
    assert f"\n  {address}\n" in made.stdout
    # 2. On the laptop.
    joined = run("nf-client", "join", address, token)
    assert (joined.returncode, joined.stderr) == (0, "")
    assert "joined team as laptop-7" in joined.stdout
    folder = tmp_path / "home" / "federations" / f"localhost_{free_port}"
    assert stat.S_IMODE((folder / "node.key").stat().st_mode) == 0o600
    # The plain token is nowhere.
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert token.encode() not in path.read_bytes(), path

    assert "has joined" in failed(run("nf-client", "join", address, token))
    assert "used already" in failed(run("nf-client", "join", address, token, NEURALFORGE_HOME=str(tmp_path / "b")))
    assert "has joined already" in failed(run("nf-server", "invite", "laptop-7"))
    rotated = run("nf-client", "rotate-key")
    assert (rotated.returncode, rotated.stderr) == (0, "")
    assert "laptop-7 has a new key" in rotated.stdout
    revoked = run("nf-server", "revoke", "laptop-7")
    assert (revoked.returncode, revoked.stderr) == (0, "")
    assert "laptop-7 was revoked" in failed(run("nf-client", "rotate-key", "--server", address))
    assert sorted(path.name for path in folder.iterdir()) == [
        "ca.pem",
        "federation.json",
        "identity.key",
        "node.key",
        "node.pem",
    ]
    other = f"nf://localhost:{free_port}#sha256:{'0' * 64}"
    assert "another authority" in failed(run("nf-client", "join", other, "x", NEURALFORGE_HOME=str(tmp_path / "c")))


def test_init_prints_an_address_that_parses_and_writes_a_configuration_that_loads(run: Run, tmp_path: Path) -> None:
    hosts = ("Build-Box.example.org", "2001:db8::7")
    done = run("nf-server", "init", *(word for host in hosts for word in ("--host", host)), "--name", "ops-1")
    (address,) = re.findall(r"^  (nf://\S+)$", done.stdout, re.MULTILINE)
    state = open_state_folder(tmp_path / "nf-server", now=datetime.datetime.now(datetime.UTC))
    assert FederationAddress.parse(address) == state.address(8470)
    assert state.hosts == ("build-box.example.org", "2001:db8::7", "localhost", "127.0.0.1")
    resolved = resolve_server_config(tmp_path / "nf-server" / "server.yaml", {}, {})
    assert resolved.notices == ()
    config = resolved.config
    assert (config.federation.name, config.storage.directory) == ("ops-1", Path("nf-server"))
    assert (config.listen.port, config.listen.admin_port) == (8470, 8473)
    for command in re.findall(r"^  (nf-server \w+)", done.stdout, re.MULTILINE):
        assert command in ("nf-server invite", "nf-server start")


def test_init_a_second_time_is_refused_and_changes_no_byte(run: Run, tmp_path: Path) -> None:
    assert run("nf-server", "init").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "nf-server").iterdir()}
    assert "nf-server holds a federation already" in failed(run("nf-server", "init", "--host", "elsewhere"))
    assert {path: path.read_bytes() for path in (tmp_path / "nf-server").iterdir()} == before


def test_renewing_keeps_the_authority_and_says_until_when(run: Run, tmp_path: Path) -> None:
    run("nf-server", "init", "--host", "build-box")
    authority = (tmp_path / "nf-server" / "ca.pem").read_bytes()
    old = (tmp_path / "nf-server" / "server.pem").read_bytes()
    done = run("nf-server", "init", "--renew", "--host", "new-box")
    assert (done.returncode, done.stderr) == (0, "")
    assert "for new-box, localhost, 127.0.0.1, until 20" in done.stdout
    assert (tmp_path / "nf-server" / "ca.pem").read_bytes() == authority
    assert (tmp_path / "nf-server" / "server.pem").read_bytes() != old


def test_loose_modes_stop_every_command_with_the_way_out(run: Run, tmp_path: Path) -> None:
    run("nf-server", "init")
    (tmp_path / "nf-server" / "ca.key").chmod(0o644)
    for command in ("invite", "revoke"):
        done = run("nf-server", command, "laptop-7")
        assert "nf-server/ca.key: others than its owner may use it: its mode is 0644, wanted 0600" in failed(done)
        assert done.stderr.endswith("  hint: chmod 600 nf-server/ca.key\n")


def test_there_is_nothing_to_invite_to_before_init(run: Run, tmp_path: Path) -> None:
    for command in ("invite", "revoke"):
        assert "nf-server: there is no federation here" in failed(run("nf-server", command, "laptop-7"))
    assert "has not joined a federation" in failed(run("nf-client", "rotate-key"))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("nf-server init --name a:b", "error: command line: federation.name: wanted"),
        ("nf-server init --host a/b", "error: host: wanted a DNS name or an IP address, got 'a/b'"),
        ("nf-server init --port 65533", "argument --port: wanted a whole number from 1 to 65,532, got '65533'"),
        ("nf-server invite Laptop --directory missing", "error: "),
        ("nf-server invite laptop-7 --valid never", "argument --valid: wanted a time from 1s to 30d"),
        ("nf-server invite laptop-7 --vaild 1h", "unrecognized arguments: --vaild 1h; did you mean --valid?"),
        ("nf-server invit laptop-7", "; did you mean in"),
        ("nf-client join build-box x", "error: address: wanted nf://host:port#sha256:…, got 'build-box'"),
        ("nf-client join nf://build-box:8470 x", "error: nf://build-box:8470 has no fingerprint"),
        ("nf-client rotate-key --server x", "error: address: wanted nf://host:port"),
    ],
)
def test_a_command_line_that_is_wrong_writes_nothing(run: Run, tmp_path: Path, arguments: str, wanted: str) -> None:
    done = run(*arguments.split())
    assert done.returncode == (1 if "missing" in arguments or "--name" in arguments else 2)
    assert wanted in done.stderr.splitlines()[0]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("command", ["init", "invite", "revoke"])
def test_every_command_of_the_server_has_a_help_that_ends_with_examples(run: Run, command: str) -> None:
    done = run("nf-server", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: nf-server {command} ")
    examples = done.stdout.partition("\nexamples:\n")[2].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"nf-server {command}") for line in examples)
    named = set(re.findall(r"--[a-z0-9-]+", " ".join(examples)))
    assert all(re.search(rf"^ +.*{option}\b", done.stdout, re.MULTILINE) for option in named)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["init", "--help"], ["invite", "--help"]], ids=str)
def test_help_of_the_server_imports_nothing_heavy(arguments: list[str]) -> None:
    code = """if True:
        import sys
        from neuralforge_server.cli.main import main
        try:
            main(sys.argv[1:])
        finally:
            print("\\n" + repr(sorted(name for name in sys.modules if "." not in name)))
        """
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert "argparse" in loaded
    assert loaded & {"flwr", "grpc", "cryptography", "numpy", "pydantic", "yaml", "sqlite3"} == set()


def test_a_name_that_was_never_here_and_one_that_was_only_invited(run: Run) -> None:
    run("nf-server", "init")
    assert "nobody is called 'laptop-7' here" in failed(run("nf-server", "revoke", "laptop-7"))
    address, _ = join_line(run("nf-server", "invite", "laptop-7"))
    assert address.startswith("nf://")
    assert run("nf-server", "revoke", "laptop-7").stdout == "the invitation of laptop-7 is void\n"


def test_a_configuration_that_lies_there_names_port_and_further_hosts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nf-server").mkdir(0o700)
    mine = "listen:\n  port: 9000\n  names: [box.example.org]\n"
    (tmp_path / "nf-server" / "server.yaml").write_text(mine)
    done = run("nf-server", "init", "--host", "build-box")
    assert "  nf://build-box:9000#sha256:" in done.stdout
    assert (tmp_path / "nf-server" / "server.yaml").read_text() == mine
    renewed = run("nf-server", "init", "--renew")
    assert "for build-box, box.example.org, localhost, 127.0.0.1, until" in renewed.stdout


def test_a_configuration_with_a_fault_stops_init_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nf-server").mkdir(0o700)
    (tmp_path / "nf-server" / "server.yaml").write_text("listen:\n  prot: 9000\n")
    done = run("nf-server", "init")
    assert (done.returncode, done.stdout) == (1, "")
    assert "listen.prot: unknown key" in done.stderr
    assert [path.name for path in (tmp_path / "nf-server").iterdir()] == ["server.yaml"]
