"""The model's head, kept from making logits that nobody needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from neuralforge.training.loss import HeadLoss, TokenScores, token_scores, top_logits
from neuralforge.training.losses.context import ExampleRows
from neuralforge.training.soft import SoftRows
from neuralforge_common.errors import ModelError


@dataclass(slots=True)
class Captured:
    """What the head was given: (n, T, d)."""

    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class Head:
    """Runs a model so that its head sees only the rows that count.

    Where logits are the head's matmul and nothing more, which is tried once on a few tokens, the head is given no
    row at all and the loss is taken in chunks from what it would have seen. Else (soft-capped or scaled logits)
    it is given the rows that count and the model's own logits are used.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError(
                f"the base's head is {type(head).__name__}, wanted a linear language-model head",
                hint="choose a base for text generation (causal or encoder-decoder)",
            )
        self._model = model
        self._head = head
        self._plain = self._logits_are_the_matmul()

    def losses(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        rows: torch.Tensor,
        targets: torch.Tensor,
        soft: SoftRows | None = None,
        other: ExampleRows | None = None,
    ) -> torch.Tensor:
        """Each loss of `targets` (N,), predicted at `rows` (n, T) of the model's output."""
        if self._plain:
            hidden = self._hidden(model, inputs)[rows]
            weight = self._head.weight.detach()
            bias = None if self._head.bias is None else self._head.bias.detach()
            losses: torch.Tensor = HeadLoss.apply(hidden.to(weight.dtype), weight, bias, targets, soft, other)
            return losses
        logits = self._logits(model, inputs, rows).float()
        losses = functional.cross_entropy(logits, targets, reduction="none")
        if soft is not None:
            losses = losses * soft.hard + soft.distance(logits.gather(1, soft.ids))[0]
        if other is None:
            return losses
        for part, example in other.parts:
            value = other.loss(logits[part], targets[part], example, seed=other.seed)
            losses = torch.cat([losses[: part.start], value.expand(example.targets), losses[part.stop :]])
        return losses

    def scores(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], rows: torch.Tensor, targets: torch.Tensor
    ) -> TokenScores:
        """Losses and hits at `rows` for `targets` (N,)."""
        if self._plain:
            hidden = self._hidden(model, inputs)[rows]
            return token_scores(hidden.to(self._head.weight.dtype), self._head.weight, self._head.bias, targets)
        logits = self._logits(model, inputs, rows).float()
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return TokenScores(losses=losses, hits=logits.argmax(dim=1) == targets)

    def top_logits(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], rows: torch.Tensor, *, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and values, both (N, k), of the largest logits at `rows`."""
        if self._plain:
            hidden = self._hidden(model, inputs)[rows]
            return top_logits(hidden.to(self._head.weight.dtype), self._head.weight, self._head.bias, k=k)
        top = self._logits(model, inputs, rows).float().topk(k, dim=1)
        return top.indices, top.values

    def _hidden(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self._watched(lambda hidden: hidden[:, :0]) as captured:
            model(**inputs)
        return captured.hidden

    def _logits(self, model: nn.Module, inputs: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        with self._watched(lambda hidden: hidden[rows][None]):
            logits: torch.Tensor = model(**inputs).logits
        return logits[0]

    @contextmanager
    def _watched(self, choose: Any) -> Iterator[Captured]:
        captured = Captured()

        def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            captured.hidden = args[0]
            return (choose(args[0]), *args[1:])

        handle = self._head.register_forward_pre_hook(before)
        try:
            yield captured
        finally:
            handle.remove()

    @torch.no_grad()
    def _logits_are_the_matmul(self) -> bool:
        ids = torch.arange(1, 5, device=self._head.weight.device)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        training = self._model.training
        self._model.eval()
        try:
            with self._watched(lambda hidden: hidden) as captured:
                logits = self._model(**inputs).logits
            matmul = functional.linear(captured.hidden, self._head.weight, self._head.bias)
        finally:
            self._model.train(training)
        return bool(torch.allclose(logits.float(), matmul.float(), rtol=1e-3, atol=1e-3))
