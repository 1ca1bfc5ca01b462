"""`neuralforge privacy status` as a person runs it: every figure with its δ and its unit."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge.privacy.budget import Block, Budget
from neuralforge.privacy.ledger import LEDGER, Account
from neuralforge.privacy.scope import adapter_scope, federation_scope, scope_folder
from neuralforge_common.accounting import Steps, epsilon

Cli = Callable[..., subprocess.CompletedProcess[str]]

BUDGET = Budget(target_epsilon=8, delta=1e-5)
TEAM = federation_scope("team", "build-box:8470")


def exact(*history: tuple[float, float, int]) -> float:
    return epsilon([Steps(sample_rate=q, noise_multiplier=sigma, count=n) for q, sigma, n in history], 1e-5)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation with two cohorts, an adapter, another one that protects files, and one that has not begun."""
    home = tmp_path_factory.mktemp("home")

    def charge(scope: str, rates: dict[int, float], sigma: float, steps: int, unit: str = "sample") -> None:
        with Account.open(home, scope, unit=unit, tell=print) as account:  # type: ignore[arg-type]
            account.enter([str(cohort) for cohort in rates])
            account.charge(Block(rates=rates, noise_multiplier=sigma, steps=steps), BUDGET, what="x")

    charge(TEAM, {1: 0.05}, 1.1, 300)
    charge(TEAM, {1: 0.05, 2: 0.05}, 1.1, 60)
    charge(adapter_scope(home / "mine.lora"), {1: 0.02}, 1.1, 1000)
    charge(adapter_scope(home / "files.lora"), {1: 0.1}, 3.0, 100, unit="file")
    Account.open(home, adapter_scope(home / "begun.lora"), unit="sample", tell=print).close()
    return home


@pytest.fixture
def status(cli: Cli, home: Path, tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        done = cli("privacy", "status", "--home", home, *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_every_figure_has_its_delta_and_its_unit(status: Callable[..., str]) -> None:
    text = status()
    figures = re.findall(r"ε = (?:[\d.]+)(.{0,40})", text)
    assert len(figures) > 15
    assert all(re.match(r" at δ = 1e-05, (example|file)-level", figure) for figure in figures), figures
    assert "begun.lora\n  spent        nothing was charged yet\n" in text


def test_a_federation_is_told_by_cohort_with_what_is_left_and_what_comes_next(status: Callable[..., str]) -> None:
    lines = status("team").splitlines()
    assert lines[0] == TEAM
    told = {line[2:15].strip(): line[15:] for line in lines[1:]}
    spent, after, newer = (exact((0.05, 1.1, count)) for count in (360, 420, 60))
    assert told["spent"] == f"ε = {spent:.3g} at δ = 1e-05, example-level"
    assert told["target"] == "ε = 8 at δ = 1e-05, example-level"
    assert told["cohort 1"].startswith(f"ε = {spent:.3g} at δ = 1e-05, example-level; 360 steps since 20")
    assert told["cohort 2"].startswith(f"ε = {newer:.3g} at δ = 1e-05, example-level; 60 steps since 20")
    assert told["next 60"].startswith(f"ε = {after:.3g} at δ = 1e-05, example-level, once so many steps with q = 0.05")
    left = re.fullmatch(
        r"ε = ([\d.]+) at δ = 1e-05, example-level; (\d+) more steps with q = 0.05, σ = 1.1", told["left"]
    )
    assert left is not None
    assert float(left[1]) == pytest.approx(8 - spent, abs=0.005)
    assert exact((0.05, 1.1, 360 + int(left[2]))) <= 8 < exact((0.05, 1.1, 361 + int(left[2])))


def test_an_adapter_is_found_by_its_path_and_more_steps_can_be_looked_at(
    status: Callable[..., str], home: Path
) -> None:
    text = status(home / "mine.lora", "--steps", 2500)
    assert text.startswith(adapter_scope(home / "mine.lora"))
    assert text.count("adapter") == 1
    assert f"next 2,500   ε = {exact((0.02, 1.1, 3500)):.3g} at" in text


def test_what_holds_the_same_code_adds_up(status: Callable[..., str]) -> None:
    total = exact((0.05, 1.1, 360), (0.02, 1.1, 1000))
    lines = [line for line in status().splitlines() if line.startswith("if all")]
    assert lines == [
        f"if all of these hold the same code: ε = {exact((0.1, 3.0, 100)):.3g} at δ = 1e-05, file-level",
        f"if all of these hold the same code: ε = {total:.3g} at δ = 1e-05, example-level",
    ]


def test_as_json(status: Callable[..., str], home: Path) -> None:
    document = json.loads(status("--json"))
    scopes = {scope["scope"]: scope for scope in document["scopes"]}
    team = scopes[TEAM]
    assert (team["unit"], team["delta"], team["target_epsilon"], team["steps"]) == ("sample", 1e-5, 8, 360)
    assert team["epsilon"] == team["at_most"] == pytest.approx(exact((0.05, 1.1, 360)))
    assert [cohort["steps"] for cohort in team["cohorts"]] == [360, 60]
    assert team["next"]["epsilon"] == pytest.approx(exact((0.05, 1.1, 420)))
    assert scopes[adapter_scope(home / "begun.lora")]["epsilon"] == 0
    assert {total["unit"] for total in document["if_all_hold_the_same_code"]} == {"sample", "file"}


def test_where_nothing_was_learnt_privately_it_says_so(cli: Cli, tmp_path: Path) -> None:
    done = cli("privacy", "status", cwd=tmp_path, NEURALFORGE_HOME=str(tmp_path / "home"))
    assert done.returncode == 0
    assert done.stdout == (
        f"no privacy ledger in {tmp_path / 'home' / 'privacy'}: nothing was learnt privately on this machine\n"
    )
    assert not (tmp_path / "home").exists()


def test_a_scope_that_is_not_there_is_a_failure(cli: Cli, home: Path, tmp_path: Path) -> None:
    done = cli("privacy", "status", "--home", home, "tema", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: no privacy ledger of tema in {home / 'privacy'}\n")


def test_a_damaged_ledger_is_a_failure_that_hides_no_other(cli: Cli, home: Path, tmp_path: Path) -> None:
    folder = scope_folder(home, adapter_scope(home / "files.lora"))
    whole = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(whole.replace(b"3.0", b"9.0"))
    try:
        done = cli("privacy", "status", "--home", home, cwd=tmp_path)
    finally:
        (folder / LEDGER).write_bytes(whole)
    assert done.returncode == 1
    assert TEAM in done.stdout
    assert re.match(r"error: .*ledger\.jsonl, line 2: it was changed or damaged", done.stderr)


def test_neither_torch_nor_a_network_library_is_imported(home: Path) -> None:
    code = """if True:
        import sys
        from neuralforge.cli.main import main
        main(sys.argv[1:])
        print(sorted({"torch", "transformers", "flwr", "grpc", "opacus", "scipy"} & {*sys.modules}))
        """
    done = subprocess.run(
        [sys.executable, "-c", code, "privacy", "status", "--home", str(home)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_help_ends_with_examples_and_imports_little(cli: Cli, tmp_path: Path) -> None:
    done = cli("privacy", "status", "--help", cwd=tmp_path)
    assert done.returncode == 0
    examples = done.stdout.partition("\nexamples:\n")[2].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith("neuralforge privacy status") for line in examples)
    for option in ("--home", "--steps", "--json"):
        assert re.search(rf"^ +{option}\b", done.stdout, re.MULTILINE)
