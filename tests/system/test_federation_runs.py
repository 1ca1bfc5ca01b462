"""Federations in real processes, as people start them: what they end with, what leaves a machine, whom they let in."""

import contextlib
import http.client
import json
import re
import shlex
import shutil
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from federation_rig import Process, Team, wait_until
from peft import PeftModel

from neuralforge.federation.flower import connect
from neuralforge.models.load import load_base_model
from neuralforge_common.errors import FederationError
from neuralforge_common.folder import read_adapter_folder

Cli = Callable[..., subprocess.CompletedProcess[str]]

ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class Story:
    """A federation of three that is over; one of them was revoked on the way."""

    team: Team
    server: Process
    clients: dict[str, Process]
    asked_at_revocation: int
    records_at_revocation: int
    status_on_the_way: dict[str, Any]
    snapshot: Path


def copy_if_there(source: str, target: str) -> None:
    """Copy a file of a folder that is in use: one that was renamed meanwhile stands there under its last name."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    place = tmp_path_factory.mktemp("story")
    with Team(
        place=place, members=("ann", "bob", "eve"), rounds=ROUNDS, steps=30, min_clients=2, evaluate_every=ROUNDS
    ) as team:
        team.wait_for_server(server := team.start_server())
        team.join_all()
        clients = {"eve": team.start_client("eve")}
        clients["eve"].says("online")
        clients |= {name: team.start_client(name) for name in ("ann", "bob")}
        server.says("eve: .* examples", seconds=120)
        server.says(f"of {ROUNDS} committed", seconds=120)
        # What the server holds while updates come and go, before Flower deletes them.
        shutil.copytree(team.server, place / "snapshot", copy_function=copy_if_there)
        revoked = team.run("nf-server", "revoke", "eve")
        assert revoked.returncode == 0, revoked.stderr
        records = team.records
        asked = max(record["round"] for record in records if record["kind"] == "RoundBegan")
        on_the_way = team.status()
        assert server.ends(180) == 0, server.said
        for client in clients.values():
            client.ends(60)
        yield Story(
            team=team,
            server=server,
            clients=clients,
            asked_at_revocation=asked,
            records_at_revocation=len(records),
            status_on_the_way=on_the_way,
            snapshot=place / "snapshot",
        )


def test_everybody_who_stayed_has_the_adapter_of_the_server(story: Story) -> None:
    for name in ("ann", "bob"):
        assert story.clients[name].popen.returncode == 0, story.clients[name].said
        folder = story.team.place / f"{name}-together.lora"
        assert (folder / "adapter_model.safetensors").read_bytes() == story.team.adapter_bytes
        assert read_adapter_folder(folder).spec == read_adapter_folder(story.team.server / "adapter.lora").spec
    assert not (story.team.place / "eve-together.lora").exists()


def test_plain_peft_opens_the_adapter_and_it_does_something(story: Story) -> None:
    base = load_base_model("nf-tiny", dtype="float32", device="cpu")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        before = base.model(input_ids=ids).logits.clone()
        adapted = PeftModel.from_pretrained(base.model, story.team.place / "ann-together.lora")
        assert not torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-3)


def test_our_own_command_judges_the_adapter(story: Story, cli: Cli) -> None:
    done = cli("test-adapter", "ann-together.lora", "--rows", 0, "--show", 0, "--json", cwd=story.team.place)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["adapter"]["perplexity"] < summary["base"]["perplexity"]


def test_status_tells_of_a_federation_that_runs_and_of_one_that_is_over(story: Story) -> None:
    states = {node["name"]: node["state"] for node in story.status_on_the_way["nodes"]}
    assert states == {"ann": "active", "bob": "active", "eve": "revoked"}
    assert 0 < len(story.status_on_the_way["rounds"]) < ROUNDS
    over = story.team.status()
    assert [entry["round"] for entry in over["rounds"]] == list(range(1, ROUNDS + 1))
    assert all(entry["clients"] in (2, 3) and entry["loss"] > 0 for entry in over["rounds"])
    assert set(over["rounds"][-1]["scores"]) == {"ann", "bob"}
    shown = story.team.run("nf-server", "status")
    assert shown.returncode == 0, shown.stderr
    for words in ("members", r"eve +│ revoked", "committed rounds", rf"│ +{ROUNDS} │"):
        assert re.search(words, shown.stdout), words


def test_an_update_of_a_revoked_machine_counts_no_more_and_it_is_told_so(story: Story) -> None:
    before, after = (
        story.team.records[: story.records_at_revocation],
        story.team.records[story.records_at_revocation :],
    )
    assert any(record["kind"] == "Accepted" and record["client"] == "eve" for record in before)
    assert not any(record["kind"] == "Accepted" and record["client"] == "eve" for record in after)
    assert not any(
        record["kind"] == "RoundBegan"
        and record["round"] > story.asked_at_revocation + 1
        and "eve" in record["clients"]
        for record in after
    )
    eve = story.clients["eve"]
    assert eve.popen.returncode == 1
    assert re.search("revoked|not accept", eve.errors[0]), eve.said
    assert all(line.startswith("  hint: ") for line in eve.errors[1:]), eve.said


def test_the_record_of_what_happened_can_be_read(story: Story) -> None:
    kinds = [record["kind"] for record in story.team.records]
    assert kinds.count("RoundCommitted") == kinds.count("RoundBegan") == ROUNDS
    assert kinds[-1] == "Finished"


def test_no_word_of_anybodys_code_reaches_the_server(story: Story) -> None:
    words = [b"volume_ann", b"volume_bob", b"volume_eve", b"VolumebobStore", b"code-ann", b"code-bob", b"volume.py"]
    source = (story.team.place / "code-ann" / "volume.py").read_bytes()
    assert words[0] in source  # else nothing below could be found
    looked_at = [path for root in (story.team.server, story.snapshot) for path in root.rglob("*") if path.is_file()]
    names = {path.name for path in looked_at}
    assert {"superlink.db", "rounds.db", "records.jsonl", "superlink.log"} <= names
    # Updates are in Flower's database as it was copied: what is not found there was not sent.
    sent = b"".join(path.read_bytes() for path in story.snapshot.glob("superlink.db*"))
    assert b'"tokens": ' in sent
    for path in (*looked_at, story.server.log):
        content = path.read_bytes()
        assert [word for word in words if word in content] == [], path


def test_what_the_server_and_a_client_keep_is_for_their_owners_alone(story: Story) -> None:
    homes = [story.team.server, *(story.team.place / f"home-{name}" for name in story.team.members)]
    for home in homes:
        assert stat.S_IMODE(home.stat().st_mode) == 0o700, home
    private = {"ca.key", "server.key", "superlink.secret", "node.key", "rounds.lock", "records.jsonl", "superlink.log"}
    seen = set()
    for home in homes:
        for path in home.rglob("*"):
            if path.name in private or path.suffix in (".db", ".nfstate") or "states" in path.parts:
                seen.add(path.name)
                mode = stat.S_IMODE(path.stat().st_mode)
                assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))
    assert private | {"rounds.db", "identity.db", "superlink.db", "states"} <= seen


# Whom it lets in


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A federation that waits for its members; ann has joined."""
    with Team(place=tmp_path_factory.mktemp("waiting")) as team:
        team.wait_for_server(team.start_server())
        team.join("ann")
        yield team


def is_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: "), done.stderr
    assert re.search(words, lines[0]), done.stderr
    assert all(line.startswith("  hint: ") for line in lines[1:]), done.stderr


def train(team: Team, name: str, home: str) -> subprocess.CompletedProcess[str]:
    return team.run("nf-client", "train", "--server", team.address, "--config", f"{name}.yaml", home=home)


def test_a_machine_that_never_joined_is_refused(waiting: Team) -> None:
    is_refused(train(waiting, "bob", "bob"), "has not joined")


def test_a_token_is_good_once(waiting: Team) -> None:
    invited = waiting.run("nf-server", "invite", "bob")
    line = next(line for line in invited.stdout.splitlines() if " join " in line)
    assert waiting.run("nf-client", *shlex.split(line)[1:], home="bob").returncode == 0
    is_refused(waiting.run("nf-client", *shlex.split(line)[1:], home="thief"), "token|invitation")
    assert not list((waiting.place / "home-thief").rglob("node.pem"))


def test_another_federations_authority_is_refused_by_the_client(waiting: Team, tmp_path: Path) -> None:
    with Team(place=tmp_path, first_port=waiting.first_port) as other:  # at the same address, and never started
        home = waiting.place / "home-misled"
        shutil.copytree(waiting.place / "home-ann", home)
        (joined,) = (home / "federations").iterdir()
        shutil.copyfile(other.server / "ca.pem", joined / "ca.pem")
        is_refused(train(waiting, "ann", "misled"), "authority|fingerprint|certificate")
        # Where its own record of the fingerprint is another one as well, it is the handshake that fails.
        document = json.loads((joined / "federation.json").read_text())
        fingerprint = other.status()["fingerprint"]
        changed = json.dumps(document).replace(str(waiting.status()["fingerprint"]), str(fingerprint))
        assert str(fingerprint) in changed
        (joined / "federation.json").write_text(changed)
        is_refused(train(waiting, "ann", "misled"), "not a server of this federation|certificate|authority")


def test_a_join_with_another_fingerprint_is_refused_before_the_token_is_sent(waiting: Team) -> None:
    invited = waiting.run("nf-server", "invite", "carl")
    line = next(line for line in invited.stdout.splitlines() if " join " in line)
    words = [re.sub("sha256:[0-9a-f]{64}", "sha256:" + 64 * "0", word) for word in shlex.split(line)[1:]]
    is_refused(waiting.run("nf-client", *words, home="carl"), "fingerprint")
    assert waiting.run("nf-client", *shlex.split(line)[1:], home="carl").returncode == 0  # the token was not used up


def test_a_node_key_that_nobody_registered_is_refused(waiting: Team) -> None:
    ca = (waiting.server / "ca.pem").read_bytes()
    stranger = connect(
        f"localhost:{waiting.first_port + 2}", ca, ec.generate_private_key(ec.SECP384R1()), old_session_wait=1.0
    )
    with pytest.raises(FederationError, match="does not let this node in"), stranger:
        pass


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs", "/"]
)
def test_only_the_fleet_api_is_to_be_had_from_outside(waiting: Team, path: str) -> None:
    context = ssl.create_default_context(cafile=str(waiting.server / "ca.pem"))
    connection = http.client.HTTPSConnection("localhost", waiting.first_port + 2, context=context, timeout=20)
    for method in ("GET", "POST"):
        connection.request(method, path, b"", {"content-type": "application/x-protobuf"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (404, b"")
        connection.close()
    connection.request("GET", "/health")  # and the path is what they are refused for
    assert connection.getresponse().status == 200
    connection.close()


def test_a_second_coordinator_on_the_same_folder_is_refused(waiting: Team) -> None:
    is_refused(waiting.run("nf-server", "start", "--config", "server.yaml"), "in use by another coordinator")


def test_ports_that_another_federation_uses_are_one_line(waiting: Team, tmp_path: Path) -> None:
    with Team(place=tmp_path, first_port=waiting.first_port) as other:
        is_refused(other.run("nf-server", "start", "--config", "server.yaml"), r"127\.0\.0\.1:\d+.* in use")
        assert not list((other.server / "states").glob("*.nfstate"))


# The other ways to aggregate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "served_rank"),
    [
        ("aggregation: {method: frozen-a}\n", 4),
        ("aggregation: {method: alternating}\n", 4),
        ("aggregation: {method: residual, residual_rank: 8}\n", 12),
        ("aggregation: {method: personal}\n", 4),
        ("aggregation: {method: svd}\nwire: {format: int8}\n", 4),
    ],
    ids=["frozen-a", "alternating", "residual", "personal", "svd with a client of rank 2"],
)
def test_a_federation_ends_with_whatever_method(tmp_path: Path, more: str, served_rank: int) -> None:
    low = "svd" in more
    with Team(place=tmp_path, rounds=2, more=more) as team:
        team.wait_for_server(server := team.start_server())
        team.join_all()
        clients = [team.start_client("ann"), team.start_client("bob", *(("--max-rank", "2") if low else ()))]
        for process in (*clients, server):
            assert process.ends(150) == 0, process.said + server.said
        assert team.committed() == 2
        mine = [read_adapter_folder(team.place / f"{name}-together.lora") for name in team.members]
        matrices = [
            {name: matrix for name, matrix in folder.state.items() if ".lora_B." in name or "lora_B" in name}
            for folder in mine
        ]
        assert all(np.abs(matrix).max() > 0 for own in matrices for matrix in own.values())
        if "personal" in more:
            # A is everybody's, B each client's own; the server has nothing to serve.
            assert not (team.server / "adapter.lora").exists()
            assert any(not np.array_equal(matrices[0][name], matrices[1][name]) for name in matrices[0])
        else:
            assert [folder.spec.rank for folder in mine] == [served_rank, served_rank]
            assert (team.place / "ann-together.lora" / "adapter_model.safetensors").read_bytes() == team.adapter_bytes


def test_the_rigs_wait_fails_where_nothing_comes() -> None:
    with pytest.raises(AssertionError, match="not in 0 s: never"):
        wait_until(lambda: False, seconds=0, what="never")
