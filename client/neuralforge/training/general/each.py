"""Each example's own LoRA gradient out of one backward pass of autograd.

The A and B maps of PEFT's LoRA modules are computed by a function whose backward writes one gradient an example in the
place of their sum: the same matmuls, batched over examples. The parameters' own `.grad` never comes into being.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from neuralforge.training.flat import Place
from neuralforge_common.errors import TrainingError

WAY_OUT = "try privacy.engine: opacus, or leave this module out of lora.target_modules"


@dataclass(frozen=True, slots=True)
class Map:
    """One linear map of LoRA, by the name of its weight, and where the weight stands in the flat vector."""

    name: str
    module: nn.Linear
    place: Place


@dataclass(slots=True, kw_only=True)
class Sink:
    """Where the gradients of one pass go: (n, P) `rows`, the row of each example, what they are multiplied with.

    `written` names the weights that have had a gradient.
    """

    rows: torch.Tensor
    owners: torch.Tensor
    factor: float
    sides: str
    written: set[str] = field(default_factory=set)

    def add(self, target: Map, x: torch.Tensor, upstream: torch.Tensor) -> None:
        """Add upstreamᵢᵀ xᵢ of each example i, (d_out, d_in), to its row."""
        self.written.add(target.name)
        if not any(f".lora_{side}." in target.name for side in self.sides):
            return
        each = torch.bmm(upstream.flatten(1, -2).transpose(1, 2), x.flatten(1, -2))
        place = target.place
        matrices = self.rows[:, place.offset : place.offset + place.size].unflatten(1, place.shape)
        matrices.index_add_(0, self.owners, each.to(matrices.dtype), alpha=self.factor)


class EachLinear(torch.autograd.Function):
    """y = x Wᵀ for x (n, …, d_in); W's gradient goes to the sink, one matrix an example."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, target: Map, sink: Sink) -> torch.Tensor:
        """As `functional.linear`; under autocast in autocast's type."""
        # Through `save_for_backward`, or checkpointing could not let go of x.
        ctx.save_for_backward(x, weight)
        ctx.target, ctx.sink = target, sink
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Write each example's gradient of W, pass that of x on."""
        x, weight = ctx.saved_tensors
        d_y = upstream[0].to(weight.dtype)
        ctx.sink.add(ctx.target, x.to(weight.dtype), d_y)
        d_x = (d_y @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        return d_x, None, None, None


class EachGradient:
    """The LoRA maps of `model`, each of whose weights has a place in `places`.

    Raises:
        TrainingError: a trainable parameter that is not the weight of a linear map without bias.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Place]) -> None:
        self._maps = [_map(model, name, place) for name, place in places.items()]
        named = dict(model.named_parameters())
        self._parameters = [(name, named[name]) for name in places]

    @contextmanager
    def into(
        self, rows: torch.Tensor, owners: Sequence[int], *, sides: str = "AB", factor: float = 1.0
    ) -> Iterator[None]:
        """While this lasts, a forward and backward pass adds `factor` · the gradient of example i to rows[owners[i]].

        Raises:
            TrainingError: a map whose input's first dimension is not the batch, or that had no part in the pass.
        """
        sink = Sink(rows=rows, owners=torch.tensor(owners, device=rows.device), factor=factor, sides=sides)
        with gradients_apart(self._parameters) as strays:
            try:
                for target in self._maps:
                    target.module.forward = partial(_forward, target, sink)  # type: ignore[method-assign]
                yield
            finally:
                for target in self._maps:
                    del target.module.forward
            missed = [target.name for target in self._maps if target.name not in sink.written]
            if missed or strays():
                name, what = (missed[0], "had no part in") if missed else (strays()[0], "was used past its module in")
                raise TrainingError(f"{name} {what} the pass: no gradient of single examples", hint=WAY_OUT)


@contextmanager
def gradients_apart(parameters: Sequence[tuple[str, nn.Parameter]]) -> Iterator[Any]:
    """Take the parameters' `.grad` away for a while; gives a call that names those that have got another since."""
    kept = [parameter.grad for _, parameter in parameters]
    for _, parameter in parameters:
        parameter.grad = None
    try:
        yield lambda: [name for name, parameter in parameters if parameter.grad is not None]
    finally:
        for (_, parameter), gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def check_input(name: str, x: torch.Tensor, count: int) -> None:
    """Refuse by name a map that is not given `count` examples: rows (tokens, d) of a mixture could be anyone's."""
    if x.dim() < 3 or x.shape[0] != count:
        raise TrainingError(
            f"{name} is given {tuple(x.shape)}, wanted one entry for each of {count} examples first, then their tokens",
            hint="leave this module out of lora.target_modules",
        )


def _forward(target: Map, sink: Sink, x: torch.Tensor) -> torch.Tensor:
    check_input(target.name, x, len(sink.owners))
    result: torch.Tensor = EachLinear.apply(x, target.module.weight, target, sink)
    return result


def _map(model: nn.Module, name: str, place: Place) -> Map:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    bias = getattr(module, "bias", None)
    if not (type(module) is nn.Linear and leaf == "weight" and bias is None):
        raise TrainingError(
            f"{name} of a {type(module).__name__}: gradients of single examples are made for plain linear maps",
            hint="try privacy.engine: opacus",
        )
    return Map(name, module, place)
