"""`MultiTaskTrainer`: one adapter for several tasks, by shares, judged on each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralforge.data.example import Example
from neuralforge.data.gather import gather
from neuralforge.data.jsonl import read_examples
from neuralforge.data.tokens import TokenizedExample
from neuralforge.evaluation.metrics import Evaluation
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.tasks.task import TaskExamples, Weights, check_found, made_by, resolve_tasks
from neuralforge.training.shares import Shares, SharesSource
from neuralforge.training.trainer import LoRATrainer, TrainResult
from neuralforge_common.config.schema import ModelSection
from neuralforge_common.errors import DataError, TrainingError

Code = str | Path | Sequence[Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One task of a run: its share, what it could draw from, how many examples it drew, and its held-out scores.

    `before` and `after` are of the adapter as it came and as it went, None where nothing of the task is held out.
    """

    name: str
    share: float
    examples: int
    drawn: int
    before: Evaluation | None
    after: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTaskResult:
    """The run as `LoRATrainer.train` tells it, over the held-out examples of all tasks together, and each task."""

    run: TrainResult
    tasks: tuple[TaskResult, ...]


def train_tasks(
    trainer: LoRATrainer,
    tasks: Weights,
    train: Sequence[Example],
    held_out: Sequence[Example] = (),
    **how: Any,
) -> MultiTaskResult:
    """Make the tasks' examples and learn them by shares; `how` is for `LoRATrainer.train`.

    What is held out is held out before tasks are made of it, so no task's example is learnt in another's disguise.

    Raises:
        DataError, TrainingError: a task finds nothing, a weight is none, or what `LoRATrainer.train` raises.
    """
    weights = resolve_tasks(tasks)
    made, judged = made_by(list(weights), train), made_by(list(weights), held_out)
    check_found(list(weights), made, of=len(train))
    tokenized, scored = trainer.tokenize(made.examples), _tokenized(trainer, judged)
    shares = Shares(groups=made.groups, shares={task.name: weight for task, weight in weights.items()})
    sources: list[SharesSource] = []

    def source(examples: Sequence[TokenizedExample], **numbers: int) -> SharesSource:
        sources.append(shares(examples, **numbers))
        return sources[0]

    before = {name: trainer.evaluate(part) for name, part in scored.items()}
    everything = trainer.tokenize(judged.examples) if scored else None
    run = trainer.train(tokenized, everything, source=source, **how)
    after = {name: trainer.evaluate(part) for name, part in scored.items()}
    draws = sources[0].drawn(run.steps)
    return MultiTaskResult(
        run=run,
        tasks=tuple(
            TaskResult(
                name=task.name,
                share=weight / sum(weights.values()),
                examples=made.groups.count(task.name),
                drawn=draws[task.name],
                before=before.get(task.name),
                after=after.get(task.name),
            )
            for task, weight in weights.items()
        ),
    )


class MultiTaskTrainer:
    """Learns several tasks with one `LoRATrainer`: `MultiTaskTrainer({"completion": 0.5, "bug_detection": 0.5})`.

    Weights are the tasks' shares of the examples that the optimizer sees. `model` None is the default base, a text its
    name; `options` are `LoRATrainer`'s.
    """

    def __init__(self, tasks: Weights, model: BaseModel | str | None = None, **options: Any) -> None:
        self.tasks = resolve_tasks(tasks)
        self._model = model
        self._options = options
        self._trainer: LoRATrainer | None = None

    @property
    def trainer(self) -> LoRATrainer:
        """The trainer of the adapter; the base is loaded when it is first asked for."""
        if self._trainer is None:
            model = self._model
            base = model if isinstance(model, BaseModel) else load_base_model(model or ModelSection().base)
            self._trainer = LoRATrainer(base, **self._options)
        return self._trainer

    def train(
        self,
        train_dataset: Code | None = None,
        eval_dataset: Code | None = None,
        *,
        sources: Sequence[str | Path] = (),
        from_git: str | Path | None = None,
        eval_fraction: float = 0.1,
        max_samples: int | None = None,
        max_eval_samples: int | None = 100,
        **how: Any,
    ) -> MultiTaskResult:
        """Learn from examples, a JSONL file of them, folders or a repository; `how` is for `LoRATrainer.train`.

        Of `sources` and `from_git` a share is held out by file, and no near-duplicate stands on both sides; of
        `train_dataset` nothing is but `eval_dataset`.

        Raises:
            DataError, TrainingError: no data is named, or two kinds of it; what `train_tasks` raises.
        """
        if train_dataset is not None:
            if sources or from_git is not None:
                raise DataError("two kinds of data: wanted train_dataset, or sources and from_git", hint="name one")
            held_out = _examples(eval_dataset) if eval_dataset is not None else []
            return train_tasks(self.trainer, self.tasks, _examples(train_dataset), held_out, **how)
        if not sources and from_git is None:
            raise DataError(
                "no data: nothing says what to learn from",
                hint="train('dataset.jsonl'), train(sources=['./src']) or train(from_git='.')",
            )
        dataset = gather(
            sources=[Path(source) for source in sources],
            from_git=Path(from_git) if from_git is not None else None,
            eval_fraction=eval_fraction,
            max_samples=max_samples,
            max_eval_samples=max_eval_samples,
        )
        return train_tasks(self.trainer, self.tasks, dataset.train, dataset.evaluation, **how)

    def save_adapter(self, path: str | Path, **facts: Any) -> Path:
        """Write the `.lora` folder, as `LoRATrainer.save_adapter`; raises TrainingError before anything was learnt."""
        if self._trainer is None:
            raise TrainingError("nothing has been learnt yet", hint="call train first")
        names = ", ".join(f"{task.name} {weight:g}" for task, weight in self.tasks.items())
        return self._trainer.save_adapter(path, **{"description": f"LoRA adapter for {names}"} | facts)


def _examples(code: Code) -> list[Example]:
    return list(read_examples(Path(code)) if isinstance(code, str | Path) else code)


def _tokenized(trainer: LoRATrainer, made: TaskExamples) -> dict[str, list[Any]]:
    return {name: trainer.tokenize(made.of(name)) for name in dict.fromkeys(made.groups)}
