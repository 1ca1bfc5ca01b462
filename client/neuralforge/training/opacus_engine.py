"""The second engine of privacy: gradients of single examples from Opacus (Yousefpour et al. 2021), the rest as general.

It serves adapters whose maps are not plain linear ones, and it is what ours is compared with in tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from peft import PeftModel
from torch import nn

from neuralforge.data.batch import Batch
from neuralforge.data.soft import TopLogits
from neuralforge.training.engine import EngineOptions, ExampleScore
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.each import check_input, gradients_apart
from neuralforge.training.general.engine import EACH_SCALE, GeneralEngine
from neuralforge.training.losses.context import ExampleLoss
from neuralforge_common.errors import TrainingError


class OpacusEngine:
    """The general engine, but `accumulate_each` is Opacus' hooks on the trainable modules.

    Raises:
        TrainingError: gradient checkpointing, whose second forward pass Opacus takes for another batch.
    """

    name = "opacus"

    def __init__(self, general: GeneralEngine, model: PeftModel, flat: FlatParameters, options: EngineOptions) -> None:
        if options.gradient_checkpointing:
            raise TrainingError("the opacus engine cannot train this: gradient checkpointing", hint="leave it out")
        self.precision = general.precision
        self.apart = general.apart
        self._general = general
        self._model = model
        self._flat = flat
        named = dict(model.named_parameters())
        self._parameters = [(name, named[name]) for name in flat.places]

    @property
    def loss(self) -> ExampleLoss | None:
        """As the general engine."""
        return self._general.loss

    @loss.setter
    def loss(self, loss: ExampleLoss | None) -> None:
        self._general.loss = loss

    def accumulate(self, batch: Batch, *, scale: float, seed: int) -> float:
        """As the general engine."""
        return self._general.accumulate(batch, scale=scale, seed=seed)

    def accumulate_each(
        self,
        batch: Batch,
        rows: torch.Tensor,
        *,
        owners: Sequence[int],
        scales: Sequence[float],
        sides: str = "AB",
        seed: int,
    ) -> list[float]:
        """Add the gradient of `scales[i]` · the summed loss of example i alone to `rows[owners[i]]`.

        Raises:
            TrainingError: a trainable parameter for which Opacus gives no gradients of these examples.
        """
        count = len(batch.examples)
        fixed = EACH_SCALE if self._general.autocasts else 1.0
        scale = self._general.per_target(batch, scales) * fixed
        with gradients_apart(self._parameters), self._watching(count):
            losses = self._general.backward(batch, scale=scale, seed=seed)
            wanted = [(n, p) for n, p in self._parameters if any(f".lora_{side}." in n for side in sides)]
            self._add(wanted, rows, torch.tensor(owners, device=rows.device), factor=1 / fixed)
        return [float(part.sum()) for part in losses.split([example.targets for example in batch.examples])]

    def score(self, batch: Batch) -> list[ExampleScore]:
        """As the general engine."""
        return self._general.score(batch)

    def top_logits(self, batch: Batch, *, k: int) -> dict[int, TopLogits]:
        """As the general engine."""
        return self._general.top_logits(batch, k=k)

    def unscale(self) -> bool:
        """As the general engine."""
        return self._general.unscale()

    @contextmanager
    def _watching(self, count: int) -> Iterator[None]:
        """Opacus' hooks on the trainable modules, for a pass of `count` examples."""
        # Not GradSampleModule: a wrapped model is another model to PEFT and to whoever saves it.
        hooks = GradSampleHooks(self._model, loss_reduction="sum", batch_first=True)
        checks = [
            self._model.get_submodule(path).register_forward_pre_hook(partial(_check, path, count))
            for path in sorted({name.rpartition(".")[0] for name in self._flat.places})
        ]
        try:
            with warnings.catch_warnings():
                # The lowest map's input is a frozen embedding: it needs no gradient, and Opacus none from it.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                yield
        finally:
            for check in checks:
                check.remove()
            hooks.cleanup()

    def _add(
        self, parameters: Sequence[tuple[str, Any]], rows: torch.Tensor, owners: torch.Tensor, *, factor: float
    ) -> None:
        for name, parameter in parameters:
            each = parameter.grad_sample
            if not isinstance(each, torch.Tensor) or len(each) != len(owners):
                raise TrainingError(f"{name} had no part in the pass: Opacus has no gradient of single examples for it")
            place = self._flat.places[name]
            matrices = rows[:, place.offset : place.offset + place.size].unflatten(1, place.shape)
            matrices.index_add_(0, owners, each.to(matrices.dtype), alpha=factor)


def _check(name: str, count: int, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
    check_input(name, arguments[0], count)
