"""The training loop: batches to gradients to steps, evaluated, checkpointed and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from neuralforge.data.tokens import TokenizedExample
from neuralforge.evaluation.metrics import Evaluation, score_all, summarize
from neuralforge.training.checkpoint import Checkpoint, CheckpointFolder, Counters
from neuralforge.training.engine import Engine
from neuralforge.training.events import CheckpointSaved, Evaluated, Observer, RunFinished, StepDone, tell
from neuralforge.training.flat import FlatParameters
from neuralforge.training.gradient import GradientSource
from neuralforge.training.penalty import Penalty, Settling
from neuralforge.training.schedule import Scheduler
from neuralforge_common.errors import BudgetSpent, TrainingError

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run goes, in plain numbers. `total_steps` counts optimizer steps; `max_grad_norm` 0 means no clipping.

    `evaluation_steps` None evaluates at the end of each epoch; `patience` is how many evaluations in a row may
    bring nothing before learning stops, 0 for no such stop; `checkpoint_steps` 0 saves at the end alone. `keeps` says
    which weights are the result: those that did best on what is held out, or the last ones whatever was measured.
    """

    total_steps: int
    batch_size: int
    accumulation: int
    seed: int
    max_grad_norm: float
    weight_decay: float
    evaluation_steps: int | None
    patience: int
    checkpoint_steps: int
    track_gradients: bool = False
    keeps: Literal["best", "last"] = "best"


class Loop:
    """One run along `gradient`, from where `counters` stand; `restore` first to go on from a checkpoint.

    `trainable` is a mask of the flat vector: values where it is False are the same at the end, to the last bit.
    """

    def __init__(
        self,
        engine: Engine,
        flat: FlatParameters,
        plan: Plan,
        scheduler: Scheduler,
        *,
        gradient: GradientSource,
        evaluation: Sequence[TokenizedExample],
        counters: Counters,
        checkpoints: CheckpointFolder | None,
        observers: tuple[Observer, ...],
        penalties: tuple[Penalty, ...] = (),
        trainable: torch.Tensor | None = None,
    ) -> None:
        self._engine = engine
        self._flat = flat
        self._plan = plan
        self._scheduler = scheduler
        self._gradient = gradient
        self._evaluation = evaluation
        self.counters = counters
        self._checkpoints = checkpoints
        self._observers = observers
        self._penalties = penalties
        self._trainable = trainable
        self._before = flat.vector.detach().clone() if trainable is not None else None
        self._best = flat.vector.detach().clone()
        self._optimizer = torch.optim.AdamW(
            [flat.vector], lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=plan.weight_decay, fused=True
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint` as if the run had never stopped."""
        self.counters = checkpoint.counters
        device = self._flat.vector.device
        self._flat.load(checkpoint.vector.to(device))
        self._best = checkpoint.best.to(device)
        self._optimizer.state[self._flat.vector] = {
            "step": torch.tensor(float(checkpoint.counters.step), device=device),
            "exp_avg": checkpoint.first_moment.to(device),
            "exp_avg_sq": checkpoint.second_moment.to(device),
        }

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Learn until done; False where `stop` said so first: the state is saved and `restore` will go on from it.

        At the end the adapter is the best one that was evaluated, or the last where nothing is held out. Where a
        privacy budget is spent it ends before the step that would exceed it. Raises TrainingError where the loss is not
        finite; checkpoints from before stay.
        """
        if self.counters.step == 0 and self._evaluation and self.counters.first_loss is None:
            self._evaluate()
        while not self.counters.finished and self.counters.step < self._plan.total_steps:
            if stop():
                self.save()
                return False
            try:
                self._step(self.counters.step)
            except BudgetSpent as spent:
                if self._evaluation:
                    self._evaluate()
                return self._end(spent.message, may_go_on=True)
            done = self.counters.step
            if self._evaluation and self._evaluation_due(done):
                self._evaluate()
            every = self._plan.checkpoint_steps
            if every and done % every == 0 and done < self._plan.total_steps and not self.counters.finished:
                self.save()
        return self._end("all steps are done")

    def _end(self, reason: str, *, may_go_on: bool = False) -> bool:
        if not self._evaluation:
            self._best = self._flat.vector.detach().clone()
            self.counters = replace(self.counters, best_step=self.counters.step)
        if may_go_on:
            self.save()  # with more to spend, a run goes on from here
        if not self.counters.finished:
            self.counters = replace(self.counters, finished=reason)
        if not may_go_on:
            self.save()
        self._flat.load(self._best)
        tell(
            self._observers,
            RunFinished(step=self.counters.step, best_step=self.counters.best_step, reason=self.counters.finished),
        )
        return True

    def save(self) -> None:
        """Put everything needed to go on onto the disk, if there is a folder for it."""
        if self._checkpoints is None:
            return
        state = self._optimizer.state.get(self._flat.vector, {})
        blank = torch.zeros_like(self._flat.vector)
        path = self._checkpoints.save(
            Checkpoint(
                counters=replace(self.counters, loss_scale=getattr(self._engine, "loss_scale", 1.0)),
                vector=self._flat.vector,
                first_moment=state.get("exp_avg", blank),
                second_moment=state.get("exp_avg_sq", blank),
                best=self._best,
            )
        )
        tell(self._observers, CheckpointSaved(step=self.counters.step, path=path))

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        made = self._gradient(step)
        norms = self._norms()
        penalty = sum(term.add(self._flat.vector, self._flat.gradient) for term in self._penalties)
        if self._trainable is not None:
            self._flat.gradient.mul_(self._trainable)
        norm = float(torch.linalg.vector_norm(self._flat.gradient))
        if (made.loss is not None and not math.isfinite(made.loss)) or (made.usable and not math.isfinite(norm)):
            raise TrainingError(
                f"the loss of step {step + 1} is not a finite number (loss {made.loss}, gradient norm {norm})",
                hint="lower --learning-rate; the checkpoints before this step are kept",
            )
        rate = self._scheduler(step)
        if made.usable:
            clipped = self._plan.max_grad_norm > 0 and norm > self._plan.max_grad_norm
            if clipped:
                self._flat.gradient.mul_(self._plan.max_grad_norm / norm)
            self._optimizer.param_groups[0]["lr"] = rate
            self._optimizer.step()
            self._settle(rate * (self._plan.max_grad_norm / norm if clipped else 1.0))
            if self._trainable is not None and self._before is not None:
                # A zero gradient is not enough: weight decay would still move what it is zero for.
                self._flat.load(torch.where(self._trainable, self._flat.vector.detach(), self._before))
        self.counters = replace(self.counters, step=step + 1, tokens=self.counters.tokens + made.tokens)
        tell(
            self._observers,
            StepDone(
                step=step + 1,
                total_steps=self._plan.total_steps,
                epoch=(step + 1) / self._gradient.steps_per_epoch,
                loss=made.loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens=made.tokens,
                seconds=time.perf_counter() - began,
                gradient_norms=norms,
                penalty=penalty,
            ),
        )

    def _settle(self, rate: float) -> None:
        settling = [term for term in self._penalties if isinstance(term, Settling)]
        if not settling:
            return
        # What AdamW makes of a gradient: rate · m / (√v + ε), both moments corrected for their start at zero.
        state = self._optimizer.state[self._flat.vector]
        correction = 1 - ADAM_BETAS[1] ** int(state["step"])
        rates = rate / ((state["exp_avg_sq"] / correction).sqrt_() + ADAM_EPS)
        for term in settling:
            term.settle(self._flat.vector.detach(), rates)

    def _norms(self) -> dict[str, float]:
        if not self._plan.track_gradients:
            return {}
        return {
            name: float(torch.linalg.vector_norm(place.of(self._flat.gradient)))
            for name, place in self._flat.places.items()
        }

    def _evaluation_due(self, done: int) -> bool:
        every = self._plan.evaluation_steps or self._gradient.steps_per_epoch
        return done % every == 0 or done == self._plan.total_steps

    def _evaluate(self) -> None:
        began = time.perf_counter()
        result: Evaluation = summarize(score_all(self._engine, self._evaluation))
        counters = self.counters
        if counters.step == 0 and not math.isfinite(result.loss):
            raise TrainingError(
                f"the base gives a loss of {result.loss} on the held-out examples before anything was learnt",
                hint="its weights are damaged, or it needs --precision fp32",
            )
        best = self._plan.keeps == "last" or counters.best_loss is None or result.loss < counters.best_loss
        if counters.first_loss is None:
            counters = replace(counters, first_loss=result.loss, first_accuracy=result.accuracy)
        if best:
            self._best = self._flat.vector.detach().clone()
            counters = replace(
                counters,
                best_loss=result.loss,
                best_accuracy=result.accuracy,
                best_step=counters.step,
                evaluations_since_best=0,
            )
        else:
            since = counters.evaluations_since_best + 1
            stopped = (
                ""
                if not self._plan.patience or since < self._plan.patience
                else (f"{since} evaluations in a row brought nothing")
            )
            counters = replace(counters, evaluations_since_best=since, finished=stopped)
        self.counters = counters
        seconds = time.perf_counter() - began
        told = best and self._plan.keeps == "best"  # of no interest where the last weights are kept
        tell(self._observers, Evaluated(step=counters.step, evaluation=result, best=told, seconds=seconds))
