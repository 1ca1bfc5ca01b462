"""Tasks on the command line: `--tasks completion=0.5,…`, the run, and a table of what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from neuralforge.data.dataset import Dataset
from neuralforge_common.config.schema import TasksSection
from neuralforge_common.errors import ConfigError

if TYPE_CHECKING:
    from neuralforge.tasks.multi_task import MultiTaskResult
    from neuralforge.training.trainer import LoRATrainer, TrainResult


def shares_given(text: object) -> dict[str, object]:
    """`completion=0.5,bug_detection=0.3` as configuration keys; tasks that are not named get nothing.

    Raises:
        ConfigError: it is written otherwise, or names a task twice or one that there is not.
    """
    known = tuple(TasksSection.model_fields)
    shares: dict[str, object] = {}
    for part in str(text).split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        if not equals or name not in known or name in shares:
            raise ConfigError(
                [f"--tasks: got {part.strip()!r}, wanted each of {', '.join(known)} at most once, as TASK=SHARE"],
                hint="--tasks completion=0.5,bug_detection=0.3,documentation=0.2",
            )
        shares[name] = share
    return {f"tasks.{name}": shares.get(name, 0.0) for name in known}


def as_tasks(dataset: Dataset, shares: Mapping[str, float]) -> Dataset:
    """The dataset with the tasks' examples in the place of the code; raises DataError where a task finds nothing."""
    from neuralforge.tasks.task import check_found, made_by, resolve_tasks

    tasks = list(resolve_tasks(shares))
    train = made_by(tasks, dataset.train)
    check_found(tasks, train, of=len(dataset.train))
    return replace(dataset, train=train.examples, evaluation=made_by(tasks, dataset.evaluation).examples)


def learn_tasks(
    trainer: LoRATrainer, shares: Mapping[str, float], dataset: Dataset, console: Console, **how: Any
) -> TrainResult:
    """Learn a dataset's tasks by shares, and print a table of them."""
    from neuralforge.tasks.multi_task import train_tasks

    result = train_tasks(trainer, shares, dataset.train, dataset.evaluation, **how)
    if result.run.completed:
        console.print(tasks_table(result))
    return result.run


def tasks_table(result: MultiTaskResult) -> Table:
    """Each task's share, how much of it there was and was seen, and its held-out scores before and after."""
    table = Table(title="tasks", title_justify="left")
    for name in ("task", "share", "drawn", "perplexity", "token accuracy"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for task in result.tasks:
        before, after = task.before, task.after
        scores = ["nothing held out", ""]
        if before is not None and after is not None:
            scores = [
                f"{before.perplexity:.2f} → {after.perplexity:.2f}",
                f"{before.accuracy:.1%} → {after.accuracy:.1%}",
            ]
        table.add_row(task.name, f"{task.share:.0%}", f"{task.drawn:,} of {task.examples:,}", *scores)
    return table
