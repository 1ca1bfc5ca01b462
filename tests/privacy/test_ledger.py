"""The ledger of what was spent: never less than the truth, whatever happened to the process or to the file."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from neuralforge.privacy.budget import Block, Budget
from neuralforge.privacy.ledger import LEDGER, Account, Ledger
from neuralforge.privacy.scope import adapter_scope, federation_scope, scope_folder
from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.errors import BudgetSpent, PrivacyError, StorageError
from neuralforge_common.privacy import Unit

SCOPE = federation_scope("team", "build-box:8470")
WIDE = Budget(target_epsilon=100, delta=1e-5)
BUDGET = Budget(target_epsilon=8, delta=1e-5)

Open = Callable[..., Account]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scope_folder(tmp_path, SCOPE)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def account(tmp_path: Path, told: list[str]) -> Open:
    def open_(scope: str = SCOPE, unit: Unit = "sample") -> Account:
        return Account.open(tmp_path, scope, unit=unit, tell=told.append)

    return open_


def block(steps: int = 30, *, sigma: float = 1.1, **rates: float) -> Block:
    """`c1=0.05` is the first cohort's q."""
    of = {int(name.removeprefix("c")): q for name, q in (rates or {"c1": 0.05}).items()}
    return Block(rates=of, noise_multiplier=sigma, steps=steps)


def exact(*history: tuple[float, float, int]) -> float:
    return epsilon([Steps(sample_rate=q, noise_multiplier=sigma, count=n) for q, sigma, n in history], 1e-5)


@pytest.fixture
def three_charges(account: Open, folder: Path) -> Path:
    with account() as opened:
        opened.enter(["a", "b"])
        for number in range(3):
            opened.charge(block(), WIDE, what=f"round {number}")
    return folder / LEDGER


def steps_in(folder: Path) -> int:
    ledger = Ledger.read(folder)
    assert ledger is not None
    return ledger.tally.spent("sample", 1e-5).steps


def test_twenty_rounds_with_a_restart_between_are_six_hundred_steps(account: Open) -> None:
    for number in range(20):
        with account() as opened:
            assert opened.enter(["a", "b"]) == [1, 1]
            opened.charge(block(30), WIDE, what=f"round {number}")
    with account() as opened:
        spent = opened.spent(1e-5)
    assert spent.epsilon == pytest.approx(exact((0.05, 1.1, 600)), rel=1e-12)
    assert (spent.steps, [each.steps for each in spent.cohorts]) == (600, [600])


def test_a_round_that_is_tried_again_is_charged_again(account: Open) -> None:
    with account() as opened:
        opened.enter(["a"])
        for _ in range(2):
            opened.charge(block(30), WIDE, what="round 3")
        assert opened.spent(1e-5).epsilon == pytest.approx(exact((0.05, 1.1, 60)))


def test_what_nobody_was_drawn_in_is_charged_all_the_same(account: Open) -> None:
    # A charge is of steps, before anybody is drawn in them: the ledger is not even told who was.
    with account() as opened:
        opened.enter(["a"])
        opened.charge(block(1000, c1=1e-9), WIDE, what="steps that are all but surely empty")
        assert opened.spent(1e-5).steps == 1000


def test_a_unit_keeps_the_cohort_in_which_it_was_first_seen(account: Open) -> None:
    with account() as opened:
        assert opened.enter(["a", "b", "a"]) == [1, 1, 1]
        assert opened.enter(["c", "b", "d"]) == [2, 1, 2]
    with account() as opened:
        assert opened.enter(["d", "e", "a"]) == [2, 3, 1]


def test_epsilon_is_that_of_the_cohort_that_has_been_through_most(account: Open) -> None:
    with account() as opened:
        opened.enter(["a"])
        opened.charge(block(300), WIDE, what="first week")
        opened.enter(["b"])
        opened.charge(block(200, c2=0.05, c1=0.01), WIDE, what="second week, with a replay of the first")
        spent = opened.spent(1e-5)
        assert [each.epsilon for each in spent.cohorts] == pytest.approx(
            [exact((0.05, 1.1, 300), (0.01, 1.1, 200)), exact((0.05, 1.1, 200))]
        )
        assert spent.epsilon == spent.cohorts[0].epsilon
        # What others hear does not tell which cohorts are still learnt from.
        assert spent.at_most == pytest.approx(exact((0.05, 1.1, 500)))
        assert spent.statement().epsilon == spent.at_most


def test_one_more_block_is_looked_at_without_being_charged(account: Open, folder: Path) -> None:
    with account() as opened:
        opened.enter(["a"])
        opened.charge(block(30), WIDE, what="round 1")
        before = (folder / LEDGER).read_bytes()
        assert opened.spent(1e-5, more=block(70)).epsilon == pytest.approx(exact((0.05, 1.1, 100)))
        opened.check(block(70), WIDE)
        assert (folder / LEDGER).read_bytes() == before


def test_a_budget_is_never_exceeded_and_used_up_to_the_last_step(account: Open, folder: Path) -> None:
    with account() as opened:
        opened.enter(["a"])
        sigma = opened.noise_for(BUDGET, rates={1: 0.05}, steps=600)
        for number in range(20):
            opened.charge(block(30, sigma=sigma), BUDGET, what=f"round {number}")
        before = (folder / LEDGER).read_bytes()
        with pytest.raises(BudgetSpent, match=r"30 more steps would come to ε = 8.1.* at δ = 1e-05, example-level"):
            opened.charge(block(30, sigma=sigma), BUDGET, what="round 20")
        assert (folder / LEDGER).read_bytes() == before
        assert 7.9 < opened.spent(1e-5).epsilon <= 8
        # Data that comes in now begins anew, alone.
        opened.enter(["b"])
        opened.charge(block(30, sigma=sigma, c2=0.05), BUDGET, what="round 20, new data")
        with pytest.raises(BudgetSpent):
            opened.charge(block(30, sigma=sigma, c1=0.05, c2=0.05), BUDGET, what="round 21, all data")


def test_nothing_of_the_units_stands_in_the_folder(account: Open, folder: Path) -> None:
    with account() as opened:
        opened.enter(["file team/app secret_project.py"])
    text = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"secret_project" not in text
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.iterdir()]} == {0}


def test_one_run_at_a_time(account: Open, folder: Path) -> None:
    with account() as first:
        first.enter(["a"])
        first.charge(block(), WIDE, what="round 1")
        with pytest.raises(PrivacyError, match=f"charged by another run just now .process {os.getpid()}"):
            account()
        assert steps_in(folder) == 30  # one may look
    with account() as second:
        second.charge(block(), WIDE, what="round 2")
    with pytest.raises(PrivacyError, match="it is closed"):
        first.charge(block(), WIDE, what="round 2")
    assert steps_in(folder) == 60


def test_scopes_are_apart(account: Open, tmp_path: Path) -> None:
    scopes = [SCOPE, federation_scope("team", "build-box:8471"), adapter_scope(tmp_path / "a b.lora"), "a/b", "a-b"]
    assert len({scope_folder(tmp_path, scope) for scope in scopes}) == len(scopes)
    for number, scope in enumerate(scopes):
        with account(scope) as opened:
            opened.enter(["a"])
            opened.charge(block(10 + number), WIDE, what="once")
    assert [steps_in(scope_folder(tmp_path, scope)) for scope in scopes] == [10, 11, 12, 13, 14]


def test_a_ledger_in_the_place_of_another_is_refused(account: Open, three_charges: Path, tmp_path: Path) -> None:
    shutil.copytree(three_charges.parent, scope_folder(tmp_path, "other"))
    with pytest.raises(PrivacyError, match="the ledger of another scope: wanted other, got federation team"):
        account("other")


def test_figures_of_different_units_do_not_add_up(account: Open, three_charges: Path) -> None:
    with pytest.raises(PrivacyError, match="its ledger is example-level, this run wants file-level"):
        account(unit="file")


def test_a_last_line_that_was_never_finished_is_dropped_wherever_it_was_cut(
    account: Open, three_charges: Path, told: list[str]
) -> None:
    whole = three_charges.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for length in [*range(last + 1, len(whole) - 1, 17), len(whole) - 2]:
        three_charges.write_bytes(whole[:length])
        told.clear()
        with account() as opened:
            assert opened.spent(1e-5).steps == 60
            assert len(told) == 1
            assert f"{length - last:,} bytes at its end" in told[0]
            opened.charge(block(5), WIDE, what="after the crash")
        assert steps_in(three_charges.parent) == 65


def test_a_last_line_that_only_lacks_its_end_counts(account: Open, three_charges: Path, told: list[str]) -> None:
    three_charges.write_bytes(three_charges.read_bytes()[:-1])
    with account() as opened:
        assert opened.spent(1e-5).steps == 90
        opened.charge(block(5), WIDE, what="after the crash")
    assert told == []
    assert steps_in(three_charges.parent) == 95


def test_a_flipped_bit_anywhere_is_found_and_its_line_named(account: Open, three_charges: Path) -> None:
    whole = three_charges.read_bytes()
    for at in [*range(0, len(whole) - 1, 61), len(whole) - 2]:
        changed = bytearray(whole)
        changed[at] ^= 1
        three_charges.write_bytes(changed)
        line = whole[:at].count(b"\n") + 1
        with pytest.raises(PrivacyError, match=rf"ledger.jsonl, line {line}: it was changed or damaged") as refused:
            account()
        assert "restore the folder from a copy" in refused.value.hint


def test_lines_taken_out_put_in_or_exchanged_are_found(account: Open, three_charges: Path) -> None:
    lines = three_charges.read_bytes().splitlines(keepends=True)
    head, one, two, three = lines
    for wrong in ([head, two, three], [head, one, three], [head, two, one, three], [head, one, one, two, three], [one]):
        three_charges.write_bytes(b"".join(wrong))
        with pytest.raises(PrivacyError, match="a line before it was taken out or put in"):
            account()


def test_a_line_that_is_whole_but_not_ours_is_refused(account: Open, three_charges: Path) -> None:
    from neuralforge.privacy.journal import Journal

    entry = json.loads(three_charges.read_bytes().splitlines()[-1])
    del entry["prev"], entry["digest"]
    for wrong in ({"sigma": -1}, {"sigma": "x"}, {"mechanism": "laplace"}, {"cohorts": {}}, {"cohorts": {"1": 3}}):
        before = three_charges.read_bytes()
        Journal(three_charges).append(entry | wrong)
        with pytest.raises(PrivacyError):
            account()
        three_charges.write_bytes(before)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("key", "nobody can tell which data was charged already"),
        ("ledger.jsonl", "what was spent is not known"),
        ("cohorts.jsonl", "is not complete: cohort 1 was charged, the file ends with 0"),
    ],
)
def test_a_part_that_was_lost_is_not_made_anew(account: Open, three_charges: Path, lost: str, said: str) -> None:
    (three_charges.parent / lost).unlink()
    with pytest.raises(PrivacyError, match=said):
        account()


def test_another_key_would_make_old_data_new_and_is_refused(account: Open, three_charges: Path) -> None:
    (three_charges.parent / "key").write_bytes(bytes(32))
    with pytest.raises(PrivacyError, match=r"is not the key of cohorts\.jsonl"):
        account()


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_stops_the_run_and_leaves_a_ledger_to_go_on_with(
    account: Open, three_charges: Path
) -> None:
    with account() as opened:
        with (
            files_no_larger_than(three_charges.stat().st_size + 100),
            pytest.raises(StorageError, match=r"cannot write .*ledger\.jsonl"),
        ):
            opened.charge(block(), WIDE, what="too much")
        assert opened.spent(1e-5).steps == 90
        with pytest.raises(PrivacyError, match="an earlier write failed"):
            opened.charge(block(), WIDE, what="nobody knows what is on the disk")
    with account() as opened:
        opened.charge(block(), WIDE, what="now there is room")
    assert steps_in(three_charges.parent) == 120


def test_somebody_else_who_writes_is_noticed(account: Open, three_charges: Path) -> None:
    with account() as opened:
        three_charges.write_bytes(three_charges.read_bytes() + b"x")
        with pytest.raises(PrivacyError, match="somebody else has changed it"):
            opened.charge(block(), WIDE, what="round 9")


def test_ten_thousand_entries_are_read_in_a_moment(account: Open, three_charges: Path) -> None:
    from neuralforge.privacy.journal import Journal

    entry = json.loads(three_charges.read_bytes().splitlines()[-1])
    del entry["prev"], entry["digest"]
    Journal(three_charges).append(*[entry] * 10_000)
    begin = time.process_time()
    with account() as opened:
        assert opened.spent(1e-5).steps == 30 * 10_003
    assert time.process_time() - begin < 5  # 0.6 s where this was written


WRITER = """if True:
    # For each line that it reads it forks a writer, says its id, and says when it has ended.
    import os, sys
    from pathlib import Path
    from neuralforge.privacy.budget import Block, Budget
    from neuralforge.privacy.ledger import Account

    def write(home, taken):
        budget = Budget(target_epsilon=1e5, delta=1e-5)
        file = os.open(taken, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with Account.open(home, "adapter x", unit="sample", tell=str) as account:
            account.enter([f"unit {os.getpid()}", "old"])
            for n in range(1_000_000):
                block = Block(rates={1: 0.05}, noise_multiplier=1.1, steps=1 + n % 5)
                account.charge(block, budget, what="until killed")
                os.write(file, b"s" * block.steps)  # the steps are taken

    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write(Path(sys.argv[1]), sys.argv[2])
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
    """


def test_killed_at_fifty_points_the_ledger_holds_no_less_than_was_spent(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    chance = random.Random(4)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(taken)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    folder = scope_folder(tmp_path, "adapter x")
    progress = set()
    with writer:
        for _ in range(50):
            goal = taken.stat().st_size + chance.randrange(16)  # 0 to 15 more steps, however slow the machine is
            writer.stdin.write("\n")
            child = int(writer.stdout.readline())
            while taken.stat().st_size < goal:
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline() == "ended\n"
            spent = taken.stat().st_size
            ledger = Ledger.read(folder)
            charged = ledger.tally.spent("sample", 1e-5).steps if ledger else 0
            assert spent <= charged <= spent + 5 * 50  # a block of at most 5 steps for each kill was charged in vain
            progress.add(charged)
        writer.stdin.close()
    assert writer.returncode == 0
    assert len(progress) > 20  # the kills came while it was at work
    with Account.open(tmp_path, "adapter x", unit="sample", tell=str) as account:
        assert account.spent(1e-5).epsilon >= exact((0.05, 1.1, taken.stat().st_size))
        assert account.enter(["old"]) == [1]
