"""The one thread that the model belongs to, and who waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge_common.errors import ServingError

if TYPE_CHECKING:  # whoever imports this need not wait for torch: the thread does
    from neuralforge.serving.served import ServedModel

MOST_WAITING = 16
"""Requests that may wait; one more is turned away."""

Delivered = Piece | Finish | Exception
_Result = TypeVar("_Result")


class Busy(ServingError):
    """Too many requests wait already."""


class Job:
    """A completion under way; `cancel` may be called from any thread and ends it at the next token."""

    def __init__(self, request: CompletionRequest, deliver: Callable[[Delivered], None]) -> None:
        self.request = request
        self.deliver = deliver
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Give it up; a Finish with the reason `cancelled` is still delivered."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether it was given up."""
        return self._cancelled.is_set()


class Worker:
    """Opens the model in a thread of its own and does one thing after the other with it."""

    def __init__(self, open_model: Callable[[], ServedModel], *, most_waiting: int = MOST_WAITING) -> None:
        self.opened: Future[ServedModel] = Future()
        self._open = open_model
        self._most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._calls: deque[Callable[[ServedModel], None]] = deque()
        self._running: Job | None = None
        self._closed = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, request: CompletionRequest, deliver: Callable[[Delivered], None]) -> Job:
        """Have a completion written; `deliver` is called in the model's thread: pieces, then a Finish or an exception.

        An earlier request of the same session is cancelled.

        Raises:
            Busy: as many requests as may wait are waiting.
            Exception: whatever the model could not be opened for.
        """
        if self._failure is not None:
            raise self._failure
        job = Job(request, deliver)
        stale: list[Job] = []
        with self._changed:
            if request.session:
                stale = [old for old in self._waiting if old.request.session == request.session]
                if self._running is not None and self._running.request.session == request.session:
                    self._running.cancel()
            dropped = [old for old in self._waiting if old in stale or old.cancelled()]
            for old in dropped:
                self._waiting.remove(old)
            if self._closed or len(self._waiting) >= self._most_waiting:
                refused = True
            else:
                refused = False
                self._waiting.append(job)
                self._changed.notify()
        for old in dropped:
            old.cancel()
            _deliver(old, _NEVER_BEGUN)
        if refused:
            raise Busy(f"{self._most_waiting} requests are waiting already", hint="ask again in a moment")
        return job

    def cancel_session(self, session: str) -> None:
        """Give up what is under way or waits for a session."""
        with self._changed:
            jobs = [*self._waiting, *([self._running] if self._running is not None else [])]
        for job in jobs:
            if job.request.session == session:
                job.cancel()

    def call(self, function: Callable[[ServedModel], _Result]) -> Future[_Result]:
        """Do something with the model between two completions, before those that wait.

        Raises:
            Busy: the worker is closed.
        """
        future: Future[_Result] = Future()

        def run(model: ServedModel) -> None:
            try:
                future.set_result(function(model))
            except Exception as error:
                model.writer.forget()
                future.set_exception(error)

        with self._changed:
            if self._closed:
                raise Busy("the server stops")
            self._calls.append(run)
            self._changed.notify()
        return future

    def close(self, *, timeout: float = 10) -> None:
        """Give up everything and let the thread end."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running is not None else [])]
            for job in jobs:
                job.cancel()
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        try:
            model = self._open()
        except Exception as error:
            with self._changed:
                self._failure, self._closed = error, True
                jobs = list(self._waiting)
            self.opened.set_exception(error)
            for job in jobs:
                _deliver(job, error)
            return
        self.opened.set_result(model)
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._closed or self._calls or self._waiting)
                if self._closed:
                    left = list(self._waiting)
                    self._waiting.clear()
                    break
                call = self._calls.popleft() if self._calls else None
                next_job = None if call is not None else self._waiting.popleft()
                self._running = next_job
            if call is not None:
                call(model)
            elif next_job is not None:
                _write(model, next_job)
        for job in left:
            _deliver(job, _NEVER_BEGUN)


_NEVER_BEGUN = Finish(
    reason="cancelled",
    prompt_tokens=0,
    reused_tokens=0,
    completion_tokens=0,
    truncated=False,
    prompt_seconds=0.0,
    write_seconds=0.0,
)


def _write(model: ServedModel, job: Job) -> None:
    if job.cancelled():
        _deliver(job, _NEVER_BEGUN)
        return
    try:
        for item in model.write(job.request, job.cancelled):
            _deliver(job, item)
    except Exception as error:
        model.writer.forget()
        _deliver(job, error)


def _deliver(job: Job, item: Delivered) -> None:
    try:
        job.deliver(item)
    except RuntimeError:  # the event loop that waited has closed
        job.cancel()
