"""Whole federations of virtual clients: what comes out of them, and that nothing a client does ends them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ONE_THREAD

from neuralforge_common.errors import DataError, FederationError, StorageError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_server import events
from neuralforge_simulations.report import METRICS, PLOTS, Report
from neuralforge_simulations.scenarios import run_scenario

NAMES = ("html", "json", "wsgiref")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def adapter_bytes(report: Report) -> bytes:
    return (report.folder / "adapter.lora" / "adapter_model.safetensors").read_bytes()


def nf_sim(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    import os

    program = Path(sys.executable).with_name("nf-sim")
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ONE_THREAD | os.environ, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def finished(
    scenario_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The scenario, run as a person runs it."""
    place = tmp_path_factory.mktemp("finished")
    done = nf_sim("run", scenario_file, "--output", "report", "--set", "run.plots=true", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "report", done


Finished = tuple[Path, "subprocess.CompletedProcess[str]"]


def test_the_record_has_a_line_a_round_and_a_line_a_client(finished: Finished) -> None:
    found = lines(finished[0])
    kinds = Counter(line["kind"] for line in found)
    assert (kinds["start"], kinds["round"], kinds["client"], kinds["end"]) == (1, 2, 6, 1)
    assert {(line["round"], line["client"]) for line in found if line["kind"] == "client"} == {
        (number, name) for number in (1, 2) for name in NAMES
    }
    scored = {(line["round"], line["client"]) for line in found if line["kind"] == "score"}
    assert scored == {(number, name) for number in (0, 1, 2) for name in NAMES}
    for line in found:
        if line["kind"] == "round":
            assert line["clients"] == 3
            assert line["bytes_up"] > 0
            assert line["bytes_down"] > 0
            assert 0 <= line["exactness_error"] < 1


def test_the_summary_shows_base_and_federation_for_every_client(finished: Finished) -> None:
    text = (finished[0] / "summary.md").read_text()
    assert "all 2 rounds are done" in text
    scores = {(line["client"], line["round"]): line["loss"] for line in lines(finished[0]) if line["kind"] == "score"}
    for name in NAMES:
        (row,) = re.findall(rf"\| {name} \| [\d,]+ \| ([\d.]+) \| ([\d.]+) \| [-+]", text)
        assert row == (f"{scores[name, 0]:.3f}", f"{scores[name, 2]:.3f}")
    assert "adapter.base | nf-tiny" in text


def test_the_federation_learns_what_its_clients_hold(finished: Finished) -> None:
    found = [line for line in lines(finished[0]) if line["kind"] == "score"]
    mean = {n: sum(line["loss"] for line in found if line["round"] == n) for n in (0, 2)}
    assert mean[2] < mean[0]


def test_every_plot_is_a_picture(finished: Finished) -> None:
    for name in PLOTS:
        data = (finished[0] / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n"), name
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        assert width > 600, name
        assert height > 300, name


def test_the_adapter_is_a_whole_folder_for_that_base(finished: Finished) -> None:
    folder = read_adapter_folder(finished[0] / "adapter.lora")
    assert folder.spec.rank == 2
    assert folder.spec.base == "nf-tiny"


def test_without_a_terminal_there_are_plain_lines(finished: Finished) -> None:
    output = finished[1].stdout
    assert "\x1b" not in output
    assert "\r" not in output
    assert re.search(r"^round 2 of 2: 3 clients", output, re.MULTILINE)
    assert output.splitlines()[-1].endswith("report/summary.md")


def test_a_client_that_sends_nan_is_refused_by_name_and_the_rounds_go_on(simulate: Any) -> None:
    report = simulate(adversaries__kind="nan", adversaries__count=1, federation__quorum=2)
    refused = [line for line in lines(report.folder) if line["kind"] == "client" and not line["accepted"]]
    (hostile,) = [client.name for client in report.clients if client.role]
    assert [(line["round"], line["client"], line["reason"]) for line in refused] == [
        (1, hostile, "not-finite"),
        (2, hostile, "not-finite"),
    ]
    assert len(report.committed) == 2
    assert f"| 1 | {hostile} | not-finite |" in (report.folder / "summary.md").read_text()


def test_a_round_below_quorum_is_repeated_and_its_drop_outs_leave_no_trace(simulate: Any) -> None:
    undisturbed = simulate("undisturbed", run__seed=2)
    disturbed = simulate("disturbed", run__seed=2, clients__dropout=0.3)
    attempts = [found.attempts for found in disturbed.committed]
    assert len(attempts) == 2
    assert max(attempts) > 1, "this seed drops nobody; take another one"
    below = [line for line in lines(disturbed.folder) if line["kind"] == "below-quorum"]
    assert len(below) == sum(attempts) - 2
    assert all(line["clients"] < 3 for line in below)
    assert any(line.get("reason") == "gone" for line in lines(disturbed.folder))
    assert [found.attempts for found in undisturbed.committed] == [1, 1]
    assert adapter_bytes(disturbed) == adapter_bytes(undisturbed)


def test_a_private_scenario_says_what_it_has_cost_and_no_client_what_it_has_seen(simulate: Any) -> None:
    report = simulate(privacy__enabled=True, privacy__sample_rate=0.2, federation__rounds=2)
    found = lines(report.folder)
    clients = [line for line in found if line["kind"] == "client"]
    assert len(clients) == 6
    assert {(line["examples"], line["tokens"], line["loss"], line["seconds"]) for line in clients} == {(1, 0, None, 0)}
    spent = [line["privacy"] for line in found if line["kind"] == "round"]
    assert all(re.fullmatch(r"ε = [0-9.]+ at δ = 1e-05, example-level", line) for (line,) in spent)
    summary = (report.folder / "summary.md").read_text()
    assert (
        f"## Privacy\n\nWhat all rounds have cost the client that was asked most often:\n\n- {spent[1][0]}\n" in summary
    )
    # One person's: whoever simulates may look.
    assert {line["round"] for line in found if line["kind"] == "score"} == {0, 2}
    promised = read_adapter_folder(report.folder / "adapter.lora").metadata.privacy
    assert promised is not None
    assert (promised.epsilon, promised.unit) == (8.0, "sample")


def test_a_scenario_with_noise_on_the_sum_says_whose_data_it_hides(simulate: Any) -> None:
    report = simulate(central__enabled=True, federation__rounds=1, federation__evaluate_every=0)
    (line,) = [line for line in lines(report.folder) if line["kind"] == "round"]
    assert line["privacy"][0].endswith("user-level: one client's whole data")
    assert line["figures"]["clip"] == 1.0
    promised = read_adapter_folder(report.folder / "adapter.lora").metadata.privacy
    assert promised is not None
    assert (promised.epsilon, promised.unit) == (8.0, "client")
    assert any("times as long as what they can move the adapter by" in notice for notice in report.notices)


def test_a_federation_that_never_reaches_its_quorum_ends_with_a_report(simulate: Any, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="round 1 stayed below its quorum of 3 clients in 2 attempts"):
        simulate(clients__dropout=0.99, federation__max_attempts=2)
    found = lines(tmp_path / "report")
    assert found[-1]["kind"] == "end"
    assert "ended after 0 of 2 rounds: round 1 stayed below" in found[-1]["outcome"]
    assert "ended after 0 of 2 rounds" in (tmp_path / "report" / "summary.md").read_text()


def test_what_was_known_when_a_run_is_broken_off_is_in_its_report(simulate: Any, tmp_path: Path) -> None:
    def break_off(event: object) -> None:
        if isinstance(event, events.RoundBegan) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(observers=(break_off,))
    assert "interrupted after 1 of 2 rounds" in (tmp_path / "report" / "summary.md").read_text()
    assert [line["round"] for line in lines(tmp_path / "report") if line["kind"] == "round"] == [1]


def test_clients_of_lower_rank_and_slow_ones_take_part_as_they_can(simulate: Any) -> None:
    report = simulate(
        adapter__rank=4,
        clients__ranks=[2, 4],
        clients__slow_fraction=0.34,
        clients__slow_seconds=3600,
        federation__quorum=2,
        federation__rounds=1,
    )
    (slow,) = [client.name for client in report.clients if client.habit]
    turned = {(event.client, event.reason) for event in report.rounds[1].turned}
    assert turned == {(slow, "deadline")}
    ranks = {line["client"]: line["rank"] for line in lines(report.folder) if line.get("accepted")}
    assert ranks == {client.name: client.rank for client in report.clients if not client.habit}


def test_a_folder_with_other_things_in_it_is_left_alone(scenario: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="holds other things"):
        run_scenario(scenario(run__directory=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_too_few_clients_are_said_before_anything_is_loaded(scenario: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a round needs 4 clients .*, the data make 3"):
        run_scenario(scenario(run__directory=tmp_path / "report", federation__min_clients=4))
    assert not (tmp_path / "report").exists()


def test_a_wrong_key_is_one_line_with_a_guess(scenario_file: Path, tmp_path: Path) -> None:
    done = nf_sim("run", scenario_file, "--set", "clients.dorpout=0.2", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: command line: clients.dorpout: unknown key, did you mean 'dropout'?\n"
    done = nf_sim("run", scenario_file, "--set", "clients.dropout", cwd=tmp_path)
    assert done.returncode == 2
    assert "wanted KEY=VALUE" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_boosted_back_door_takes_hold_of_a_plain_mean_and_the_report_says_so(simulate: Any) -> None:
    harm = {"adversaries__kind": "backdoor", "adversaries__count": 1, "adversaries__scale": 3.0}
    report = simulate(
        **harm,
        federation__rounds=6,
        training__steps=12,
        training__max_length=96,
        clients__max_samples_per_client=40,
        clients__max_eval_samples=10,
        admission__max_update_norm=1e6,
    )
    assert report.planted is not None
    assert report.planted.federated < report.planted.base - 1
    assert "Back door" in (report.folder / "summary.md").read_text()


@pytest.mark.slow
def test_rays_engine_comes_to_the_same_bytes(simulate: Any) -> None:
    pytest.importorskip("ray", reason="Ray, an optional extra, is not installed")
    local = simulate("local", adversaries__kind="nan", adversaries__count=1, federation__quorum=2)
    ray = simulate("ray", adversaries__kind="nan", adversaries__count=1, federation__quorum=2, run__backend="ray")
    assert adapter_bytes(ray) == adapter_bytes(local)
    assert [found.accepted for found in ray.committed] == [found.accepted for found in local.committed]


def test_without_ray_its_backend_says_what_to_install(simulate: Any) -> None:
    import importlib.util

    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    with pytest.raises(FederationError, match="needs Ray") as caught:
        simulate(run__backend="ray")
    assert "neuralforge[ray]" in caught.value.hint


@pytest.mark.slow
def test_under_masks_a_simulation_comes_to_the_same_adapter(simulate: Any, tmp_path: Path) -> None:
    """The real participants, with their own training; what differs is rounding to fixed point."""
    simulate("masked", secure_aggregation__trust="peers", federation__rounds=1, federation__evaluate_every=0)
    simulate("plain", aggregation__weighting="uniform", federation__rounds=1, federation__evaluate_every=0)
    masked, plain = (read_adapter_folder(tmp_path / name / "adapter.lora").state for name in ("masked", "plain"))
    for key, array in plain.items():
        np.testing.assert_allclose(masked[key], array, rtol=0, atol=1e-7)
