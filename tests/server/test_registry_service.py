"""A registry over real TLS: publish, search, pull, yank; who may what; and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from registry_rig import ALICE, MALLORY, Person, RegistryRig, code, files_of, make_adapter, refusal, registry_rig, trust

from neuralforge_common.folder import Evaluation, Scores
from neuralforge_common.protocol import enrolment_pb2, enrolment_pb2_grpc
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.index import check_current, read_index
from neuralforge_common.signing.keys import decode_public_key

WORSE = Evaluation(base=Scores(perplexity=6.0), adapter=Scores(perplexity=6.0), samples=40)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RegistryRig]:
    with registry_rig(tmp_path) as made:
        yield made


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "spring.lora")


def begun(person: Person, folder: Path, **claims: object) -> str:
    """An upload to which everything has come in."""
    files = files_of(folder)
    upload = person.begin(files, **claims).upload
    for data in {hashlib.sha256(data).digest(): data for data in files.values()}.values():
        person.upload(upload, data)
    return upload


def test_what_one_member_publishes_another_pulls_byte_for_byte(rig: RegistryRig, adapter: Path) -> None:
    alice, bob = rig.member("alice", "blue"), rig.member("bob", "blue", "read")
    reply = alice.publish(adapter, tags=("spring", "java"))
    release = bob.resolve()
    assert {file.name: bob.download(release, file.name) for file in release.files} == files_of(adapter)
    assert (release.digest, release.signer) == (reply.digest, ALICE.public.fingerprint)
    assert bob.resolve().downloads == 1
    assert bob.search(text="spring BOOT", language="java") == ["blue/spring@1.0.0"]
    assert [(e.who, e.what) for e in audit_of(rig)] == [("member:alice", "publish"), ("member:bob", "pull")]


def audit_of(rig: RegistryRig) -> list:
    from neuralforge_server.registry.audit import read

    return [entry for entry in read(rig.registry.database) if entry.who != "operator"]


def test_a_registry_tells_whom_it_takes_a_caller_for(rig: RegistryRig) -> None:
    told = rig.member("alice", "blue", "admin").call("Describe", messages.DescribeRequest())
    assert (told.caller, told.teams[0].team, told.teams[0].scope) == ("member:alice", "blue", messages.ADMIN)
    nobody = rig.stranger().call("Describe", messages.DescribeRequest())
    assert (nobody.caller, list(nobody.teams), nobody.member_port) == ("", [], rig.running.member_port)


def test_the_authority_answers_where_tokens_go_and_nobody_joins_there(rig: RegistryRig) -> None:
    credentials = grpc.ssl_channel_credentials(rig.state.authority_pem)
    with grpc.secure_channel(f"localhost:{rig.running.port}", credentials) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        assert stub.Authority(enrolment_pb2.AuthorityRequest()).certificate_pem == rig.state.authority_pem
        assert code(stub.Join, enrolment_pb2.JoinRequest(token="x")) == "UNIMPLEMENTED"


# Who may see what


@pytest.mark.parametrize("visibility", [messages.TEAM, messages.PRIVATE])
def test_what_others_may_not_see_answers_as_what_is_not_there(rig: RegistryRig, adapter: Path, visibility: int) -> None:
    rig.member("alice", "blue").publish(adapter, visibility=visibility)
    digest = files_of(adapter)["adapter_model.safetensors"]
    for other in (rig.member("eve", "red", "admin"), rig.token("red", "admin"), rig.stranger()):
        for method, message in (("Resolve", messages.ResolveRequest), ("Yank", messages.YankRequest)):
            there, absent = (
                refusal(other.call, method, message(team=team, name="spring", version="1.0.0"))
                for team in ("blue", "green")
            )
            assert (there.code(), there.details()) == (absent.code(), absent.details())
            assert there.code() is grpc.StatusCode.NOT_FOUND
            assert there.trailing_metadata() == absent.trailing_metadata()
        hidden = messages.Release(team="blue", name="spring", version="1.0.0")
        assert code(other.download, hidden, "metadata.json") == "NOT_FOUND"
        assert other.search() == other.search(text="spring") == other.search(team="blue") == []
        assert index_of(rig, other) == []
    # Nor does it save an upload that somebody else has those bytes: that would tell that they are there.
    held = rig.member("mallory", "red").begin(files_of(adapter), team="red").held
    assert {each.bytes for each in held} == {0}
    assert digest not in held


def index_of(rig: RegistryRig, person: Person) -> list[str]:
    key = decode_public_key(person.call("Describe", messages.DescribeRequest()).index_key_pem, "index key")
    index = read_index(person.index(), key)
    check_current(index, (), now=datetime.now(UTC))
    return [f"{entry.team}/{entry.name}@{entry.version}" for entry in index.entries]


def test_private_is_for_the_publisher_and_admins_team_for_the_team_public_for_everybody(
    rig: RegistryRig, tmp_path: Path
) -> None:
    alice, bob, carol = rig.member("alice", "blue"), rig.member("bob", "blue"), rig.member("carol", "blue", "admin")
    for number, visibility in enumerate((messages.PRIVATE, messages.TEAM, messages.PUBLIC)):
        alice.publish(make_adapter(tmp_path / f"{number}.lora", name=f"a{number}", seed=number), visibility=visibility)
    all_three = ["blue/a0@1.0.0", "blue/a1@1.0.0", "blue/a2@1.0.0"]
    for person, wanted in (
        (alice, all_three),
        (carol, all_three),
        (bob, all_three[1:]),
        (rig.token("blue", "read"), all_three[1:]),
        (rig.token("red"), all_three[2:]),
        (rig.stranger(), all_three[2:]),
    ):
        assert person.search() == index_of(rig, person) == wanted


def test_who_leaves_a_team_sees_no_longer_what_is_the_teams(rig: RegistryRig, adapter: Path) -> None:
    alice = rig.member("alice", "blue")
    alice.publish(adapter, visibility=messages.PRIVATE)
    rig.registry.access.remove_member("blue", "alice")
    assert code(alice.resolve) == "NOT_FOUND"


# Who is who


@pytest.mark.parametrize("token", ["", "nfr_nothing", "x" * 5000])
def test_a_token_that_nobody_made_does_not_count(rig: RegistryRig, token: str) -> None:
    assert code(rig.bearer(token).search) == "UNAUTHENTICATED"


def test_a_token_counts_until_it_expires_or_is_revoked(rig: RegistryRig) -> None:
    short, long = rig.token("blue", life=60), rig.token("blue", life=6000)
    assert short.search() == long.search() == []
    rig.clock.ahead = 61
    assert code(short.search) == "UNAUTHENTICATED"
    assert long.search() == []
    (token,) = [each for each in rig.registry.access.tokens() if each.expires - each.made > 100]
    rig.registry.access.revoke_token(token.id)
    assert code(long.search) == "UNAUTHENTICATED"


def test_no_token_is_kept_anywhere(rig: RegistryRig) -> None:
    _, text = rig.registry.access.make_token("blue", "read", life=60)
    assert rig.bearer(text).search() == []
    for path in rig.state.path.rglob("*"):
        assert not path.is_file() or text.encode() not in path.read_bytes(), path


def test_a_node_that_is_revoked_is_refused_at_once(rig: RegistryRig) -> None:
    alice = rig.member("alice", "blue")
    assert alice.search() == []
    rig.identities.revoke("alice")
    assert code(alice.search) == "UNAUTHENTICATED"


def test_the_members_port_wants_a_certificate(rig: RegistryRig) -> None:
    credentials = grpc.ssl_channel_credentials(rig.state.authority_pem)
    with grpc.secure_channel(f"localhost:{rig.running.member_port}", credentials) as channel:
        from neuralforge_common.protocol import registry_pb2_grpc as services

        assert code(services.RegistryStub(channel).Search, messages.SearchRequest(), timeout=10) == "UNAVAILABLE"


def test_publishing_needs_the_scope_and_teams_that_are_not_there_answer_alike(rig: RegistryRig, adapter: Path) -> None:
    files = files_of(adapter)
    for person in (rig.stranger(), rig.token("blue", "read"), rig.token("red", "admin"), rig.member("eve", "red")):
        real, none = (refusal(person.begin, files, team=team) for team in ("blue", "green"))
        assert real.code() is none.code() is grpc.StatusCode.PERMISSION_DENIED
        assert real.details().replace("blue", "green") == none.details()


def test_an_upload_is_its_beginners_alone(rig: RegistryRig, adapter: Path) -> None:
    upload = begun(rig.member("alice", "blue"), adapter)
    bob = rig.member("bob", "blue", "admin")
    assert code(bob.finish, upload) == code(bob.finish, "0" * 32) == "NOT_FOUND"
    assert code(bob.upload, upload, files_of(adapter)["README.md"]) == "NOT_FOUND"


# What may be published


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key": MALLORY}, "is no key that signs for blue here"),
        ({"evaluation": None}, "was not evaluated"),
        ({"evaluation": WORSE}, "does not beat its base"),
    ],
)
def test_what_the_policy_refuses_is_not_published(
    rig: RegistryRig, tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    alice = rig.member("alice", "blue")
    error = refusal(alice.publish, make_adapter(tmp_path / "a.lora", **fields))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert said in error.details()
    assert str(rig.state.path) not in error.details()
    assert dict(error.trailing_metadata())["hint-bin"]
    assert code(alice.resolve) == "NOT_FOUND"
    assert not list((rig.state.path / "registry" / "blobs").rglob("*/*"))


def test_allow_worse_publishes_a_worse_one_for_everybody_to_see(rig: RegistryRig, tmp_path: Path) -> None:
    alice = rig.member("alice", "blue")
    alice.publish(make_adapter(tmp_path / "a.lora", evaluation=WORSE, allow_worse=True))
    assert alice.resolve().allow_worse


def test_an_unsigned_adapter_is_refused_before_its_bytes_travel(rig: RegistryRig, tmp_path: Path) -> None:
    error = refusal(rig.member("alice", "blue").begin, files_of(make_adapter(tmp_path / "a.lora", key=None)))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "model.sig is missing")


def test_a_file_that_was_changed_after_signing_is_refused(rig: RegistryRig, adapter: Path) -> None:
    (adapter / "README.md").write_text("trust me")
    error = refusal(rig.member("alice", "blue").publish, adapter)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "'README.md' was changed after it was signed" in error.details()


def test_nobody_passes_one_adapter_off_as_another(rig: RegistryRig, adapter: Path) -> None:
    alice = rig.member("alice", "blue")
    for claims, said in (({"name": "summer"}, "name: "), ({"version": "2.0.0"}, "version: ")):
        error = refusal(alice.publish, adapter, **claims)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error.details().startswith(said)


def test_a_key_that_is_revoked_signs_nothing_more(rig: RegistryRig, tmp_path: Path) -> None:
    from enrolment_rig import now

    from neuralforge_common.signing.keyring_file import change_keyring

    alice = rig.member("alice", "blue")
    alice.publish(make_adapter(tmp_path / "a.lora"))
    change_keyring(rig.registry.keyring, lambda ring: ring.without("alice", now=now(), reason="stolen"))
    error = refusal(alice.publish, make_adapter(tmp_path / "b.lora", version="1.0.1"))
    assert "revoked on" in error.details()
    assert alice.resolve().version == "1.0.0"


def test_a_key_of_one_team_does_not_sign_for_another(rig: RegistryRig, tmp_path: Path) -> None:
    trust(rig.registry, "mallory", MALLORY, "red")
    folder = make_adapter(tmp_path / "a.lora", key=MALLORY)
    assert code(rig.member("alice", "blue").publish, folder) == "FAILED_PRECONDITION"
    rig.member("eve", "red").publish(folder, team="red")


# Versions


def test_a_version_never_changes(rig: RegistryRig, adapter: Path, tmp_path: Path) -> None:
    alice = rig.member("alice", "blue")
    alice.publish(adapter)
    for version in ("1.0.0", "1.0.0+again"):
        other = make_adapter(tmp_path / f"{version}.lora", seed=1, version=version)
        assert code(alice.publish, other) == "ALREADY_EXISTS"
    release = alice.resolve()
    assert alice.download(release, "model.sig") == (adapter / "model.sig").read_bytes()


def test_of_many_who_publish_one_version_at_a_time_one_wins(rig: RegistryRig, tmp_path: Path) -> None:
    people = [rig.member(f"m{number}", "blue") for number in range(6)]
    folders = [make_adapter(tmp_path / f"{number}.lora", seed=number) for number in range(6)]
    uploads = [begun(person, folder) for person, folder in zip(people, folders, strict=True)]

    def finish(number: int) -> str | None:
        try:
            return people[number].finish(uploads[number]).digest
        except grpc.RpcError as error:
            return None if error.code() is grpc.StatusCode.ALREADY_EXISTS else error.details()

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(finish, range(6)))
    (winner,) = [number for number, outcome in enumerate(outcomes) if outcome is not None]
    release = people[0].resolve()
    assert release.digest == outcomes[winner]
    assert people[0].download(release, "lora_weights.bin") == (folders[winner] / "lora_weights.bin").read_bytes()


def test_finishing_again_says_the_same(rig: RegistryRig, adapter: Path) -> None:
    alice = rig.member("alice", "blue")
    upload = begun(alice, adapter)
    assert alice.finish(upload) == alice.finish(upload)
    assert [entry.what for entry in audit_of(rig)] == ["publish"]


def test_the_latest_is_the_newest_that_is_no_prerelease_and_not_yanked(rig: RegistryRig, tmp_path: Path) -> None:
    alice = rig.member("alice", "blue")
    for number, version in enumerate(("1.10.0", "1.9.0", "2.0.0-rc.1")):
        alice.publish(make_adapter(tmp_path / f"{number}.lora", version=version, seed=number))
    assert alice.resolve().version == "1.10.0"
    alice.call("Yank", messages.YankRequest(team="blue", name="spring", version="1.10.0", reason="forgets imports"))
    assert alice.resolve().version == "1.9.0"
    assert alice.search() == ["blue/spring@1.9.0"]
    yanked = alice.resolve(version="1.10.0")
    assert (yanked.yanked, yanked.yank_reason) == (True, "forgets imports")
    assert alice.download(yanked, "model.sig")
    assert index_of(rig, alice) == [f"blue/spring@{version}" for version in ("1.9.0", "1.10.0", "2.0.0-rc.1")]


def test_who_did_not_publish_a_version_does_not_yank_it_but_an_admin_does(rig: RegistryRig, adapter: Path) -> None:
    rig.member("alice", "blue").publish(adapter, visibility=messages.PUBLIC)
    request = messages.YankRequest(team="blue", name="spring", version="1.0.0")
    for other in (rig.member("bob", "blue"), rig.token("red", "admin"), rig.stranger()):
        assert code(other.call, "Yank", request) == "PERMISSION_DENIED"
    rig.member("carol", "blue", "admin").call("Yank", request)
    assert rig.stranger().search() == []
