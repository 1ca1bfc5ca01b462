"""The general engine: transformers' forward, autograd's backward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from transformers.modeling_layers import GradientCheckpointingLayer

from neuralforge.data.batch import Batch
from neuralforge.data.soft import TopLogits
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.engine import EngineOptions, ExampleScore, padded, split_logits, split_scores
from neuralforge.training.flat import FlatParameters
from neuralforge.training.general.attention import use_matmul_attention
from neuralforge.training.general.each import EachGradient
from neuralforge.training.general.head import Head
from neuralforge.training.losses.context import ExampleLoss, example_rows
from neuralforge.training.soft import soft_rows

LARGEST_SCALE, SMALLEST_SCALE, STEPS_BEFORE_GROWTH = 2.0**16, 1.0, 1000
EACH_SCALE = 2.0**10
"""Of fp16 gradients of single examples. Fixed: one that follows overflows would tell of data that was not noised."""


class GeneralEngine:
    """Correct for every family and device; on a CPU only slower than the fast engine.

    `loss_scale` is above 1 only where fp16 gradients would underflow (Micikevicius et al. 2018, §3.2); it halves
    when they overflow and doubles after a thousand steps that did not.
    """

    name = "general"

    def __init__(
        self,
        model: PeftModel,
        flat: FlatParameters,
        options: EngineOptions,
        *,
        is_encoder_decoder: bool,
        pad_token_id: int,
        autocast_fp16: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        base: Any = model.get_base_model()
        self._base = base
        self._model = model
        self._flat = flat
        self._seq2seq = is_encoder_decoder
        self._pad = pad_token_id
        self._device = flat.vector.device
        dtype = base.get_input_embeddings().weight.dtype
        self.precision = str(dtype).removeprefix("torch.")
        # Padding by a longer neighbour changes the order of sums: in bf16 and fp16 up to a hundredth of a row.
        self.apart = dtype == torch.float32 and not autocast_fp16
        self.autocasts = autocast_fp16
        self.loss_scale = loss_scale
        self.loss: ExampleLoss | None = None
        self._good_steps = 0
        on_cpu_bf16 = self._device.type == "cpu" and dtype == torch.bfloat16
        if options.attention == "matmul" or (options.attention == "auto" and on_cpu_bf16):
            use_matmul_attention(base)
        if options.gradient_checkpointing:
            base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()
        self._head = Head(base)
        self._each: EachGradient | None = None

    def accumulate(self, batch: Batch, *, scale: float, seed: int) -> float:
        """Add the gradient of `scale` · summed loss to the flat gradient; return the summed loss in nats."""
        return float(self.backward(batch, scale=scale * self.loss_scale, seed=seed).sum())

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

        Where the engine does not keep examples `apart`, whoever needs that gives it one at a time.

        Raises:
            TrainingError: a trainable parameter, or a use of one, that `EachGradient` refuses.
        """
        if self._each is None:
            self._each = EachGradient(self._model, self._flat.places)
        fixed = EACH_SCALE if self.autocasts else 1.0
        with self._each.into(rows, owners, sides=sides, factor=1 / fixed):
            losses = self.backward(batch, scale=self.per_target(batch, scales) * fixed, seed=seed)
        return [float(part.sum()) for part in losses.split([example.targets for example in batch.examples])]

    def backward(self, batch: Batch, *, scale: float | torch.Tensor, seed: int) -> torch.Tensor:
        """Autograd's backward of the sum of `scale` · loss, one scale or (N,) of them; each target's loss (N,)."""
        inputs, rows, targets = self._inputs(batch.examples)
        soft = soft_rows(batch.examples, batch.soft, self._device)
        other = example_rows(self.loss, batch.examples, without=batch.soft, seed=seed)
        self._train_mode()
        # Dropout draws from torch's global generator: seed it for this step and give it back afterwards.
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            with self._computing():
                losses = self._head.losses(self._model, inputs, rows, targets, soft, other)
            (losses * scale).sum().backward()
        return losses.detach()

    def per_target(self, batch: Batch, scales: Sequence[float]) -> torch.Tensor:
        """One scale an example -> one a target, (N,)."""
        counts = torch.tensor([example.targets for example in batch.examples])
        return torch.tensor(scales).repeat_interleave(counts).to(self._device)

    @torch.no_grad()
    def score(self, batch: Batch) -> list[ExampleScore]:
        """Losses and hits of each example, nothing learnt, no dropout."""
        self._model.eval()
        inputs, rows, targets = self._inputs(batch.examples)
        with self._computing():
            scores = self._head.scores(self._model, inputs, rows, targets)
        return split_scores(batch.examples, scores)

    @torch.no_grad()
    def top_logits(self, batch: Batch, *, k: int) -> dict[int, TopLogits]:
        """By example index: the k largest logits at each target, nothing learnt, no dropout."""
        self._model.eval()
        inputs, rows, _ = self._inputs(batch.examples)
        with self._computing():
            ids, values = self._head.top_logits(self._model, inputs, rows, k=k)
        return split_logits(batch.examples, ids, values)

    def unscale(self) -> bool:
        """Undo loss scaling on the flat gradient; False where it overflowed and the step must be skipped."""
        if not self.autocasts:
            return True
        gradient = self._flat.gradient
        if not bool(torch.isfinite(gradient).all()):
            # At a scale of 1 it was no overflow of the scale: let the loop see it and stop.
            hopeless = self.loss_scale <= SMALLEST_SCALE
            self.loss_scale = max(SMALLEST_SCALE, self.loss_scale / 2)
            self._good_steps = 0
            return hopeless
        gradient.div_(self.loss_scale)
        self._good_steps += 1
        if self._good_steps % STEPS_BEFORE_GROWTH == 0:
            self.loss_scale = min(LARGEST_SCALE, self.loss_scale * 2)
        return True

    def _train_mode(self) -> None:
        # Only LoRA's dropout is wanted: the base's own (T5 has 0.1) would be noise in frozen layers.
        self._model.eval()
        for name, module in self._model.named_modules():
            if ".lora_" in name:
                module.train()
            # transformers recomputes a layer only where the layer itself, not its parts, says it trains.
            elif isinstance(module, GradientCheckpointingLayer):
                module.training = True

    def _computing(self) -> AbstractContextManager[object]:
        if not self.autocasts:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.float16)

    def _inputs(
        self, examples: tuple[TokenizedExample, ...]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        targets = torch.tensor([t for e in examples for t in e.tokens[e.start :]], device=self._device)
        if not self._seq2seq:
            ids, mask = padded([e.tokens for e in examples], self._pad, self._device)
            rows = torch.zeros_like(ids, dtype=torch.bool)
            for i, e in enumerate(examples):
                rows[i, e.start - 1 : len(e.tokens) - 1] = True
            return {"input_ids": ids, "attention_mask": mask}, rows, targets
        # An encoder that sees no token at all has nothing to attend to: an empty context is one pad.
        ids, mask = padded([e.context or (self._pad,) for e in examples], self._pad, self._device)
        start = int(self._base.config.decoder_start_token_id)
        decoder, _ = padded([(start, *e.tokens[:-1]) for e in examples], self._pad, self._device)
        rows = torch.zeros_like(decoder, dtype=torch.bool)
        for i, e in enumerate(examples):
            rows[i, : len(e.tokens)] = True
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder}, rows, targets
