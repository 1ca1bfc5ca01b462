"""What a task is: examples of something else, made from examples of code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from neuralforge.data.example import Example
from neuralforge_common.errors import DataError, TrainingError

COMMENT: Mapping[str, str] = {"python": "#", "ruby": "#", "shell": "#", "perl": "#", "r": "#"}
"""What begins a comment line; `//` where nothing is said."""


class Task(Protocol):
    """A way to make examples: `MultiTaskTrainer({YourTask(): 0.5, "completion": 0.5})` takes any object like this.

    The same example must give the same ones each time, or a run cannot be resumed. A frozen dataclass can be a key.
    """

    @property
    def name(self) -> str:
        """What tables and results call it; no two tasks of a run share it."""
        ...

    def examples(self, example: Example) -> Iterator[Example]:
        """Examples of the task from one example of code: context, completion and suffix in turn are a piece of file."""
        ...


Weights = Mapping[str, float] | Mapping[Task, float] | Mapping[str | Task, float]
"""Tasks, or names of shipped ones, and how much of what is learnt each is, in proportion to their sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExamples:
    """Examples of all tasks in one list, `groups` naming each one's task."""

    examples: tuple[Example, ...]
    groups: tuple[str, ...]

    def of(self, name: str) -> list[Example]:
        """Those of one task."""
        return [example for example, group in zip(self.examples, self.groups, strict=True) if group == name]


def made_by(tasks: Sequence[Task], examples: Sequence[Example]) -> TaskExamples:
    """What every task makes of the examples; what two windows of a file both hold comes once."""
    found: list[Example] = []
    groups: list[str] = []
    for task in tasks:
        own = {made.id: made for example in examples for made in task.examples(example)}
        found += own.values()
        groups += [task.name] * len(own)
    return TaskExamples(examples=tuple(found), groups=tuple(groups))


def check_found(tasks: Sequence[Task], made: TaskExamples, *, of: int) -> None:
    """Raises DataError where a task has found nothing to learn."""
    empty = [task.name for task in tasks if task.name not in made.groups]
    if empty:
        raise DataError(
            f"{', '.join(empty)}: nothing to learn in {of:,} examples of code",
            hint="leave the task out, or give code that has it: whole functions for bug_detection, documented ones for "
            "documentation",
        )


def named_task(name: str) -> Task:
    """The shipped task of that name; raises TrainingError."""
    from neuralforge.tasks.bug_detection import BugDetection
    from neuralforge.tasks.completion import Completion
    from neuralforge.tasks.documentation import Documentation

    shipped: tuple[Task, ...] = (Completion(), BugDetection(), Documentation())
    for task in shipped:
        if task.name == name:
            return task
    known = ", ".join(task.name for task in shipped)
    raise TrainingError(f"no task is called {name!r}, known: {known}", hint="a task of your own is given as an object")


def resolve_tasks(tasks: Weights) -> dict[Task, float]:
    """Names and tasks with their weights -> tasks with theirs, those of weight 0 left out; raises TrainingError."""
    resolved: dict[Task, float] = {}
    names = set()
    for task, weight in tasks.items():
        known = named_task(task) if isinstance(task, str) else task
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise TrainingError(f"the weight of the task {known.name} is {weight!r}, wanted a number from 0")
        if known.name in names:
            raise TrainingError(f"two tasks are called {known.name}", hint="one name, one share")
        names.add(known.name)
        if weight > 0:
            resolved[known] = float(weight)
    if not resolved:
        raise TrainingError("no task has a weight above 0", hint="{'completion': 0.5, 'bug_detection': 0.5}")
    return resolved
