"""The report keeps what it is told, on whole lines, and its tables stay tables whatever a client calls itself."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from neuralforge_common.plan import TrainReport
from neuralforge_server import events
from neuralforge_simulations.cli.progress import SimulationProgress
from neuralforge_simulations.event_lines import EventFile, EventTail, Failed, Planted, SimulationEvent, of_line, to_line
from neuralforge_simulations.plots import write_plots
from neuralforge_simulations.report import METRICS, PLOTS, ClientFacts, Report

TOLD = TrainReport(
    round=1,
    nonce="n",
    base_fingerprint="f",
    rank=2,
    alpha=4.0,
    part="both",
    examples=8,
    steps=2,
    tokens=90,
    loss=2.5,
    norm=0.3,
    seconds=0.1,
)
EVENTS: tuple[SimulationEvent, ...] = (
    events.Waiting(round=1, online=1, wanted=2),
    events.Opened(done=0, rounds=2, summary="base: 3 modules", notices=("a notice",)),
    events.RoundBegan(round=1, clients=("a", "b"), bytes_down=100),
    events.Accepted(round=1, client="a", report=TOLD, norm=0.3, bytes_up=50),
    events.Turned(round=1, client="b", reason="norm", message="3 is above 1"),
    events.BelowQuorum(round=1, attempt=1, clients=1, wanted=2),
    events.RoundBegan(round=1, clients=("a", "b"), bytes_down=100),
    events.Accepted(round=1, client="a", report=TOLD, norm=0.3, bytes_up=50),
    events.Accepted(round=1, client="b", report=TOLD, norm=0.3, bytes_up=50),
    events.Unmasked(round=1, keys=3, shares=3, clients=("a", "b"), unmasked_by=2),
    events.RoundCommitted(
        round=1,
        rounds=2,
        clients=2,
        loss=2.5,
        exactness_error=0.1,
        seconds=0.0,
        figures={"clients": 2.0},
        privacy=("ε = 2 at δ = 1e-05, example-level",),
    ),
    events.Scored(round=1, scores=(events.Score(client="a", loss=2.0, accuracy=0.5, tokens=10),)),
    events.Finished(rounds=2, clients=("a",)),
    Planted(base=5.0, federated=1.0, examples=7),
    Failed(message="no", hint="yes"),
)


def report_in(folder: Path, *names: str) -> Report:
    clients = [ClientFacts(name=name, train=8, held_out=2) for name in names]
    return Report(folder, title="t", settings={"a.b": 1}, clients=clients)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_its_line(event: SimulationEvent) -> None:
    assert of_line(to_line(event)) == event


def test_every_kind_of_event_is_tried_above() -> None:
    assert {type(event) for event in EVENTS} == {*events.Event.__args__, Planted, Failed}  # type: ignore[attr-defined]


def test_a_tail_gives_every_event_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events"
    tail = EventTail(path)
    assert [*tail.news()] == []
    write = EventFile(path)
    write(EVENTS[0])
    write(EVENTS[1])
    assert [*tail.news()] == [EVENTS[0], EVENTS[1]]
    line = to_line(EVENTS[2])
    with path.open("a") as file:
        file.write(line[:20])
        file.flush()
        assert [*tail.news()] == []
        file.write(line[20:])
    assert [*tail.news()] == [EVENTS[2]]


def test_an_attempt_below_quorum_counts_in_bytes_and_not_in_updates(tmp_path: Path) -> None:
    report = report_in(tmp_path, "a", "b")
    for event in EVENTS[:11]:
        report(event)
    (found,) = report.committed
    assert (found.attempts, found.bytes_down, found.bytes_up) == (2, 400, 150)
    assert found.accepted == {"a", "b"}
    assert [event.client for event in found.turned] == ["b"]


def test_every_line_is_json_even_where_a_figure_is_not_a_number(tmp_path: Path) -> None:
    report = report_in(tmp_path, "a")
    for loss in (math.nan, math.inf):
        report.score(1, events.Score(client="a", loss=loss, accuracy=0.0, tokens=1))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / METRICS).read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@given(name=st.text(min_size=1, max_size=30), message=st.text(max_size=60))
def test_a_table_has_the_same_columns_in_every_row(
    tmp_path_factory: pytest.TempPathFactory, name: str, message: str
) -> None:
    report = report_in(tmp_path_factory.mktemp("r"), name)
    report(events.RoundBegan(round=1, clients=(name,), bytes_down=1))
    report(events.Turned(round=1, client=name, reason="norm", message=message))
    report.finish("done", plots=False)
    columns = 0
    for line in (report.folder / "summary.md").read_text().split("\n"):
        bars = line.replace("\\|", "").count("|")
        if line.startswith("|"):
            columns = columns or bars
            assert bars == columns, line
        else:
            assert not bars
            columns = 0


def test_many_clients_and_odd_names_are_drawn_too(tmp_path: Path) -> None:
    names = ["$x_1$ \\frac", "名前", "a" * 80, *(f"client-{n}" for n in range(40))]
    report = report_in(tmp_path, *names)
    for event in EVENTS[2:11]:
        report(event)
    for name in names:
        report.score(0, events.Score(client=name, loss=3.0, accuracy=0.1, tokens=5))
        report.score(1, events.Score(client=name, loss=2.0, accuracy=0.1, tokens=5))
    write_plots(report)
    assert all((tmp_path / name).is_file() for name in PLOTS)
    few = report_in(tmp_path / "few", *names[:3])
    for name in names[:3]:
        few.score(0, events.Score(client=name, loss=3.0, accuracy=0.1, tokens=5))
    write_plots(few)
    assert (tmp_path / "few" / "loss.png").is_file()


def test_a_second_run_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first = report_in(tmp_path, "a")
    for event in EVENTS:
        first(event)
    first.finish("done", plots=True)
    report_in(tmp_path, "a")
    assert len((tmp_path / METRICS).read_text().splitlines()) == 1
    assert not any((tmp_path / name).exists() for name in (*PLOTS, "summary.md")), "these are the first run's"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal: bool) -> None:
    screen = io.StringIO()
    with SimulationProgress(Console(file=screen, force_terminal=terminal, width=100)) as progress:
        for event in EVENTS[:12]:
            progress(event)
    shown = screen.getvalue()
    assert ("\x1b" in shown) is terminal
    assert ("━" in shown) is terminal
    assert "round 1 of 2: 2 clients, training loss 2.500, exactness error 0.1" in shown
    assert "b: no update (norm): 3 is above 1" in shown
    assert "nothing was committed" in shown
