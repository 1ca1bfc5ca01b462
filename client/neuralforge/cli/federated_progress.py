"""A federation's rounds as a person sees them: a line a round, and on a terminal a bar for the one at hand."""

from __future__ import annotations

import json
import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from neuralforge.federation.connection import EVALUATE, FINISH, TRAIN, Asked, Event, Sent
from neuralforge.federation.private_rounds import PrivateRounds
from neuralforge.training.events import Event as TrainingEvent
from neuralforge.training.events import StepDone
from neuralforge_common.plan import RoundPlan
from neuralforge_common.privacy import LEVELS, PrivacyTerms

WAITING = "waiting for the coordinator"


class RoundProgress:
    """Hears what the rounds and the training in them say."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._losses: list[float] = []
        self._fault: Exception | None = None
        self.finish_fault: Exception | None = None
        """What kept the finished adapter from being saved."""
        self.private: PrivateRounds | None = None
        """Where the spending of private rounds is looked up."""
        self._told: PrivacyTerms | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self) -> None:
        """Put the bar on the screen."""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._phase(WAITING)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """A line of its own."""
        self._console.print(line)

    def fault(self, fault: Exception) -> None:
        """What the coordinator is told in part."""
        self._fault = fault

    def training(self, event: TrainingEvent) -> None:
        """An observer of the training."""
        if isinstance(event, StepDone):
            figures = f"{event.step}/{event.total_steps}"
            if event.loss is not None:
                self._losses.append(event.loss)
                figures += f"  loss {event.loss:.3f}"
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, total=event.total_steps, completed=event.step, figures=figures)

    def rounds(self, event: Event) -> None:
        """An observer of the rounds."""
        match event:
            case Asked():
                self._losses.clear()
                self._fault = None
                if event.plan is not None and event.plan.privacy not in (None, self._told):
                    self._told = event.plan.privacy
                    self.say(_terms(event.plan))
                if event.plan is not None and event.kind in (TRAIN, EVALUATE):
                    doing = "" if event.kind == TRAIN else ", held-out examples"
                    self._phase(f"round {event.plan.round}/{event.plan.rounds}{doing}")
            case Sent():
                line = self._line(event)
                if line:
                    self._console.print(line, soft_wrap=True)
                plan = event.answer.plan
                if plan is not None and plan.privacy is not None and event.answer.kind == TRAIN:
                    self._spending(plan)
                self._phase(WAITING)

    def _line(self, sent: Sent) -> str:
        answer = sent.answer
        plan = answer.plan
        name = f"round {plan.round}/{plan.rounds}" if plan is not None else answer.kind.partition(".")[2] or answer.kind
        if answer.error:
            if answer.kind == FINISH:
                self.finish_fault = self._fault
            return f"{name}: not done: {self._fault or answer.error}"
        if answer.kind == TRAIN:
            loss = f", loss {math.fsum(self._losses) / len(self._losses):.3f}" if self._losses else ""
            steps = f"{answer.report.steps} steps" if answer.report is not None else "answered"
            masked = " under masks" if plan is not None and plan.trust == "peers" else ""
            went = sent.lost or f"{size(sent.bytes_sent)} sent{masked}"
            return f"{name}: {steps}{loss}, {went}, {answer.seconds:.1f} s"
        if answer.kind == EVALUATE and (scores := _scores(sent)) is not None:
            return f"{name}: together, perplexity {scores[0]:.2f} on held-out code, token accuracy {scores[1]:.1%}"
        return ""

    def _spending(self, plan: RoundPlan) -> None:
        spending = self.private.spent() if self.private is not None else None
        if spending is not None and plan.privacy is not None:
            self.say(
                f"privacy spent: ε = {spending.epsilon:.3g} of {plan.privacy.target_epsilon:g} at δ = "
                f"{spending.delta:g}, {LEVELS[spending.unit]}, in {spending.steps:,} steps"
            )

    def _phase(self, description: str) -> None:
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(description, total=None, figures="")


def _terms(plan: RoundPlan) -> str:
    """A private plan as its owner should know it."""
    terms = plan.privacy
    if terms is None:
        return ""
    return (
        f"private rounds: in each step a {terms.unit} is drawn with probability {terms.sample_rate:g}, its gradient "
        f"clipped to {terms.max_grad_norm:g}, the noise multiplier is {terms.noise_multiplier:g}; in all rounds "
        f"together at most ε = {terms.target_epsilon:g} at δ = {terms.delta:g}, {LEVELS[terms.unit]}"
    )


def size(count: int) -> str:
    """Bytes in decimal units."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count} bytes"


def _scores(sent: Sent) -> tuple[float, float] | None:
    """Perplexity and accuracy in an answer of this client; None where its policy keeps them, or nothing is held out."""
    try:
        facts = json.loads(str(sent.answer.reply.content["answer"]["json"]))
        loss = float(facts["loss"])
        return math.exp(loss) if loss < 700 else math.inf, float(facts["accuracy"])
    except (KeyError, TypeError, ValueError):
        return None
