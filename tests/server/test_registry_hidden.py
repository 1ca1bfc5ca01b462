"""What is private to others and what is not there: the same words, and the same work before them.

The work is told by the database's statements, not by a clock: where they are the same, so is the time up to what an
index of one row more or less takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from registry_rig import Person, RegistryRig, files_of, make_adapter, registry_rig

from neuralforge_common.protocol import registry_pb2 as messages

NAMED = {"name": "spring", "version": "1.0.0"}
READS: dict[str, Callable[[str], object]] = {
    "Resolve": lambda team: messages.ResolveRequest(team=team, name="spring"),
    "Resolve by number": lambda team: messages.ResolveRequest(team=team, **NAMED),
    "Download": lambda team: messages.DownloadRequest(team=team, **NAMED, file="lora_weights.bin"),
    "Search": lambda team: messages.SearchRequest(team=team, text="spring"),
    "Yank": lambda team: messages.YankRequest(team=team, **NAMED),
}


@contextmanager
def statements(rig: RegistryRig) -> Iterator[list[str]]:
    """The statements that the registry's database is asked while the block runs."""
    said: list[str] = []

    def heard(connection: object, cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    engine = rig.registry.database._engine
    sa.event.listen(engine, "before_cursor_execute", heard)
    try:
        yield said
    finally:
        sa.event.remove(engine, "before_cursor_execute", heard)


def answer(person: Person, method: str, request: object) -> tuple[str, str, bytes]:
    """Status, words and what came back."""
    try:
        reply = person.call(method, request)
        parts = [reply] if hasattr(reply, "SerializeToString") else list(reply)
    except grpc.RpcError as error:
        return error.code().name, error.details(), repr(error.trailing_metadata()).encode()
    return "OK", "", b"".join(part.SerializeToString() for part in parts)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryRig]:
    place = tmp_path_factory.mktemp("hidden")
    with registry_rig(place) as made:
        made.registry.access.add_team("empty")
        adapter = make_adapter(place / "a.lora")
        made.member("alice", "blue").publish(adapter, visibility=messages.PRIVATE)
        yield made


@pytest.fixture(scope="module", params=["member", "token", "nobody"])
def other(rig: RegistryRig, request: pytest.FixtureRequest) -> Person:
    """Somebody of another team, with a certificate or a token that counts, and somebody with neither."""
    if request.param == "member":
        return rig.member("eve", "red", "admin")
    return rig.token("red", "admin") if request.param == "token" else rig.stranger()


@pytest.mark.parametrize("read", READS)
def test_the_same_answer_comes_after_the_same_statements(rig: RegistryRig, other: Person, read: str) -> None:
    method = read.partition(" ")[0]
    # A team with something private, one with nothing, and one that is not there.
    answers, work = [], []
    for team in ("blue", "empty", "nowhere"):
        with statements(rig) as said:
            answers.append(answer(other, method, READS[read](team)))
        work.append(said)
    assert work[0] == work[1] == work[2]
    assert work[0] != []
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == ("OK" if method == "Search" else "NOT_FOUND")


def test_to_publish_for_a_team_is_refused_alike_whether_or_not_it_has_that_version(
    rig: RegistryRig, tmp_path: Path
) -> None:
    files, eve = files_of(make_adapter(tmp_path / "b.lora", seed=5)), rig.member("mallory", "red", "admin")
    answers, work = [], []
    for team in ("blue", "empty", "nowhere"):
        with statements(rig) as said, pytest.raises(grpc.RpcError) as caught:
            eve.begin(files, team=team)
        answers.append((caught.value.code(), caught.value.details().replace(team, "TEAM")))
        work.append(said)
    assert answers[0] == answers[1] == answers[2]
    assert work[0] == work[1] == work[2]
    assert answers[0][0] is grpc.StatusCode.PERMISSION_DENIED


def test_what_one_may_see_does_take_other_statements(rig: RegistryRig) -> None:
    boss = rig.token("blue", "admin")
    with statements(rig) as there:
        assert answer(boss, "Resolve", READS["Resolve"]("blue"))[0] == "OK"
    with statements(rig) as absent:
        assert answer(boss, "Resolve", READS["Resolve"]("empty"))[0] == "NOT_FOUND"
    assert there != absent
