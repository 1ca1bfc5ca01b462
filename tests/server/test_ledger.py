"""The ledger: what was committed is there, whole, whatever happened to the process or to the disk."""

import hashlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge_common.errors import FederationError, StorageError
from neuralforge_server.ledger import KEPT_STATES, Ledger

FACTS = {"federation": "team", "spec": {"rank": 8}}


def state_of(round_number: int, size: int = 200_000) -> bytes:
    return random.Random(round_number).randbytes(size)


def commit(ledger: Ledger, rounds: range, **figures: object) -> None:
    for number in rounds:
        ledger.begin_attempt(number)
        ledger.commit(number, state_of(number), {"loss": 1 / (number + 1), **figures})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def three_rounds(folder: Path) -> Path:
    with Ledger.open(folder) as ledger:
        ledger.open_with(FACTS)
        commit(ledger, range(4))
    return folder


def state_file(folder: Path, round_number: int) -> Path:
    return folder / "states" / f"{hashlib.sha256(state_of(round_number)).hexdigest()}.nfstate"


def flip_a_byte(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_new_ledger_has_nothing_to_go_on_from(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        assert ledger.latest() is None
        assert ledger.facts() == {}
        assert ledger.rounds() == ()
        assert ledger.norms(5, part="both") == ()


def test_what_was_committed_is_there_when_it_is_opened_again(three_rounds: Path) -> None:
    with Ledger.open(three_rounds) as ledger:
        latest = ledger.latest()
        assert latest is not None
        assert (latest.round, latest.state, latest.notices) == (3, state_of(3), ())
        assert ledger.facts() == FACTS
        assert [(each.round, each.attempts) for each in ledger.rounds()] == [(0, 1), (1, 1), (2, 1), (3, 1)]
        assert ledger.rounds()[2].figures == {"loss": 1 / 3}


def test_everything_is_for_its_owner_alone(three_rounds: Path) -> None:
    with Ledger.open(three_rounds):
        for path in [three_rounds, *three_rounds.rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("name", ["", "rounds.db", "states"])
def test_a_folder_that_others_can_read_is_refused(three_rounds: Path, name: str) -> None:
    (three_rounds / name).chmod(0o755)
    with pytest.raises(StorageError, match="others than its owner"):
        Ledger.open(three_rounds)


def test_a_second_coordinator_is_refused_and_told_who_is_there(folder: Path) -> None:
    with (
        Ledger.open(folder),
        pytest.raises(StorageError, match=f"in use by another coordinator .process {os.getpid()}"),
    ):
        Ledger.open(folder)
    Ledger.open(folder).close()


def test_one_may_look_while_a_coordinator_runs(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.open_with(FACTS)
        commit(ledger, range(2))
        with Ledger.look(folder) as looking:
            latest = looking.latest()
            assert latest is not None
            assert latest.round == 1
            commit(ledger, range(2, 3))
            assert [each.round for each in looking.rounds()] == [0, 1, 2]
            with pytest.raises(StorageError, match="readonly"):
                looking.begin_attempt(3)


def test_looking_where_nothing_was_begun_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no round was ever begun"):
        Ledger.look(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nonces_are_never_the_same_and_attempts_are_counted(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        commit(ledger, range(1))
        nonces = {ledger.begin_attempt(1) for _ in range(20)}
        assert len(nonces) == 20
        ledger.refuse(1, "laptop-7", "norm", "its norm is 900, at most 3 is allowed")
        ledger.commit(1, state_of(1), {})
        (_, first) = ledger.rounds()
        assert first.attempts == 20
        assert [(each.attempt, each.client, each.reason) for each in first.refusals] == [(20, "laptop-7", "norm")]


def test_norms_of_the_newest_rounds_are_remembered_oldest_first(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        for number in range(5):
            ledger.commit(number, state_of(number), {"norms": [number, number + 0.5], "part": "both"})
        assert ledger.norms(2, part="both") == (3.0, 3.5, 4.0, 4.5)
        assert ledger.norms(99, part="both") == (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5)


def test_scores_belong_to_their_round(three_rounds: Path) -> None:
    with Ledger.open(three_rounds) as ledger:
        ledger.note_scores(2, [{"client": "a", "loss": 2.0}])
        ledger.note_scores(2, [{"client": "a", "loss": 1.0}])
        assert [each.scores for each in ledger.rounds()] == [(), (), ({"client": "a", "loss": 1.0},), ()]


def test_rounds_are_committed_one_after_the_other(three_rounds: Path) -> None:
    with Ledger.open(three_rounds) as ledger:
        for wrong in (0, 3, 5):
            with pytest.raises(ValueError, match="the next one is 4"):
                ledger.commit(wrong, b"x", {})


def test_facts_can_be_written_again_until_something_is_committed(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.open_with({"federation": "other", "more": 1})
        ledger.open_with(FACTS)
        assert ledger.facts() == FACTS
        commit(ledger, range(1))
        ledger.open_with(FACTS)
        with pytest.raises(FederationError, match="other terms"):
            ledger.open_with(FACTS | {"federation": "other"})


def test_the_newest_states_and_the_first_are_kept_the_others_go(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        commit(ledger, range(9))
        kept = {0, *range(9 - KEPT_STATES, 9)}
        assert {path.name for path in (folder / "states").iterdir()} == {
            name for number in kept for name in (state_file(folder, number).name, f"round-{number:06d}.json")
        }
        assert [each.round for each in ledger.rounds()] == list(range(9))


def test_a_state_that_did_not_change_is_not_deleted_with_the_old_round(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        for number in range(12):
            ledger.commit(number, b"the same", {})
        latest = ledger.latest()
        assert latest is not None
        assert latest.state == b"the same"


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing"])
def test_a_damaged_newest_state_gives_way_to_the_one_before_and_says_so(three_rounds: Path, damage: str) -> None:
    path = state_file(three_rounds, 3)
    match damage:
        case "flipped":
            flip_a_byte(path, at=1000)
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "emptied":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
    with Ledger.look(three_rounds) as looking:  # which changes nothing
        assert looking.latest() is not None
        assert path.exists() == (damage != "missing")
    with Ledger.open(three_rounds) as ledger:
        latest = ledger.latest()
        assert latest is not None
        assert (latest.round, latest.state) == (2, state_of(2))
        assert len(latest.notices) == 2
        assert path.name in latest.notices[0]
        assert "from round 2" in latest.notices[1]
        assert path.with_suffix(".damaged").exists() == (damage != "missing")
        # The round is made again, and nothing of what was there is forgotten.
        commit(ledger, range(3, 5))
        again = ledger.latest()
        assert again is not None
        assert (again.round, again.state) == (4, state_of(4))
    rows = sqlite3.connect(three_rounds / "rounds.db").execute("SELECT round FROM superseded").fetchall()
    assert rows == [(3,)]


def test_norms_of_a_round_that_has_to_be_made_again_do_not_count(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        commit(ledger, range(3), norms=[1.0], part="both")
        flip_a_byte(state_file(folder, 2))
    with Ledger.open(folder) as ledger:
        assert ledger.norms(9, part="both") == (1.0,)


def test_no_sound_state_at_all_is_an_error_and_not_a_new_beginning(three_rounds: Path) -> None:
    for number in range(4):
        flip_a_byte(state_file(three_rounds, number))
    with pytest.raises(StorageError, match="no state of a committed round can be read") as caught:
        Ledger.open(three_rounds)
    assert "backup" in caught.value.hint


def damage_database(path: Path, how: str) -> None:
    match how:
        case "noise":
            path.write_bytes(random.Random(0).randbytes(path.stat().st_size))
        case "torn":
            path.write_bytes(path.read_bytes()[:3000])
        case "page":
            data = bytearray(path.read_bytes())
            data[4096 * 2 : 4096 * 3] = bytes(4096)
            path.write_bytes(data)
        case "gone":
            path.unlink()


@pytest.mark.parametrize("how", ["noise", "torn", "page", "gone"])
def test_a_damaged_database_is_set_aside_and_made_anew_from_beside_the_states(three_rounds: Path, how: str) -> None:
    damage_database(three_rounds / "rounds.db", how)
    with Ledger.open(three_rounds) as ledger:
        latest = ledger.latest()
        assert latest is not None
        assert (latest.round, latest.state) == (3, state_of(3))
        assert any("made anew" in notice for notice in latest.notices)
        assert any("was damaged (" in notice for notice in latest.notices) == (how != "gone")
        assert ledger.facts() == FACTS
        assert ledger.rounds()[1].figures == {"loss": 0.5}
        commit(ledger, range(4, 5))
    assert bool(list(three_rounds.glob("rounds.db.damaged-*"))) == (how != "gone")
    with Ledger.open(three_rounds) as ledger:
        latest = ledger.latest()
        assert latest is not None
        assert (latest.round, latest.notices) == (4, ())


def test_looking_at_a_damaged_database_says_the_way_out_and_touches_nothing(three_rounds: Path) -> None:
    damage_database(three_rounds / "rounds.db", "noise")
    before = sorted(path.name for path in three_rounds.rglob("*"))
    with pytest.raises(StorageError, match="is damaged") as caught:
        Ledger.look(three_rounds)
    assert "start it again" in caught.value.hint
    assert sorted(path.name for path in three_rounds.rglob("*")) == before


def test_a_ledger_of_a_later_version_is_not_taken_for_a_damaged_one(three_rounds: Path) -> None:
    connection = sqlite3.connect(three_rounds / "rounds.db")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StorageError, match="version 2"):
        Ledger.open(three_rounds)
    assert not list(three_rounds.glob("*.damaged-*"))


def _in_a_child(work: Callable[[], None]) -> None:
    """Runs `work` in a forked process, whose limits and death are its own."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("limit", [4_096, 150_000, 20_000_000])
def test_a_full_disk_is_a_storage_error_and_earlier_commits_stay(folder: Path, limit: int) -> None:
    # The limit is that of one file: the smallest stops SQLite's log, the middle one the state, the last neither.
    def work() -> None:
        with Ledger.open(folder) as ledger:
            ledger.open_with(FACTS)
            commit(ledger, range(3))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            state = b"small" if limit == 4_096 else state_of(3)
            refused = False
            try:
                ledger.commit(3, state, {"loss": 0.0})
            except StorageError:
                refused = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert refused == (limit < 20_000_000)
            if refused:
                latest = ledger.latest()
                assert latest is not None
                assert latest.round == 2
                ledger.commit(3, state_of(3), {})  # there is room again: it goes on

    _in_a_child(work)
    with Ledger.open(folder) as ledger:
        latest = ledger.latest()
        assert latest is not None
        assert (latest.round, latest.state, latest.notices) == (3, state_of(3), ())


WRITER = """
import random, sys
from pathlib import Path
from neuralforge_server.ledger import Ledger
with Ledger.open(Path(sys.argv[1])) as ledger:
    if not ledger.facts():
        ledger.open_with({"federation": "team"})
    latest = ledger.latest()
    number = 0 if latest is None else latest.round + 1
    while True:
        ledger.begin_attempt(number)
        ledger.refuse(number, "someone", "norm", "too long")
        ledger.commit(number, random.Random(number).randbytes(200_000), {"norms": [number], "part": "both"})
        print(number, flush=True)
        number += 1
"""


def kill_a_writer(folder: Path, after: float) -> int:
    """Runs a writer, kills it `after` seconds from its first commit; returns the last round that it named."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(after)
        process.kill()
        said += process.stdout.readlines()
    return max(int(line) for line in said if line.endswith("\n"))


def check_after_kill(folder: Path, said: int) -> None:
    with Ledger.open(folder) as ledger:
        latest = ledger.latest()
        assert latest is not None
        assert latest.round in (said, said + 1)  # it may have died between the commit and saying so
        assert latest.state == state_of(latest.round)
        assert latest.notices == ()
        assert [each.round for each in ledger.rounds()] == list(range(latest.round + 1))
        assert ledger.norms(1, part="both") == ((float(latest.round),) if latest.round else ())


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_committed_state(folder: Path) -> None:
    chance = random.Random(7)
    for _ in range(20):
        check_after_kill(folder, kill_a_writer(folder, after=chance.uniform(0, 0.12)))


def test_what_lies_beside_a_state_is_what_its_row_says(three_rounds: Path) -> None:
    document = json.loads((three_rounds / "states" / "round-000002.json").read_text())
    assert document.pop("facts") == FACTS
    with Ledger.open(three_rounds) as ledger:
        row = ledger.rounds()[2]
    assert document == {
        "round": 2,
        "digest": row.digest,
        "size": row.size,
        "figures": json.dumps(dict(row.figures), sort_keys=True),
        "committed": row.committed,
    }
