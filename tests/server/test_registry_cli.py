"""`nf-server registry …` as a person runs it: a registry that starts, teams, tokens, the audit log."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from registry_rig import ALICE, Person, code, make_adapter

from neuralforge_common.address import FederationAddress
from neuralforge_common.protocol import registry_pb2_grpc as services

Run = Callable[..., subprocess.CompletedProcess[str]]
SERVER = [sys.executable, "-m", "neuralforge_server.cli.main"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `nf-server …` in a folder of its own."""

    def go(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SERVER, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return go


Started = tuple[subprocess.Popen[str], FederationAddress, list[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a registry on free ports; gives the process, the address that it printed, and all lines so far."""
    running: list[subprocess.Popen[str]] = []

    def go(*arguments: object) -> Started:
        process = subprocess.Popen(
            [*SERVER, "registry", "start", "--listen", "127.0.0.1", "--port", "0", "--member-port", "0"]
            + [str(each) for each in arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if found := re.fullmatch(r"registry team at (nf://\S+)", lines[-1]):
                return process, FederationAddress.parse(found[1]), lines
        raise AssertionError(lines)

    yield go
    for process in running:
        process.kill()
        process.wait()


def client(place: Path, address: FederationAddress, token: str) -> Person:
    roots = (place / "nf-server" / "ca.pem").read_bytes()
    channel = grpc.secure_channel(f"localhost:{address.port}", grpc.ssl_channel_credentials(roots))
    return Person(services.RegistryStub(channel), (("authorization", f"Bearer {token}"),))


def test_a_registry_from_nothing_to_a_published_adapter_and_its_audit_log(
    run: Run, start: Callable[..., Started], tmp_path: Path
) -> None:
    # 1. It makes its own state folder, and says the address and the next step.
    process, address, lines = start()
    assert lines[0] == "made the state folder nf-server; back up nf-server/ca.key"
    assert any(line.startswith("no team can publish yet: nf-server registry team add") for line in lines)
    assert address.fingerprint is not None
    private = ("index.key", "registry.db", "lock")
    modes = {name: stat.S_IMODE((tmp_path / "nf-server/registry" / name).stat().st_mode) for name in private}
    assert set(modes.values()) == {0o600}
    # 2. A team, while it runs.
    (tmp_path / "alice.pub").write_bytes(ALICE.public.pem)
    added = run("registry", "team", "add", "blue", "--member", "laptop-7", "--signer", "alice.pub")
    assert added.returncode == 0, added.stderr
    assert f"fingerprint  sha256:{ALICE.public.fingerprint}" in added.stdout
    listed = run("registry", "team", "list").stdout
    assert listed.splitlines()[:2] == ["blue", "  member  laptop-7  publish"]
    # 3. A token, shown once.
    made = run("registry", "token", "--team", "blue", "--scope", "publish", "--expires", "1h")
    token = made.stdout.split()[-1]
    person = client(tmp_path, address, token)
    person.publish(make_adapter(tmp_path / "a.lora"))
    assert person.search() == ["blue/spring@1.0.0"]
    tokens = run("registry", "token", "--list").stdout
    assert token not in tokens
    (number,) = re.findall(r"^([0-9a-f]{8})  blue  publish  until ", tokens, re.MULTILINE)
    assert run("registry", "token", "--revoke", number).returncode == 0
    assert code(person.search) == "UNAUTHENTICATED"
    gone = run("registry", "team", "remove", "blue", "--member", "laptop-7", "--signer", "alice").stdout
    assert re.search(r"revoked +alice, .*\nremoved +laptop-7 from blue", gone)
    # 4. What happened stands in the audit log, without a secret.
    log = run("registry", "audit", "--json").stdout
    entries = [json.loads(line) for line in log.splitlines()]
    assert [each["what"] for each in entries] == [
        *("team add", "team member", "team signer", "token", "publish", "token revoke"),
        *("team signer revoked", "team remove"),
    ]
    assert entries[4]["who"] == f"token:{number}"
    assert entries[4]["subject"] == "blue/spring@1.0.0"
    assert token not in log
    # 5. A second one is refused; the first ends when it is told to.
    second = run("registry", "start", "--port", "0", "--member-port", "0")
    assert (second.returncode, second.stderr.splitlines()[0]) == (
        1,
        "error: another registry serves nf-server/registry",
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("registry",), 2, "required: ACTION"),
        (("registry", "token"), 2, "--team --list --revoke is required"),
        (("registry", "token", "--team", "x", "--expires", "soon"), 2, "such as 90d"),
        (("registry", "start", "--port", "99999"), 2, "65,535"),
        (("registry", "start", "--team-quota", "lots"), 2, "such as 500MB"),
        (("registry", "team", "list"), 1, "there is no federation here"),
        (("registry", "audit", "--last", "0"), 2, "from 1"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, arguments: tuple[str, ...], status: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_on_a_registry_refuse_what_is_not_there(run: Run, tmp_path: Path) -> None:
    assert run("init").returncode == 0
    for arguments, said in (
        (("token", "--team", "green"), "error: there is no team green"),
        (("token", "--revoke", "00000000"), "error: no token 00000000 counts here"),
        (("team", "add", "blue", "--signer", "nf-server/ca.key"), "error: nf-server/ca.key is a private key"),
        (("team", "remove", "blue", "--member", "x"), "error: x is not in the team blue"),
    ):
        done = run("registry", *arguments)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith(said)
        assert "hint: " in done.stderr
        assert len(done.stderr.splitlines()) <= 2


def test_a_database_may_be_named_by_a_variable(run: Run) -> None:
    assert run("init").returncode == 0
    done = run("registry", "team", "list", NF_SERVER_REGISTRY_DATABASE="mysql://me:hunter2@x/y")
    assert done.returncode == 2
    assert "--database: wanted a URL such as" in done.stderr
    assert "hunter2" not in done.stderr
