"""One thread has the model; whoever is stale makes room, whoever is too many is turned away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuralforge.models.base import BaseModel
from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.served import ServedModel
from neuralforge.serving.worker import Busy, Delivered, Worker
from neuralforge_common.errors import ModelError


@pytest.fixture
def worker(tiny_base: BaseModel) -> Iterator[Worker]:
    worker = Worker(lambda: ServedModel(tiny_base), most_waiting=3)
    worker.opened.result(30)
    yield worker
    worker.close()


class Held:
    """Keeps the model's thread busy until it is let go."""

    def __init__(self, worker: Worker) -> None:
        self._go, begun = threading.Event(), threading.Event()

        def hold(model: ServedModel) -> None:
            begun.set()
            self._go.wait(30)

        worker.call(hold)
        assert begun.wait(30)

    def let_go(self) -> None:
        self._go.set()


def asked(worker: Worker, prompt: str = "def f(", **changes: object) -> queue.Queue[Delivered]:
    answers: queue.Queue[Delivered] = queue.Queue()
    worker.submit(CompletionRequest(prompt=prompt, **changes), answers.put)  # type: ignore[arg-type]
    return answers


def ended(answers: queue.Queue[Delivered]) -> tuple[str, Finish]:
    text = ""
    while True:
        item = answers.get(timeout=30)
        if isinstance(item, Piece):
            text += item.text
        elif isinstance(item, Finish):
            return text, item
        else:
            raise item


def test_a_newer_request_of_a_session_ends_the_one_under_way(worker: Worker) -> None:
    first = asked(worker, max_tokens=400, session="a")
    assert isinstance(first.get(timeout=30), Piece)
    second = asked(worker, max_tokens=4, session="a")
    assert ended(first)[1].reason == "cancelled"
    assert ended(second)[1].reason == "length"


def test_waiting_requests_of_a_session_are_dropped_for_its_newest_and_others_are_not(worker: Worker) -> None:
    held = Held(worker)
    stale = [asked(worker, max_tokens=4, session="a") for _ in range(9)]
    other, alone = asked(worker, max_tokens=4, session="b"), asked(worker, max_tokens=4)
    held.let_go()
    assert [ended(answers)[1].reason for answers in stale] == 8 * ["cancelled"] + ["length"]
    assert ended(other)[1].completion_tokens == ended(alone)[1].completion_tokens == 4


def test_more_than_may_wait_are_turned_away_and_a_cancelled_one_makes_room(worker: Worker) -> None:
    held = Held(worker)
    waiting = [asked(worker, max_tokens=2, session=str(number)) for number in range(3)]
    with pytest.raises(Busy, match="3 requests are waiting already"):
        asked(worker)
    worker.cancel_session("1")
    fourth = asked(worker, max_tokens=2)
    held.let_go()
    assert [ended(answers)[1].reason for answers in (*waiting, fourth)] == ["length", "cancelled", "length", "length"]


def test_an_error_is_delivered_to_who_asked_and_the_next_one_is_served(worker: Worker) -> None:
    with pytest.raises(ModelError, match="not loaded"):
        ended(asked(worker, model="gone"))
    assert ended(asked(worker, max_tokens=3))[1].completion_tokens == 3


def test_a_change_waits_for_the_completion_under_way_and_goes_before_those_that_wait(worker: Worker) -> None:
    order: list[str] = []
    held = Held(worker)
    later = asked(worker, max_tokens=2)
    change = worker.call(lambda model: order.append("change"))
    held.let_go()
    change.result(30)
    assert later.empty() or order == ["change"]
    assert ended(later)[1].reason == "length"


def test_a_model_that_cannot_be_opened_is_the_answer_to_everybody() -> None:
    def fail() -> ServedModel:
        raise ModelError("no such base")

    worker = Worker(fail)
    with pytest.raises(ModelError, match="no such base"):
        worker.opened.result(30)
    with pytest.raises(ModelError, match="no such base"):
        asked(worker)
    worker.close()


def test_closing_ends_what_is_under_way_and_what_waits(tiny_base: BaseModel) -> None:
    worker = Worker(lambda: ServedModel(tiny_base))
    worker.opened.result(30)
    running, waiting = asked(worker, max_tokens=400), asked(worker)
    running.get(timeout=30)
    worker.close()
    assert ended(running)[1].reason == ended(waiting)[1].reason == "cancelled"
    with pytest.raises(Busy):
        asked(worker)


def test_an_adapter_that_is_refused_is_told_to_who_wanted_it(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such folder"):
        worker.call(lambda model: model.load(tmp_path / "none.lora")).result(30)
