"""How well an adapter still does on what earlier sessions have held out: the loss of that time beside today's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuralforge.continual.held_out import HeldOutItem
from neuralforge.data.example import Example
from neuralforge.evaluation.metrics import Evaluation, score_all, summarize
from neuralforge.training.engine import ExampleScore

if TYPE_CHECKING:
    from neuralforge.training.trainer import LoRATrainer

Score = Callable[[Sequence[Example], int], list[ExampleScore]]
"""Scores of examples that are cut to so many tokens; `index` is an example's place among those that were given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A session's held-out examples: `then`, right after it was learnt, and `now`."""

    session: str
    then: Evaluation
    now: Evaluation

    @property
    def forgotten(self) -> float:
        """By how many nats a token the loss has risen; below 0, what came later has helped."""
        return self.now.loss - self.then.loss


def score_with(trainer: LoRATrainer) -> Score:
    """By this trainer, its adapter as it stands."""
    return lambda examples, length: score_all(trainer.engine, trainer.tokenize(examples, max_length=length))


def forget_report(items: Iterable[HeldOutItem], score: Score) -> list[Kept]:
    """One line a session, oldest first; examples that have no target any more are left out on both sides."""
    sessions: dict[str, list[HeldOutItem]] = {}
    for item in items:
        sessions.setdefault(item.session, []).append(item)
    report = []
    for session, mine in sessions.items():
        now = score([item.example for item in mine], mine[0].max_length)
        then = [mine[found.index].then for found in now]
        report.append(Kept(session=session, then=summarize(then), now=summarize(now)))
    return report
