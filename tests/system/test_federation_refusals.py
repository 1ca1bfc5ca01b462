"""What goes wrong between people and a federation: one line that says what to do, exit 1, and nothing half-written."""

import datetime
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.enrolment_rig import Rig, rig
from tests.federation_rig import CODE, MODULES, Process, Team, four_free_ports
from tests.tiny_rounds import LAYOUT

import neuralforge.models
from neuralforge.models.load import load_base_model
from neuralforge_common.adapter import AdapterSpec
from neuralforge_server.aggregation.state_file import encode_state
from neuralforge_server.config import ServerConfig
from neuralforge_server.config_rules import resolve_server_config
from neuralforge_server.from_config import method_of, terms_of
from neuralforge_server.ledger import Ledger

Done = subprocess.CompletedProcess[str]
NOWHERE = "0" * 64


def command(program: str, *words: object) -> list[str]:
    return [sys.executable, "-m", MODULES[program], *map(str, words)]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"NEURALFORGE_HOME": str(home), "OMP_NUM_THREADS": "1"}


def run(program: str, *words: object, place: Path, largest_file: int | None = None) -> Done:
    """A command as a person runs it; `largest_file` (bytes, in steps of 1024) makes the disk as good as full."""
    arguments = command(program, *words)
    if largest_file is not None:
        arguments = ["bash", "-c", f'ulimit -f {largest_file // 1024}; exec "$@"', "-", *arguments]
    return subprocess.run(
        arguments,
        cwd=place,
        env=environment(place / "home") | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class Refusal:
    """What a failed command said last."""

    message: str
    hint: str
    before: str


def refusal(done: Done, status: int = 1) -> Refusal:
    """The one error of a command that failed, in lines that a person reads, and no traceback."""
    assert done.returncode == status, done.stdout + done.stderr
    found = re.fullmatch(r"(?:neuralforge|nf-server)?(?: [a-z-]+)?(?:: )?error: (.*)\n  hint: (.+)\n", done.stderr)
    assert found is not None, done.stderr
    return Refusal(found[1], found[2], done.stdout)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder below, with its mode."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


# A machine that has joined, and one that has not


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A federation whose enrolment answers, with a clock that can be turned."""
    with rig(tmp_path_factory.mktemp("server")) as rig_:
        yield rig_


@pytest.fixture(scope="module")
def members_home(server: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a machine that has joined; read it, do not change it."""
    home = tmp_path_factory.mktemp("member") / "home"
    server.joined("laptop-1", home)
    return home


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A developer's folder with code in it, on a machine that has joined nothing."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text(CODE.format(name="price", title="Price", number=1))
    return tmp_path


@pytest.fixture
def member(laptop: Path, members_home: Path) -> Path:
    """The same, on a machine that has joined."""
    shutil.copytree(members_home, laptop / "home")
    return laptop


def train(place: Path, server: object, *more: object) -> Done:
    return run("nf-client", "train", "--server", server, "--base", "nf-tiny", "--source", "code", *more, place=place)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_answers_at_the_address_to_join(laptop: Path) -> None:
    port = closed_port()
    said = refusal(run("nf-client", "join", f"nf://localhost:{port}#sha256:{NOWHERE}", "nfj_x", place=laptop))
    assert said.message == f"cannot reach the server at localhost:{port}: connection refused"
    assert "nf-server start" in said.hint
    assert [*contents(laptop / "home")] == ["federations"]


def test_nobody_answers_where_a_machine_has_joined(tmp_path_factory: pytest.TempPathFactory, laptop: Path) -> None:
    with rig(tmp_path_factory.mktemp("gone")) as gone:
        gone.joined("laptop-1", laptop / "home")
        address, member_port = gone.address.endpoint, gone.running.member_port
    before = contents(laptop)
    said = refusal(train(laptop, f"nf://{address}"))
    assert said.message == f"cannot reach the server at localhost:{member_port}: connection refused"
    assert "nf-server start" in said.hint
    assert contents(laptop) == before


def test_another_fingerprint_costs_no_token_and_leaves_nothing(server: Rig, laptop: Path) -> None:
    token = server.identities.invite("laptop-2")
    wrong = f"nf://{server.address.endpoint}#sha256:{NOWHERE}"
    said = refusal(run("nf-client", "join", wrong, token, place=laptop))
    assert "has another authority" in said.message
    assert server.state.fingerprint in said.message
    assert NOWHERE in said.message
    assert said.message.endswith("the token was not sent")
    assert [*contents(laptop / "home")] == ["federations"]
    joined = run("nf-client", "join", server.address, token, place=laptop)
    assert joined.returncode == 0, joined.stderr
    said = refusal(train(laptop, wrong))
    assert f"was joined as another federation: its fingerprint was {server.state.fingerprint}" in said.message
    assert "remove home/federations" in said.hint.replace(str(laptop) + "/", "")


def test_an_invitation_that_has_expired(server: Rig, laptop: Path) -> None:
    folder = server.state.path
    invited = run("nf-server", "invite", "laptop-3", "--valid", "1s", "--directory", folder, place=laptop)
    assert "for one use within 1 seconds" in invited.stdout or "within 1 second" in invited.stdout
    token = invited.stdout.splitlines()[0].rpartition(" ")[2]
    time.sleep(1.1)
    said = refusal(run("nf-client", "join", server.address, token, place=laptop))
    assert re.fullmatch(r"the server refused: the token expired \d+ seconds ago", said.message)
    assert "nf-server invite" in said.hint
    assert [*contents(laptop / "home")] == ["federations"]


@pytest.mark.slow
def test_clocks_that_are_an_hour_apart(server: Rig, member: Path) -> None:
    before = contents(member)
    try:
        for ahead, which in ((3600, "behind"), (-3600, "ahead")):
            server.clock.ahead = ahead
            said = refusal(train(member, server.address))
            assert re.fullmatch(
                rf"this machine's clock and the server's differ by 3[56]\d\d seconds \(this one is {which}\), "
                "at most 240 are allowed",
                said.message,
            )
            assert "NTP" in said.hint
    finally:
        server.clock.ahead = 0
    assert contents(member) == before


@pytest.mark.parametrize(
    ("address", "status", "wanted"),
    [
        ("nf://localhost:1", 1, "this machine has not joined nf://localhost:1"),
        ("team-7", 1, "this machine has joined no federation called 'team-7'"),
        ("nf://", 2, "host: wanted a DNS name or an IP address, got ''"),
        ("nf://localhost:8470#md5:00", 2, "fingerprint: wanted #sha256:<64 hex digits>, got '#md5:00'"),
    ],
)
def test_an_address_that_leads_nowhere(laptop: Path, address: str, status: int, wanted: str) -> None:
    before = contents(laptop)
    said = refusal(train(laptop, address), status)
    assert said.message.startswith(wanted)
    assert "nf" in said.hint
    assert contents(laptop) == before


def test_an_option_that_there_is_not(laptop: Path) -> None:
    said = refusal(train(laptop, "nf://localhost:1", "--anonymous"), status=2)
    assert said.message.startswith("unrecognized arguments: --anonymous")


# What a member's machine keeps, loose or damaged


@pytest.mark.slow
def test_a_members_keys_that_others_may_read(server: Rig, member: Path) -> None:
    folder = keys_folder(member, server)
    for path, mode, wanted in (
        (folder, 0o755, 0o700),
        (folder.parent, 0o750, 0o700),
        (folder / "node.key", 0o640, 0o600),
    ):
        path.chmod(mode)
        before = contents(member)
        said = refusal(train(member, server.address))
        assert said.message == f"{path}: others than its owner may use it: its mode is {mode:04o}, wanted {wanted:04o}"
        assert said.hint == f"chmod {wanted:o} {path}"
        assert contents(member) == before
        subprocess.run(said.hint.split(), check=True)
    assert train(member, server.address, "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("federation.json", "missing"),
        ("federation.json", "text"),
        ("federation.json", "json"),
        ("ca.pem", "missing"),
        ("node.key", "missing"),
        ("node.key", "text"),
        ("node.pem", "empty"),
    ],
)
def test_a_members_files_that_are_damaged(server: Rig, member: Path, name: str, damage: str) -> None:
    path = keys_folder(member, server) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_text({"empty": "", "text": "what is this\n", "json": "{}\n"}[damage])
    before = contents(member)
    said = refusal(train(member, server.address, "--dry-run"))
    assert name in said.message or (name, damage) == ("federation.json", "missing")
    assert "join" in said.hint
    assert contents(member) == before


def keys_folder(member: Path, server: Rig) -> Path:
    return member / "home" / "federations" / f"localhost_{server.address.port}"


def test_a_policy_that_cannot_be_read_stops_before_anything_is_asked(member: Path, server: Rig) -> None:
    (member / "policy.yaml").write_text("allow:\n  hours: night\n  max_step: 3\nrequire: {privacy: 7}\n")
    done = train(member, server.address, "--policy", "policy.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("error: ") == 1
    for fault in (
        "policy.yaml:2: allow.hours: wanted two different times of day such as 22:00-06:00, got 'night'",
        "policy.yaml:3: allow.max_step: unknown key, did you mean 'max_steps'?",
        "policy.yaml:4: require.privacy: ",
    ):
        assert fault in done.stderr


def test_a_disk_that_is_full_when_a_machine_joins(server: Rig, laptop: Path) -> None:
    token = server.identities.invite("laptop-4")
    said = refusal(run("nf-client", "join", server.address, token, place=laptop, largest_file=0))
    assert "node.key" in said.message or "cannot write" in said.message
    assert [*contents(laptop / "home")] == ["federations"]
    joined = run("nf-client", "join", server.address, token, place=laptop)  # what needed the disk came first
    assert joined.returncode == 0, joined.stderr


# The coordinator's side


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `nf-server init` was run; read it, do not change it."""
    place = tmp_path_factory.mktemp("made")
    done = run("nf-server", "init", "--host", "localhost", "--name", "t", place=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def coordinator(made: Path, tmp_path: Path) -> Path:
    """The same, to tamper with; its ports are free, and it waits for nobody for longer than a moment."""
    (place,) = copies_of(made, tmp_path, ["coordinator"])
    return place


def copies_of(made: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """Copies of `made`, each with four free ports of its own."""
    places = [folder / name for name in names]
    with ExitStack() as stack:
        for place in places:
            shutil.copytree(made, place)
            first = four_free_ports()
            write_config(place, first)
            for port in range(first, first + 4):  # not free for the next one
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
    return places


def write_config(place: Path, port: int, **changes: str) -> None:
    """`server.yaml` in `place`."""
    sections = {
        "federation": "{name: t, rounds: 3, min_clients: 2, wait_minutes: 0.01, evaluate_every: 0}",
        "adapter": "{base: nf-tiny, rank: 4}",
        "listen": f"{{host: 127.0.0.1, port: {port}, member_port: {port + 1}, fleet_port: {port + 2}, "
        f"admin_port: {port + 3}}}",
    } | changes
    (place / "server.yaml").write_text("".join(f"{name}: {value}\n" for name, value in sections.items()))


START = ("nf-server", "start", "--config", "server.yaml")


def start(place: Path) -> Done:
    return run(*START, place=place)


def start_together(places: Sequence[Path]) -> list[Done]:
    """`nf-server start` in several folders at once: each of them waits more than it works."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    command(*START),
                    cwd=place,
                    env=environment(place / "home"),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    text=True,
                )
            )
            for place in places
        ]
        said = [process.communicate(timeout=120) for process in running]
        return [Done(p.args, p.returncode, *words) for p, words in zip(running, said, strict=True)]


def two_rounds(place: Path) -> list[str]:
    """Commits a beginning and two rounds in a coordinator's folder; returns the digests of their states."""
    config = resolve_server_config(place / "server.yaml", {}, {}).config
    terms, method = terms_of(config), method_of(config)
    spec = AdapterSpec(
        base="nf-tiny",
        base_revision=None,
        base_fingerprint=f"sha256:{'7' * 64}",
        rank=4,
        alpha=8.0,
        dropout=0.0,
        target_modules=("down", "q", "up"),
    )
    with Ledger.open(place / "nf-server") as ledger:
        ledger.open_with(terms.fixed() | {"spec": asdict(spec)})
        return [
            ledger.commit(number, encode_state(method.initial(LAYOUT, seed=number)), {"clients": 2.0} if number else {})
            for number in range(3)
        ]


@pytest.mark.slow
def test_each_of_the_four_ports_may_be_taken(made: Path, tmp_path: Path) -> None:
    names = ("port", "member_port", "fleet_port", "admin_port")
    places = copies_of(made, tmp_path, names)
    taken = [config_of(place).listen.port + offset for offset, place in enumerate(places)]
    with ExitStack() as stack:
        for port in taken:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        before = [keys(place) for place in places]
        for name, port, done in zip(names, taken, start_together(places), strict=True):
            said = refusal(done)
            assert said.message.startswith(f"cannot listen on 127.0.0.1:{port}: "), (name, said)
            assert "in use" in said.message
            assert "listen" in said.hint
    for place, kept in zip(places, before, strict=True):
        assert keys(place) == kept
        # Nothing of it goes on running, and its ports are free again.
        first = config_of(place).listen.port
        for port in range(first, first + 4):
            socket.create_server(("127.0.0.1", port)).close()
        assert run("nf-server", "status", place=place).returncode == 0


def config_of(place: Path) -> ServerConfig:
    return resolve_server_config(place / "server.yaml", {}, {}).config


def status(place: Path) -> dict[str, Any]:
    done = run("nf-server", "status", "--json", place=place)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def keys(place: Path) -> dict[str, tuple[int, bytes]]:
    return {name: what for name, what in contents(place / "nf-server").items() if name.endswith((".pem", ".key"))}


@pytest.mark.parametrize("name", [".", "ca.key", "superlink.secret", "identity.db", "rounds.db"])
def test_a_state_folder_that_others_may_read(coordinator: Path, name: str) -> None:
    assert run("nf-server", "invite", "laptop-1", place=coordinator).returncode == 0
    two_rounds(coordinator)
    path = coordinator / "nf-server" / name
    mode, wanted = (0o755, 0o700) if path.is_dir() else (0o644, 0o600)
    path.chmod(mode)
    before = keys(coordinator)
    said = refusal(start(coordinator))
    assert said.message.endswith(f": others than its owner may use it: its mode is {mode:04o}, wanted {wanted:04o}")
    assert str(Path("nf-server") / name) in said.message
    assert said.hint == f"chmod {wanted:o} {Path('nf-server') / name}"
    assert keys(coordinator) == before
    subprocess.run(said.hint.split(), cwd=coordinator, check=True)
    assert [entry["round"] for entry in status(coordinator)["rounds"]] == [1, 2]


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("ca.pem", "restore both from a backup"),
        ("ca.key", "restore both from a backup"),
        ("server.pem", "nf-server init --directory nf-server --renew --host NAME"),
        ("server.key", "nf-server init --directory nf-server --renew"),
        ("superlink.secret", "nf-server init --directory nf-server --renew"),
    ],
)
def test_a_state_folder_in_which_something_is_missing(coordinator: Path, name: str, way_out: str) -> None:
    (coordinator / "nf-server" / name).unlink()
    before = contents(coordinator)
    said = refusal(start(coordinator))
    assert said == Refusal(f"cannot read nf-server/{name}: No such file or directory", way_out, "")
    assert contents(coordinator) == before
    if way_out.startswith("nf-server "):
        renewed = run(*way_out.replace("NAME", "localhost").split(), place=coordinator)
        assert renewed.returncode == 0, renewed.stderr
        assert status(coordinator)["rounds"] == []


def test_there_is_no_federation_to_start(tmp_path: Path) -> None:
    for words in (("start",), ("status",), ("invite", "laptop-1"), ("revoke", "laptop-1")):
        said = refusal(run("nf-server", *words, place=tmp_path))
        assert said.message == "nf-server: there is no federation here"
        assert said.hint == "nf-server init --directory nf-server"
    assert contents(tmp_path) == {}


def damage_newest_state(place: Path, digests: list[str]) -> list[str]:
    path = place / "nf-server" / "states" / f"{digests[-1]}.nfstate"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return [f"{digests[-1]}.nfstate is damaged", "going on from round 1, the newest whose state is whole"]


def damage_ledger(place: Path, digests: list[str]) -> list[str]:
    path = place / "nf-server" / "rounds.db"
    path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:])
    return ["rounds.db was damaged (", "was made anew from nf-server/states: rounds 0, 1, 2"]


def damage_both(place: Path, digests: list[str]) -> list[str]:
    damage_newest_state(place, digests)
    return [*damage_ledger(place, digests)[:1], "was made anew from nf-server/states: rounds 0, 1;"]


@pytest.mark.slow
def test_a_coordinator_goes_on_from_what_is_whole_and_says_so(made: Path, tmp_path: Path) -> None:
    damages: tuple[tuple[Callable[[Path, list[str]], list[str]], int], ...] = (
        (damage_newest_state, 1),
        (damage_ledger, 2),
        (damage_both, 1),
    )
    places = copies_of(made, tmp_path, [damage.__name__ for damage, _ in damages])
    notices = [damage(place, two_rounds(place)) for (damage, _), place in zip(damages, places, strict=True)]
    for place, wanted, (_, left), done in zip(places, notices, damages, start_together(places), strict=True):
        said = refusal(done)
        for notice in (*wanted, f"going on after round {left}: nf-tiny: "):
            assert notice in said.before, said.before
        # Nobody came, which is a line of its own.
        assert said.message.startswith(f"wanted 2 clients for round {left + 1}, 0 came within ")
        assert "nf-client train --server" in said.hint
        with Ledger.look(place / "nf-server") as ledger:
            assert ledger.rounds()[left].round == left
        # What was damaged is still there for whoever wants to look at it.
        assert [*(place / "nf-server").rglob("*.damaged*")] != []


def test_a_coordinator_whose_states_are_all_damaged_does_not_begin_anew(coordinator: Path) -> None:
    two_rounds(coordinator)
    for path in (coordinator / "nf-server" / "states").glob("*.nfstate"):
        path.write_bytes(b"")
    said = refusal(start(coordinator))
    assert said.message.startswith("no state of a committed round can be read")
    assert "from a backup" in said.hint


def test_a_look_at_a_damaged_ledger_says_the_way_out_and_touches_nothing(coordinator: Path) -> None:
    damage_ledger(coordinator, two_rounds(coordinator))
    before = (coordinator / "nf-server" / "rounds.db").read_bytes()
    said = refusal(run("nf-server", "status", place=coordinator))
    assert "rounds.db is damaged" in said.message
    assert "start it again" in said.hint
    assert (coordinator / "nf-server" / "rounds.db").read_bytes() == before


@pytest.mark.slow
def test_a_registry_that_is_damaged(coordinator: Path) -> None:
    assert run("nf-server", "invite", "laptop-1", place=coordinator).returncode == 0
    path = coordinator / "nf-server" / "identity.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    before = path.read_bytes()
    for words in (("start", "--config", "server.yaml"), ("status",), ("invite", "laptop-2")):
        said = refusal(run("nf-server", *words, place=coordinator))
        assert "identity.db is damaged" in said.message
        assert "backup" in said.hint
    assert path.read_bytes() == before


@pytest.mark.slow
def test_terms_that_are_not_those_of_the_committed_rounds(coordinator: Path) -> None:
    two_rounds(coordinator)
    write_config(coordinator, config_of(coordinator).listen.port, adapter="{base: nf-tiny, rank: 8}")
    said = refusal(start(coordinator))
    assert said.message.startswith("this state folder belongs to a federation with adapter ")
    assert '"rank": 4' in said.message
    assert '"rank": 8' in said.message
    assert "restore the configuration" in said.hint


def test_a_second_coordinator_in_the_same_folder(coordinator: Path) -> None:
    with Ledger.open(coordinator / "nf-server"):
        said = refusal(start(coordinator))
    assert said.message == f"nf-server is in use by another coordinator (process {os.getpid()})"
    assert "stop the other one" in said.hint


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            "federation: {rounds: 0, min_client: 2}\n"
            "adapter: {rank: 257}\n"
            "training: {steps: -3, learning_rate: fast}\n"
            "aggregation: {method: fedsgd}\n"
            "listen: {port: 99999}\n",
            [
                "server.yaml:1: federation.min_client: unknown key, did you mean 'min_clients'?",
                "server.yaml:1: federation.rounds: wanted a whole number from 1 to 1,000,000, got 0",
                "server.yaml:2: adapter.rank: wanted a whole number from 1 to 256, got 257",
                "server.yaml:3: training.learning_rate: wanted a number above 0, at most 1, got 'fast'",
                "server.yaml:3: training.steps: wanted a whole number from 1 to 1,000,000, got -3",
                "server.yaml:4: aggregation.method: wanted mean, frozen-a, alternating, ",
                "server.yaml:5: listen.port: wanted a port from 1 to 65535, got 99999",
            ],
        ),
        (
            "adapter: {rank: 200}\n"
            "federation: {min_clients: 2, quorum: 5}\n"
            "aggregation: {method: svd, robust: median, optimizer: fedadam}\n"
            "listen: {port: 8470, member_port: 8470}\n",
            [
                "server.yaml:2: federation.quorum: a round may begin with 2 clients (federation.min_clients), fewer ",
                "server.yaml:3: aggregation.optimizer: fedadam keeps moments of the matrices, and svd factors them ",
                "server.yaml:3: aggregation.robust: median compares updates coordinate by coordinate, and the ",
                "server.yaml:4: listen.member_port: 8470 is listen.port already",
            ],
        ),
        (
            "adapter: {rank: 250}\naggregation: {method: residual, residual_rank: 32, robust: multi-krum}\n",
            [
                "server.yaml:2: aggregation.residual_rank: makes a rank of 282 together with adapter.rank, at most 256",
                "server.yaml:2: aggregation.robust: multi-krum ",
            ],
        ),
        ("adapter: {rank: [8\n", ["server.yaml:2: not valid YAML: "]),
    ],
    ids=["values", "pairs", "ranks", "syntax"],
)
def test_a_configuration_is_refused_with_all_that_is_wrong_with_it(
    coordinator: Path, text: str, faults: list[str]
) -> None:
    (coordinator / "server.yaml").write_text(text)
    before = contents(coordinator)
    done = start(coordinator)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    said = sorted(done.stderr.removeprefix("error: ").splitlines())
    for line in said:
        assert any(line.startswith(fault) for fault in faults), line
    assert {fault for fault in faults for line in said if line.startswith(fault)} == set(faults), done.stderr
    assert contents(coordinator) == before


def test_a_disk_that_is_full_on_the_coordinators_machine(coordinator: Path, tmp_path: Path) -> None:
    said = refusal(run("nf-server", "init", "--directory", "other", place=coordinator, largest_file=0))
    assert "other" in said.message
    assert not (coordinator / "other").exists()
    before = contents(coordinator)
    said = refusal(run("nf-server", "invite", "laptop-1", place=coordinator, largest_file=0))
    assert "identity.db" in said.message
    assert "full" in said.hint
    assert {**before, **contents(coordinator)}.keys() - before.keys() <= {"nf-server/identity.db"}
    assert run("nf-server", "invite", "laptop-1", place=coordinator).returncode == 0
    two_rounds(coordinator)
    said = refusal(run(*START, place=coordinator, largest_file=0))
    assert "nf-server" in said.message
    assert said.hint
    with Ledger.look(coordinator / "nf-server") as ledger:
        assert [entry.round for entry in ledger.rounds()] == [0, 1, 2]


# What a member refuses, in a federation of processes

POLICIES = {
    "cat": ("allow: {max_steps: 1}", "the site policy refuses: asked for 3 steps, allowed: at most 1"),
    "eve": ("allow: {hours: %s}", "the site policy refuses: asked for a round at "),
    "fay": ("allow: {bases: [smollm2-135m]}", "the site policy refuses: asked for the base 'shared/base', allowed: "),
}


def team_of(place: Path, *members: str, federation: str) -> Team:
    """Members who each hold a base of their own below the same name; dan's is another one."""
    team = Team(place=place, members=members)
    write_config(
        place,
        team.first_port,
        federation=federation,
        adapter="{base: shared/base, rank: 4}",
        training="{steps: 3, batch_size: 2, max_length: 64}",
    )
    for name in members:
        site = place / name
        shutil.copytree(Path(neuralforge.models.__file__).parent / "nf_tiny", site / "shared" / "base")
        (place / f"code-{name}").rename(site / "code")
        policy, _ = POLICIES.get(name, ("{}", ""))
        (site / "policy.yaml").write_text(policy.replace("%s", f'"{two_hours_from_now()}"') + "\n")
        (site / "client.yaml").write_text(
            f"model: {{base: shared/base, adapter_name: {name}-together}}\n"
            "federation: {policy: policy.yaml}\ndataset: {sources: [code], eval_fraction: 0}\n"
        )
    if "dan" in members:
        weights = place / "dan" / "shared" / "base" / "model.safetensors"
        tensors = load_file(weights)
        name = min(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[name] = tensors[name] + 0.01
        save_file(tensors, weights, metadata={"format": "pt"})
    return team


def two_hours_from_now() -> str:
    begin = datetime.datetime.now() + datetime.timedelta(hours=2)
    return f"{begin:%H:%M}-{begin + datetime.timedelta(hours=1):%H:%M}"


def start_member(team: Team, name: str) -> Process:
    log = team.place / f"{name}.log"
    words = ("train", "--server", team.address, "--config", "client.yaml")
    with log.open("wb") as file:
        popen = subprocess.Popen(
            command("nf-client", *words),
            cwd=team.place / name,
            env=environment(team.place / f"home-{name}"),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    team.processes.append(Process(popen, log))
    return team.processes[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_refuses_a_round_is_named_with_the_reason_and_the_others_go_on(tmp_path: Path) -> None:
    members = ("ann", "bob", "cat", "dan", "eve", "fay")
    rounds = "{name: t, rounds: 1, min_clients: 6, quorum: 2, wait_minutes: 10, evaluate_every: 0}"
    with team_of(tmp_path, *members, federation=rounds) as team:
        server = team.start_server()
        team.wait_for_server(server)
        team.join_all()
        running = {name: start_member(team, name) for name in members}
        assert server.ends(600) == 0, server.said
        ended = {name: process.ends(60) for name, process in running.items()}
    assert "round 1 of 1 committed: 2 clients" in server.said
    refusals = {
        (entry["round"], entry["client"]): (entry["reason"], entry["message"]) for entry in team.status()["refusals"]
    }
    # 1. What a policy does not allow: said on both sides.
    for name, (_, words) in POLICIES.items():
        reason, message = refusals[1, name]
        assert (reason, message[: len(words)]) == ("failed", words)
        line = f"round 1/1: not done: {message}"
        assert line in running[name].said, running[name].said
        assert "change the site policy of this machine" in running[name].said
        assert f"round 1: {name}: no update (failed): {message}" in server.said
    # 2. Another base below the same name: with the fingerprints of both, when they agree and in the round.
    mine, theirs = (
        load_base_model(str(tmp_path / name / "shared" / "base")).fingerprint.removeprefix("sha256:")[:12]
        for name in ("dan", "ann")
    )
    for number, reason in ((0, "base"), (1, "failed")):
        assert refusals[number, "dan"][0] == reason
        assert mine in refusals[number, "dan"][1]
        assert theirs in refusals[number, "dan"][1]
    assert "another base: the federation trains 'shared/base' with the fingerprint" in running["dan"].said
    # 3. Nobody else, and whoever could not have the adapter says so.
    assert {name for _, name in refusals} == {"dan", *POLICIES}
    assert ended == {"ann": 0, "bob": 0, "cat": 0, "eve": 0, "dan": 1, "fay": 1}
    for name in ("dan", "fay"):
        assert running[name].said.count("error: ") == 1
        assert not (tmp_path / name / f"{name}-together.lora").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_federation_whose_members_all_refuse_ends_with_the_quorum_that_it_missed(tmp_path: Path) -> None:
    rounds = "{name: t, rounds: 1, min_clients: 1, wait_minutes: 10, max_attempts: 2, evaluate_every: 0}"
    with team_of(tmp_path, "cat", federation=rounds) as team:
        server = team.start_server()
        team.wait_for_server(server)
        team.join_all()
        member = start_member(team, "cat")
        assert server.ends(300) == 1, server.said
        assert member.popen.poll() is None  # a coordinator that comes back is waited for
    words = POLICIES["cat"][1]
    assert server.said.count(f"round 1: cat: no update (failed): {words}") == 2
    assert server.said.count("0 updates, 1 are needed: nothing was committed, the round is tried again") == 2
    line, hint = server.errors
    assert line == "error: round 1 stayed below its quorum of 1 clients in 2 attempts"
    assert "who was refused and why" in hint
    assert member.said.count(f"round 1/1: not done: {words}") == 2
    state = team.status()
    assert state["rounds"] == []
    assert [(entry["attempt"], entry["client"]) for entry in state["refusals"]] == [(1, "cat"), (2, "cat")]
    assert not (team.server / "adapter.lora").exists()
