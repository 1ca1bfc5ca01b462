"""A training run as a person sees it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from neuralforge.evaluation.metrics import Evaluation
from neuralforge.training.events import CheckpointSaved, Evaluated, Event, RunFinished, RunStarted, StepDone

LINE_SECONDS = 5.0
"""Where there is no terminal, a line no more often than this."""
SMOOTHING = 0.9


class TrainingProgress:
    """An observer that shows loss, speed and time left; `first` is what the score before the first step is of."""

    def __init__(self, console: Console, *, first: str = "base") -> None:
        self._console = console
        self._first = first
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._loss: float | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._steps = 0
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        """Show what the event says."""
        match event:
            case RunStarted():
                self._start(event)
            case StepDone():
                self._step(event)
            case Evaluated():
                mark = " (best so far)" if event.best and event.step else ""
                name = self._first if event.step == 0 else f"step {event.step}"
                self._console.print(f"held out, {name}: {describe(event.evaluation)}{mark}", highlight=False)
            case CheckpointSaved():
                self._console.print(f"checkpoint at step {event.step}: {event.path}", highlight=False, soft_wrap=True)
            case RunFinished():
                self.close()
                if event.best_step != event.step:
                    kept = f"{event.reason}: the adapter of step {event.best_step} is kept"
                    self._console.print(kept, highlight=False)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self, event: RunStarted) -> None:
        for notice in event.notices:
            self._console.print(notice, highlight=False)
        where = f"from step {event.step} of {event.total_steps}" if event.step else f"{event.total_steps} steps"
        self._console.print(
            f"training {event.trainable:,} parameters on {event.examples:,} examples, {where}; "
            f"{event.engine} engine, {event.precision}, padding {event.padding:.1%}",
            highlight=False,
        )
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=event.total_steps, completed=event.step, figures="")

    def _step(self, event: StepDone) -> None:
        if event.loss is not None:
            self._loss = event.loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * event.loss
        self._tokens += event.tokens
        self._seconds += event.seconds
        self._steps += 1
        speed = self._tokens / self._seconds
        figures = f"{speed:,.0f} tokens/s"
        if self._loss is not None:
            figures = f"loss {self._loss:.3f}  {figures}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.step, figures=figures)
            return
        now = time.monotonic()
        last = event.step == event.total_steps
        if last or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            left = (event.total_steps - event.step) * self._seconds / self._steps
            self._console.print(
                f"step {event.step}/{event.total_steps}  {figures}  about {left:.0f} s left", highlight=False
            )


def describe(evaluation: Evaluation) -> str:
    """Perplexity and accuracy in one phrase."""
    return f"perplexity {evaluation.perplexity:.2f}, token accuracy {evaluation.accuracy:.1%}"


def before_and_after(
    before: Evaluation, after: Evaluation, *, title: str, names: tuple[str, str] = ("base", "adapter")
) -> Table:
    """Two scores on the held-out examples beside each other."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in (*names, "change"):
        table.add_column(name, justify="right")
    table.add_row(
        "perplexity",
        f"{before.perplexity:.2f}",
        f"{after.perplexity:.2f}",
        f"{after.perplexity / before.perplexity - 1:+.1%}",
    )
    table.add_row(
        "token accuracy",
        f"{before.accuracy:.1%}",
        f"{after.accuracy:.1%}",
        f"{100 * (after.accuracy - before.accuracy):+.1f} points",
    )
    return table
