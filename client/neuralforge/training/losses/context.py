"""What a loss is given, and how an engine calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol

import torch

from neuralforge.data.tokens import TokenizedExample
from neuralforge_common.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossContext:
    """The example that a loss looks at; `seed` changes with every step and example, for a loss that draws."""

    example: TokenizedExample
    decode: Callable[[Sequence[int]], str]
    seed: int

    @property
    def language(self) -> str:
        """The language that the dataset says, or ""."""
        return self.example.language

    @property
    def targets(self) -> tuple[int, ...]:
        """The token ids to predict, the end mark last where there is one."""
        return self.example.tokens[self.example.start :]

    @property
    def code_targets(self) -> tuple[int, ...]:
        """Those that are code: without the end mark."""
        return self.targets[:-1] if self.example.ended else self.targets

    @property
    def text(self) -> str:
        """What stands before the cursor, as far as the model is shown it."""
        return self.decode(self.example.context or self.example.tokens[: self.example.start])

    @property
    def completion(self) -> str:
        """The text to predict."""
        return self.decode(self.code_targets)


class Loss(Protocol):
    """A loss of one example: a mean over its tokens, as torch's own losses are.

    Examples are weighed by their number of targets, so that the mean cross-entropy is what is trained on without any.
    It must depend on nothing but its arguments; then each example has a gradient of its own, also under privacy.
    """

    def __call__(self, predictions: torch.Tensor, targets: torch.Tensor, context: LossContext) -> torch.Tensor:
        """A scalar from logits (N, V), fp32, and target ids (N,); differentiable in the logits."""
        ...


def loss_name(loss: Loss) -> str:
    """What tells a loss from another, as far as that can be told: a dataclass by its values, a function by its name."""
    return (
        repr(loss) if is_dataclass(loss) else f"{loss.__module__}.{getattr(loss, '__qualname__', type(loss).__name__)}"
    )


# While a loss runs: which example it looks at. Helpers that are given predictions alone ask here.
_CURRENT: ContextVar[LossContext | None] = ContextVar("neuralforge_loss_context", default=None)


def current_context() -> LossContext:
    """The example that the running loss looks at.

    Raises:
        TrainingError: no loss is running.
    """
    context = _CURRENT.get()
    if context is None:
        raise TrainingError(
            "there is no example to look at outside of a loss", hint="call it in the function given as loss="
        )
    return context


@dataclass(frozen=True, slots=True, eq=False)
class ExampleLoss:
    """A loss as engines call it."""

    function: Loss
    tokenizer: Any

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, example: TokenizedExample, *, seed: int
    ) -> torch.Tensor:
        """The loss of one example, a scalar; raises TrainingError where the function gives anything else."""
        drawn = (seed * 1_000_003 + example.index) & (2**63 - 1)
        context = LossContext(example=example, decode=self._decode, seed=drawn)
        token = _CURRENT.set(context)
        try:
            value = self.function(logits, targets, context)
        finally:
            _CURRENT.reset(token)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise TrainingError(f"the loss gave {got}, wanted one number as a tensor", hint="take the mean over tokens")
        if not value.requires_grad:
            raise TrainingError(
                "the loss does not depend on the predictions: there is nothing to learn from",
                hint="compute it from the first argument with torch's functions",
            )
        return value.reshape(()).float()

    def gradient(
        self, logits: torch.Tensor, targets: torch.Tensor, example: TokenizedExample, *, seed: int
    ) -> tuple[float, torch.Tensor]:
        """The loss, and its gradient with respect to the logits (N, V)."""
        with torch.enable_grad():
            leaf = logits.detach().float().requires_grad_()
            value = self(leaf, targets, example, seed=seed)
            (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, slots=True, eq=False)
class ExampleRows:
    """The examples of a pass whose loss is another: where their targets stand, N rows in all."""

    loss: ExampleLoss
    parts: tuple[tuple[slice, TokenizedExample], ...]
    seed: int


def example_rows(
    loss: ExampleLoss | None, examples: Sequence[TokenizedExample], *, without: Any, seed: int
) -> ExampleRows | None:
    """Rows of the examples' targets, in order; examples whose index is in `without` keep the loss that is built in."""
    if loss is None:
        return None
    parts = []
    first = 0
    for example in examples:
        rows = slice(first, first + example.targets)
        first = rows.stop
        if example.index not in without:
            parts.append((rows, example))
    return ExampleRows(loss, tuple(parts), seed)
