"""Joining over real gRPC and TLS: who is let in, who is not, and that no token reaches a stranger."""

import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from enrolment_rig import Impostor, Rig, impostor, now, rig

from neuralforge.federation.channel import open_channel
from neuralforge.federation.home import open_federation
from neuralforge.federation.join import join
from neuralforge.federation.membership import describe
from neuralforge_common.address import FederationAddress
from neuralforge_common.certificates import (
    certificate_pem,
    create_authority,
    create_request,
    create_server_certificate,
    openssh_public_key,
    private_pem,
)
from neuralforge_common.errors import FederationError, NeuralForgeError, StorageError, UsageError
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.protocol import enrolment_pb2_grpc as services
from neuralforge_server.enrolment import FailureLimit, serve_enrolment


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("team")) as running:
        yield running


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Rig]:
    """A federation of this test alone: its clock may be turned, its limits reached."""
    with rig(tmp_path / "server") as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refusal(rig: Rig, token: str, home: Path, *, address: FederationAddress | None = None) -> NeuralForgeError:
    """Join, which must fail and leave nothing behind."""
    with pytest.raises(NeuralForgeError) as caught:
        join(address or rig.address, token, home=home)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert everything_below(home) in ([], ["federations"])
    return caught.value


def test_a_machine_joins_and_may_ask(team: Rig, home: Path) -> None:
    joined = team.joined("laptop-1", home)
    assert (joined.record.name, joined.record.federation) == ("laptop-1", "team")
    assert team.identities.active_keys()["laptop-1"] == openssh_public_key(joined.key.public_key())
    assert describe(joined).name == "laptop-1"
    assert open_federation(team.address, home=home).key.private_numbers() == joined.key.private_numbers()
    assert joined.record.fleet_port == describe(joined).fleet_port == 8472


def test_what_joining_writes_is_private_and_the_key_is_one_that_flower_reads(team: Rig, home: Path) -> None:
    folder = team.joined("laptop-2", home).folder
    assert everything_below(folder) == ["ca.pem", "federation.json", "identity.key", "node.key", "node.pem"]
    for path in (home, folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "node.key").stat().st_mode) == 0o600
    assert isinstance(load_ssh_private_key((folder / "node.key").read_bytes(), None), ec.EllipticCurvePrivateKey)


def test_a_token_is_for_one_machine(team: Rig, tmp_path: Path) -> None:
    token = team.identities.invite("laptop-3")
    join(team.address, token, home=tmp_path / "a")
    assert "the token was used already" in refusal(team, token, tmp_path / "b").message


def test_of_two_machines_with_one_token_exactly_one_joins(team: Rig, tmp_path: Path) -> None:
    token = team.identities.invite("laptop-4")
    start = threading.Barrier(2)

    def attempt(name: str) -> str:
        start.wait()
        try:
            return join(team.address, token, home=tmp_path / name).record.name
        except FederationError as error:
            return error.message

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(attempt, ("a", "b")))
    assert answers == ["laptop-4", "the server refused: the token was used already: each lets one node join, once"]
    assert sorted(len(everything_below(tmp_path / name)) for name in ("a", "b")) == [1, 7]


def test_an_expired_an_unknown_and_a_withdrawn_token_are_refused(fresh: Rig, home: Path) -> None:
    token = fresh.identities.invite("laptop-7", life=1e-9)
    assert "the token expired 0 seconds ago" in refusal(fresh, token, home).message
    assert "the token is not known here" in refusal(fresh, "nfj_" + "x" * 43, home).message
    token = fresh.identities.invite("laptop-7")
    fresh.identities.revoke("laptop-7")
    error = refusal(fresh, token, home)
    assert "the token is not known here" in error.message
    assert "nf-server invite" in error.hint
    assert fresh.identities.active_keys() == {}


def test_a_second_join_is_refused_before_its_token_is_spent(team: Rig, home: Path) -> None:
    joined = team.joined("laptop-5", home)
    before = {path: path.read_bytes() for path in joined.folder.iterdir()}
    token = team.identities.invite("laptop-6")
    with pytest.raises(FederationError, match=r"has joined \S+ already") as caught:
        join(team.address, token, home=home)
    assert str(joined.folder) in caught.value.hint
    assert {path: path.read_bytes() for path in joined.folder.iterdir()} == before
    assert "laptop-6" in team.identities.invited()


def test_an_address_without_a_fingerprint_joins_nothing(team: Rig, home: Path) -> None:
    address = FederationAddress(host="localhost", port=team.running.port)
    with pytest.raises(UsageError, match="has no fingerprint"):
        join(address, "token", home=home)
    assert not home.exists()


def test_a_token_never_reaches_a_server_with_another_authority(team: Rig, home: Path) -> None:
    authority = create_authority(now())
    certificate, key = create_server_certificate(authority, ("localhost",), now())
    stranger = Impostor(certificate_pem(authority.certificate))
    with impostor(stranger, key=private_pem(key), certificate=certificate_pem(certificate)) as port:
        address = team.state.address(port)
        error = refusal(team, team.identities.invite("pinned-1"), home, address=address)
    assert "has another authority: its fingerprint is" in error.message
    assert team.state.fingerprint in error.message
    assert (stranger.asked, stranger.tokens) == (1, [])


def test_a_token_never_reaches_a_server_that_shows_our_authority_without_belonging_to_it(team: Rig, home: Path) -> None:
    # The authority's certificate is public: anybody can show it. Only who is under it has the token's trust.
    authority = create_authority(now())
    certificate, key = create_server_certificate(authority, ("localhost",), now())
    stranger = Impostor(team.state.authority_pem)
    with impostor(stranger, key=private_pem(key), certificate=certificate_pem(certificate)) as port:
        error = refusal(team, team.identities.invite("pinned-2"), home, address=team.state.address(port))
    assert "shows a certificate that its authority has not signed; the token was not sent" in error.message
    assert (stranger.asked, stranger.tokens) == (1, [])


def test_a_token_never_reaches_a_member_that_plays_the_server(team: Rig, home: Path) -> None:
    member = team.joined("localhost", home / "member")
    stranger = Impostor(team.state.authority_pem)
    token = team.identities.invite("pinned-3")
    with impostor(stranger, key=member.key_pem, certificate=certificate_pem(member.certificate)) as port:
        refusal(team, token, home / "joining", address=team.state.address(port))
    assert stranger.tokens == []


def test_the_impostor_does_record_what_it_gets(team: Rig, home: Path) -> None:
    # Otherwise the three tests above would say nothing.
    stranger = Impostor(team.state.authority_pem)
    certificate = team.state.server_pem
    with impostor(stranger, key=team.state.server_key_pem, certificate=certificate) as port:
        refusal(team, "nfj_recorded", home, address=team.state.address(port))
    assert stranger.tokens == ["nfj_recorded"]


def test_a_server_of_another_protocol_is_refused_with_both_versions(team: Rig, home: Path) -> None:
    stranger = Impostor(team.state.authority_pem, protocol=7)
    with impostor(stranger, key=team.state.server_key_pem, certificate=team.state.server_pem) as port:
        error = refusal(team, "token", home, address=team.state.address(port))
    assert f"the server speaks protocol 7 (version '9.9'), this client {PROTOCOL} (version " in error.message
    assert stranger.tokens == []


def test_a_host_that_the_certificate_does_not_name_is_refused(tmp_path: Path, home: Path) -> None:
    with rig(tmp_path, hosts=("build-box.example",)) as other:
        address = FederationAddress(host="localhost", port=other.running.port, fingerprint=other.state.fingerprint)
        error = refusal(other, other.identities.invite("laptop-7"), home, address=address)
        assert "certificate is for build-box.example, not for localhost" in error.message
        assert "--renew --host localhost" in error.hint
        assert "laptop-7" in other.identities.invited()


@pytest.mark.parametrize(("ahead", "who"), [(300, "this one is behind"), (-300, "this one is ahead")])
def test_clocks_that_are_apart_are_told_before_the_token_is_spent(
    fresh: Rig, home: Path, ahead: float, who: str
) -> None:
    token = fresh.identities.invite("laptop-7", life=7200)
    fresh.clock.ahead = ahead
    error = refusal(fresh, token, home)
    assert who in error.message
    assert "at most 240 are allowed" in error.message
    fresh.clock.ahead = 0
    assert join(fresh.address, token, home=home).record.name == "laptop-7"


def test_clocks_that_are_a_little_apart_do_no_harm(fresh: Rig, home: Path) -> None:
    joined = fresh.joined("laptop-7", home)
    for ahead in (200, -200):
        fresh.clock.ahead = ahead
        describe(joined)
    fresh.clock.ahead = 300
    with pytest.raises(FederationError, match="clock and the server's differ by 300 seconds"):
        describe(joined)


def test_nobody_there_and_something_else_there_are_one_line(fresh: Rig, home: Path) -> None:
    address = fresh.address
    fresh.running.stop(0)
    error = refusal(fresh, "token", home)
    assert error.message == f"cannot reach the server at localhost:{address.port}: connection refused"
    nowhere = FederationAddress(host="nowhere.invalid", fingerprint=address.fingerprint)
    assert "cannot reach the server at nowhere.invalid:8470: " in refusal(fresh, "token", home, address=nowhere).message

    import socket

    with socket.create_server(("127.0.0.1", 0)) as plain:

        def hello() -> None:
            stream, _ = plain.accept()
            with stream:
                stream.recv(10)
                stream.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

        thread = threading.Thread(target=hello)
        thread.start()
        other = FederationAddress(host="127.0.0.1", port=plain.getsockname()[1], fingerprint=address.fingerprint)
        assert "does not speak TLS" in refusal(fresh, "token", home, address=other).message
        thread.join()


def test_a_home_that_others_can_look_into_is_refused(team: Rig, home: Path) -> None:
    (home / "federations").mkdir(parents=True)
    (home / "federations").chmod(0o755)
    with pytest.raises(StorageError, match="its mode is 0755, wanted 0700"):
        join(team.address, "token", home=home)


def test_a_disk_that_fills_up_after_the_token_is_spent_leaves_nothing_and_says_how_to_go_on(
    team: Rig, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if any(home.rglob("node.pem")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    error = refusal(team, team.identities.invite("laptop-9"), home)
    assert "the disk is full" in error.message
    assert "the token is spent: make room, have 'laptop-9' revoked and invited again" in error.hint


def _join(rig: Rig, token: str, request: bytes) -> grpc.RpcError | messages.JoinReply:
    with open_channel("127.0.0.1", rig.running.port, roots=rig.state.authority_pem) as channel:
        try:
            reply: messages.JoinReply = services.EnrolmentStub(channel).Join(
                messages.JoinRequest(token=token, signing_request_pem=request), timeout=10
            )
        except grpc.RpcError as error:
            return error
        return reply


def test_a_key_that_is_not_p384_does_not_join_and_costs_no_token(fresh: Rig) -> None:
    token = fresh.identities.invite("laptop-7")
    error = _join(fresh, token, create_request(ec.generate_private_key(ec.SECP256R1())))
    assert isinstance(error, grpc.RpcError)
    assert "wanted one on P-384 (secp384r1), got secp256r1" in error.details()
    key = ec.generate_private_key(ec.SECP384R1())
    reply = _join(fresh, token, create_request(key))
    assert isinstance(reply, messages.JoinReply)
    # The very same key under another name: Flower would know two nodes by one key.
    error = _join(fresh, fresh.identities.invite("laptop-8"), create_request(key))
    assert isinstance(error, grpc.RpcError)
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_request_larger_than_any_is_refused_unread(fresh: Rig) -> None:
    request = create_request(ec.generate_private_key(ec.SECP384R1()))
    error = _join(fresh, "x" * 200_000, request)
    assert isinstance(error, grpc.RpcError)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    error = _join(fresh, "x" * 20_000, request)
    assert isinstance(error, grpc.RpcError)
    assert "larger than any" in error.details()


@pytest.mark.parametrize(
    "method", ["Enrolment/Authority", "Enrolment/Join", "Membership/Describe", "Membership/RotateKey"]
)
def test_bytes_that_are_no_message_are_refused_and_leave_no_trace(
    fresh: Rig, home: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    member, running = fresh.joined("laptop-7", home), fresh.running
    port, pair = running.port, {}
    if method.startswith("Membership"):
        port, pair = running.member_port, {"key": member.key_pem, "certificate": certificate_pem(member.certificate)}
    caplog.clear()
    with open_channel("127.0.0.1", port, roots=fresh.state.authority_pem, **pair) as channel:
        call = channel.unary_unary(f"/neuralforge.v1.{method}")
        # A number that no field has, a length beyond the end twice, and nothing behind a field's number.
        for data in (b"\xff\xff\xff", b"\x0a\x7fab", b"\x12\xff\xff\xff\xff\x0f", b"\x0a"):
            with pytest.raises(grpc.RpcError) as caught:
                call(data, timeout=10)
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "these bytes are no message of this service",
            )
        # The same connection goes on.
        assert method.endswith(("Join", "RotateKey")) or call(b"", timeout=10)
    assert caplog.text == ""
    assert describe(member).name == "laptop-7"


def test_guessing_tokens_is_slowed_down(fresh: Rig) -> None:
    request = create_request(ec.generate_private_key(ec.SECP384R1()))
    codes = [_join(fresh, f"guess {number}", request) for number in range(12)]
    assert [error.code().name for error in codes if isinstance(error, grpc.RpcError)] == (
        ["PERMISSION_DENIED"] * 10 + ["RESOURCE_EXHAUSTED"] * 2
    )


def test_the_limit_is_for_one_peer_ends_with_time_and_remembers_no_more_peers_than_it_may() -> None:
    time = [0.0]
    limit = FailureLimit(failures=2, seconds=60, peers=3, clock=lambda: time[0])
    for _ in range(5):
        limit.count("a")
    assert (limit.is_reached("a"), limit.is_reached("b")) == (True, False)
    time[0] = 60.0
    assert not limit.is_reached("a")
    for number in range(1000):
        limit.count(f"peer {number}")
    assert len(limit._seen) == 3


def test_neither_the_state_folder_nor_the_log_holds_a_token(
    fresh: Rig, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    used, unused = fresh.identities.invite("laptop-7"), fresh.identities.invite("laptop-8")
    joined = join(fresh.address, used, home=home)
    refusal(fresh, used, home / "again")
    describe(joined)
    places = [path.read_bytes() for folder in (fresh.state.path, home) for path in folder.rglob("*") if path.is_file()]
    assert len(places) > 8
    for token in (used, unused):
        assert not any(token.encode() in place for place in places)
        assert token not in caplog.text
    assert "laptop-7 joined from ipv4:127.0.0.1" in caplog.text
    assert "join refused, from ipv4:127.0.0.1: the token was used already" in caplog.text


def test_a_port_that_is_taken_and_a_host_of_another_machine_are_one_line(team: Rig) -> None:
    ports = {"port": 0, "member_port": 0, "fleet_port": 1, "federation": "team"}
    taken = team.running.port
    with pytest.raises(FederationError) as caught:
        serve_enrolment(team.state, team.identities, host="127.0.0.1", **ports | {"port": taken})
    assert caught.value.message == f"cannot listen on 127.0.0.1:{taken}: address already in use"
    assert "listen.port" in caught.value.hint
    with pytest.raises(FederationError, match=r"cannot listen on 192\.0\.2\.1:0: cannot assign"):
        serve_enrolment(team.state, team.identities, host="192.0.2.1", **ports)


def test_a_server_whose_registry_fails_tells_strangers_nothing_of_it(fresh: Rig, home: Path) -> None:
    token = fresh.identities.invite("laptop-7")
    fresh.identities._connection.execute("DROP TABLE invitations")
    error = refusal(fresh, token, home)
    assert "the server cannot use its storage" in error.message
    assert "invitations" not in error.message
    assert str(fresh.state.path) not in error.message
