"""Identities: made and registered when a machine joins, pinned by the others, shown to people, kept private."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from enrolment_rig import Rig, rig

from neuralforge.federation.channel import open_channel
from neuralforge.federation.home import open_federation
from neuralforge.federation.rotate import rotate_key
from neuralforge.federation.secagg.member import member_of
from neuralforge.federation.secagg.pins import Peers, Pins
from neuralforge_common.certificates import create_request, private_pem
from neuralforge_common.errors import FederationError, StorageError
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services
from neuralforge_common.secagg.keys import fingerprint, public_bytes

Cli = Callable[..., subprocess.CompletedProcess[str]]
ANN, BOB, EVE = (bytes([letter]) * 32 for letter in b"abe")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_joining_makes_an_identity_and_registers_its_public_half(server: Rig, tmp_path: Path) -> None:
    joined = server.joined("ann", tmp_path)
    assert joined.identity is not None
    assert server.identities.peer_identities()["ann"] == public_bytes(joined.identity)
    assert stat.S_IMODE((joined.folder / "identity.key").stat().st_mode) == 0o600
    member = member_of(joined)
    assert member is not None
    assert member.name == "ann"


def test_the_identity_stays_when_the_node_key_changes_and_goes_with_the_node(server: Rig, tmp_path: Path) -> None:
    joined = server.joined("bob", tmp_path)
    before = server.identities.peer_identities()["bob"]
    rotate_key(joined)
    assert server.identities.peer_identities()["bob"] == before
    server.identities.revoke("bob")
    assert "bob" not in server.identities.peer_identities()
    again = server.joined("bob", tmp_path / "again")
    assert again.identity is not None
    assert server.identities.peer_identities()["bob"] == public_bytes(again.identity) != before


@pytest.mark.parametrize(("length", "registered"), [(0, False), (32, True)])
def test_an_older_client_joins_without_one(server: Rig, length: int, registered: bool) -> None:
    name = f"old-{length}"
    ask_to_join(server, name, bytes(length))
    assert (name in server.identities.peer_identities()) is registered


def test_what_cannot_be_an_identity_is_refused_and_the_token_stays_good(server: Rig) -> None:
    with pytest.raises(Exception, match="wanted 32 bytes, got 31"):
        ask_to_join(server, "short", bytes(31))


def ask_to_join(server: Rig, name: str, identity: bytes) -> None:
    request = messages.JoinRequest(
        token=server.identities.invite(name),
        signing_request_pem=create_request(ec.generate_private_key(ec.SECP384R1())),
        identity=identity,
    )
    with open_channel("localhost", server.running.port, roots=server.state.authority_pem) as channel:
        services.EnrolmentStub(channel).Join(request, timeout=10)


def test_a_machine_that_joined_without_one_takes_part_in_no_such_round(server: Rig, tmp_path: Path) -> None:
    joined = server.joined("without", tmp_path)
    (joined.folder / "identity.key").unlink()
    assert member_of(open_federation(server.address, home=tmp_path)) is None


@pytest.mark.parametrize("damage", ["loose", "other"])
def test_an_identity_that_others_could_read_or_that_is_none_is_not_used(
    server: Rig, tmp_path: Path, damage: str
) -> None:
    joined = server.joined(f"damaged-{damage}", tmp_path)
    path = joined.folder / "identity.key"
    if damage == "loose":
        path.chmod(0o644)
    else:
        path.write_bytes(private_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(StorageError, match=r"others than its owner|wanted an Ed25519 key"):
        member_of(joined)


# Pins


def test_what_is_seen_first_is_kept_and_a_change_is_named_with_both_fingerprints(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "peers.json")
    pins.check({"ann": ANN})
    pins.check({"ann": ANN, "bob": BOB})
    with pytest.raises(FederationError, match=f"bob shows another identity.*{fingerprint(EVE)}.*{fingerprint(BOB)}"):
        pins.check({"ann": ANN, "bob": EVE, "new": EVE})
    assert pins.read() == Peers(keys={"ann": ANN, "bob": BOB})
    assert stat.S_IMODE(pins.path.stat().st_mode) == 0o600


def test_more_peers_than_the_file_may_hold_are_refused_and_it_can_still_be_read(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "peers.json")
    pins.check({"ann": ANN})
    invented = {f"{number:04d}{chr(0x1F600) * 60}": EVE for number in range(3000)}
    with pytest.raises(StorageError, match=r"cannot take 3,001 peers"):
        pins.check(invented)
    assert pins.read() == Peers(keys={"ann": ANN})


def test_a_client_that_keeps_a_new_peer_does_not_undo_what_a_person_does_meanwhile(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "peers.json")
    keeper = Thread(target=pins.check, args=({"ann": ANN},))

    def close(peers: Peers) -> Peers:
        keeper.start()
        keeper.join(0.2)
        assert keeper.is_alive()
        return replace(peers, keys={"ann": ANN}, closed=True)

    pins.change(close)
    keeper.join(10)
    assert pins.read() == Peers(keys={"ann": ANN}, closed=True)


def test_after_they_were_closed_nobody_new_is_believed(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "peers.json")
    pins.write(Peers(keys={"ann": ANN}, closed=True))
    pins.check({"ann": ANN})
    with pytest.raises(FederationError, match=f"eve.*{fingerprint(EVE)}.*none of the peers"):
        pins.check({"ann": ANN, "eve": EVE})
    assert pins.read() == Peers(keys={"ann": ANN}, closed=True)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", '{"format": 1}', '{"format": 2, "closed": false, "peers": {}}',
        '{"format": 1, "closed": 0, "peers": {}}', '{"format": 1, "closed": false, "peers": []}',
        '{"format": 1, "closed": false, "peers": {"ann": "00"}}',
        '{"format": 1, "closed": false, "peers": {"ann": 7}}',
    ],
)  # fmt: skip
def test_damaged_pins_are_not_taken_for_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(StorageError, match="is damaged"):
        Pins(path).check({"ann": ANN})


# Commands


def test_people_see_the_same_fingerprint_on_every_machine(server: Rig, tmp_path: Path, cli: Cli) -> None:
    home = tmp_path / "home"
    joined = server.joined("carl", home)
    assert joined.identity is not None
    own = fingerprint(public_bytes(joined.identity))
    Pins(joined.peers).check({"ann": ANN, "bob": BOB})
    shown = cli("peers", "--close", cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        f"{own}  carl (this machine)",
        f"{fingerprint(ANN)}  ann",
        f"{fingerprint(BOB)}  bob",
        "nobody else is believed",
    ]
    forgotten = cli("peers", "--forget", "bob", cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert f"{fingerprint(BOB)}" not in forgotten.stdout
    assert Pins(joined.peers).read() == Peers(keys={"ann": ANN}, closed=True)
    unknown = cli("peers", "--forget", "bob", cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert (unknown.returncode, unknown.stderr) == (1, "error: no peer called 'bob' is known here\n")
