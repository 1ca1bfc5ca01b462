"""The members' port: only who holds the key of a registered certificate is answered, and only as long as it counts."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from enrolment_rig import Rig, now, rig

from neuralforge.federation.channel import Refused, open_channel
from neuralforge.federation.home import JoinedFederation, open_federation
from neuralforge.federation.membership import describe, membership
from neuralforge.federation.rotate import rotate_key
from neuralforge_common.certificates import (
    certificate_pem,
    create_authority,
    create_request,
    issue_node_certificate,
    openssh_public_key,
    private_pem,
)
from neuralforge_common.errors import FederationError, StorageError
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services
from neuralforge_common.rotation import sign_rotation


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("team")) as running:
        yield running


@pytest.fixture
def joined(team: Rig, tmp_path: Path, request: pytest.FixtureRequest) -> JoinedFederation:
    """A node that no other test has."""
    name = f"node-{abs(hash(request.node.name)):x}"
    return team.joined(name, tmp_path / "home")


def answer(team: Rig, key: ec.EllipticCurvePrivateKey | None, certificate: bytes | None) -> str:
    """What the members' port says to a key and a certificate: the caller's name, or a status and words."""
    pem = None if key is None else private_pem(key)
    port = team.running.member_port
    with open_channel("127.0.0.1", port, roots=team.state.authority_pem, key=pem, certificate=certificate) as channel:
        try:
            return str(services.MembershipStub(channel).Describe(messages.DescribeRequest(), timeout=10).name)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


def test_without_a_certificate_and_with_one_by_another_authority_there_is_no_connection(team: Rig) -> None:
    assert answer(team, None, None).startswith("UNAVAILABLE")
    key = ec.generate_private_key(ec.SECP384R1())
    foreign = issue_node_certificate(create_authority(now()), key.public_key(), "laptop-7", 7, now())
    assert answer(team, key, certificate_pem(foreign)).startswith("UNAVAILABLE")


def test_a_certificate_by_our_authority_that_was_never_registered_is_refused(team: Rig) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    stray = issue_node_certificate(team.state.authority, key.public_key(), "laptop-7", 7, now())
    assert answer(team, key, certificate_pem(stray)) == "PERMISSION_DENIED: this certificate is not registered here"


def test_the_servers_own_certificate_is_no_members(team: Rig) -> None:
    from neuralforge_common.certificates import read_private_key

    key = read_private_key(team.state.server_key_pem, "server.key")
    assert answer(team, key, team.state.server_pem).startswith("UNAVAILABLE")


def test_a_revoked_member_is_refused_at_once_on_a_connection_that_is_open(team: Rig, joined: JoinedFederation) -> None:
    with membership(joined) as stub:
        assert stub.Describe(messages.DescribeRequest(), timeout=10).name == joined.record.name
        team.identities.revoke(joined.record.name)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Describe(messages.DescribeRequest(), timeout=10)
    assert caught.value.details() == f"{joined.record.name} was revoked"
    with pytest.raises(FederationError, match="was revoked") as refusal:
        describe(joined)
    assert "nf-server invite" in refusal.value.hint
    before = sorted(path.name for path in joined.folder.iterdir())
    with pytest.raises(FederationError, match="was revoked"):
        rotate_key(joined)
    assert sorted(path.name for path in joined.folder.iterdir()) == before


def test_after_a_rotation_the_new_key_counts_and_the_old_one_is_refused(team: Rig, joined: JoinedFederation) -> None:
    rotated = rotate_key(joined)
    assert rotated.key.public_key() != joined.key.public_key()
    assert describe(rotated).name == joined.record.name
    assert team.identities.active_keys()[joined.record.name] == openssh_public_key(rotated.key.public_key())
    line = f"PERMISSION_DENIED: {joined.record.name} goes on with another key: this one was replaced"
    assert answer(team, joined.key, certificate_pem(joined.certificate)) == line
    # The new certificate is worth nothing with the old key.
    assert answer(team, joined.key, certificate_pem(rotated.certificate)).startswith("UNAVAILABLE")
    assert sorted(path.name for path in joined.folder.iterdir()) == [
        "ca.pem",
        "federation.json",
        "identity.key",
        "node.key",
        "node.pem",
    ]
    with pytest.raises(Refused, match="goes on with another key"):
        rotate_key(joined)
    assert describe(rotate_key(rotated)).name == joined.record.name


def rotation(
    joined: JoinedFederation, signer: ec.EllipticCurvePrivateKey, **said: object
) -> tuple[messages.RotateKeyRequest, ec.EllipticCurvePrivateKey]:
    new_key = ec.generate_private_key(ec.SECP384R1())
    ago = float(str(said.pop("ago", 0.0)))
    true = {"name": joined.record.name, "new_key": new_key.public_key(), "time": time.time() - ago}
    signed = true | said
    return messages.RotateKeyRequest(
        signing_request_pem=create_request(new_key), time=signed["time"], signature=sign_rotation(signer, **signed)
    ), new_key


OTHER = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"name": "somebody-else"}, "not signed by the key that is to be replaced"),
        ({"new_key": OTHER.public_key()}, "not signed by the key that is to be replaced"),
        ({"ago": 1000.0}, "the rotation was signed -1"),
        ({"time": float("nan")}, "away from this clock"),
        ({"time": float("inf")}, "away from this clock"),
    ],
)
def test_a_rotation_that_says_something_else_is_refused(
    team: Rig, joined: JoinedFederation, said: dict[str, object], line: str
) -> None:
    request, _ = rotation(joined, joined.key, **said)
    with membership(joined) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.RotateKey(request, timeout=10)
    assert line in caught.value.details()
    assert describe(joined).name == joined.record.name


def test_a_rotation_that_another_key_signed_is_refused(team: Rig, joined: JoinedFederation) -> None:
    request, new_key = rotation(joined, joined.key)
    for signature in (rotation(joined, OTHER)[0].signature, b"", b"\0" * 100):
        request.signature = signature
        with membership(joined) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.RotateKey(request, timeout=10)
        assert "not signed by the key" in caught.value.details()
    assert openssh_public_key(new_key.public_key()) not in team.identities.active_keys().values()


def test_one_member_cannot_take_the_key_of_another(team: Rig, joined: JoinedFederation, tmp_path: Path) -> None:
    other = team.joined(f"{joined.record.name}-b", tmp_path / "other")
    request = messages.RotateKeyRequest(
        signing_request_pem=create_request(other.key),
        time=(moment := time.time()),
        signature=sign_rotation(joined.key, name=joined.record.name, new_key=other.key.public_key(), time=moment),
    )
    with membership(joined) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.RotateKey(request, timeout=10)
    assert "this key is or was another node's" in caught.value.details()
    assert describe(joined).name == joined.record.name
    assert describe(other).name == other.record.name


def test_a_rotation_whose_answer_was_lost_is_finished_by_the_next_call(team: Rig, joined: JoinedFederation) -> None:
    # As rotate_key does it, up to the answer, which the machine did not live to see.
    request, new_key = rotation(joined, joined.key)
    (joined.folder / "node.key.next").write_bytes(private_pem(new_key, openssh=True))
    (joined.folder / "node.key.next").chmod(0o600)
    with membership(joined) as stub:
        stub.RotateKey(request, timeout=10)
    found = open_federation(joined.record.address, home=joined.folder.parents[1])
    with pytest.raises(FederationError, match="goes on with another key") as caught:
        describe(found)
    assert "nf-client rotate-key" in caught.value.hint
    finished = rotate_key(found)
    assert finished.key.private_numbers() == new_key.private_numbers()
    assert describe(finished).name == joined.record.name
    assert not (joined.folder / "node.key.next").exists()


def test_a_rotation_that_died_between_its_two_files_is_finished_by_opening(team: Rig, joined: JoinedFederation) -> None:
    old_key = (joined.folder / "node.key").read_bytes()
    rotated = rotate_key(joined)
    (joined.folder / "node.key").replace(joined.folder / "node.key.next")
    (joined.folder / "node.key").write_bytes(old_key)
    (joined.folder / "node.key").chmod(0o600)
    found = open_federation(joined.record.address, home=joined.folder.parents[1])
    assert found.key.private_numbers() == rotated.key.private_numbers()
    assert describe(found).name == joined.record.name
    assert not (joined.folder / "node.key.next").exists()


def test_where_nobody_answers_a_rotation_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with rig(tmp_path / "server") as gone:
        joined = gone.joined("laptop-7", tmp_path / "home")
    before = {path.name: path.read_bytes() for path in joined.folder.iterdir()}
    with pytest.raises(FederationError, match="connection refused"):
        rotate_key(joined)
    assert {path.name: path.read_bytes() for path in joined.folder.iterdir()} == before


def test_a_rotation_that_the_server_refuses_leaves_no_key_behind(team: Rig, joined: JoinedFederation) -> None:
    times = iter((time.time(), time.time() - 1000))
    with pytest.raises(Refused, match="away from this clock"):
        rotate_key(joined, clock=lambda: next(times))
    assert {path.name for path in joined.folder.iterdir()} == {
        "ca.pem",
        "federation.json",
        "identity.key",
        "node.key",
        "node.pem",
    }
    assert describe(rotate_key(joined)).name == joined.record.name


def test_files_that_are_loose_damaged_or_of_another_authority_are_refused(team: Rig, joined: JoinedFederation) -> None:
    def opened() -> JoinedFederation:
        return open_federation(joined.record.address, home=joined.folder.parents[1])

    key = joined.folder / "node.key"
    for path, loose, tight in (
        (key, 0o644, 0o600),
        (joined.folder, 0o755, 0o700),
        (joined.folder.parent, 0o710, 0o700),
    ):
        path.chmod(loose)
        with pytest.raises(StorageError, match=f"its mode is 0{loose:o}") as caught:
            opened()
        assert caught.value.hint == f"chmod {tight:o} {path}"
        path.chmod(tight)
    authority = create_authority(now())
    stray = issue_node_certificate(authority, OTHER.public_key(), "laptop-7", 7, now())
    for name, data, line in (
        ("ca.pem", certificate_pem(authority.certificate), "is not the authority that was pinned"),
        ("node.pem", certificate_pem(stray), "is not for node.key beside it"),
        ("node.pem", b"", "is not a certificate"),
        ("federation.json", b"{}", "wanted format 1"),
        ("federation.json", b"{", "not valid JSON"),
    ):
        whole = (joined.folder / name).read_bytes()
        (joined.folder / name).write_bytes(data)
        with pytest.raises((StorageError, FederationError), match=line):
            opened()
        (joined.folder / name).write_bytes(whole)
    opened()
