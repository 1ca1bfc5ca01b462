"""The fast engine: a whole step of the Llama family on a CPU, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel

from neuralforge.data.batch import Batch
from neuralforge.data.soft import SoftTargets, TopLogits
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.engine import EngineOptions, ExampleScore, split_logits, split_scores
from neuralforge.training.fast.attention import causal_mask
from neuralforge.training.fast.build import build_layers
from neuralforge.training.fast.elementwise import rms_norm, rms_norm_backward
from neuralforge.training.fast.layer import Layer, Pass, SavedLayer
from neuralforge.training.fast.lora import Share, Shares
from neuralforge.training.fast.prefix import PrefixCache
from neuralforge.training.fast.rows import Rows, lay_out
from neuralforge.training.flat import FlatParameters
from neuralforge.training.loss import loss_and_gradient, token_scores, top_logits
from neuralforge.training.losses.context import ExampleLoss, example_rows
from neuralforge.training.soft import soft_rows


class FastEngine:
    """Losses and gradients without autograd; see `neuralforge.training.fast` for what makes it fast."""

    name = "fast"
    apart = True

    def __init__(self, model: PeftModel, flat: FlatParameters, options: EngineOptions) -> None:
        causal: Any = model.get_base_model()
        decoder = causal.model
        lora: Any = model.peft_config["default"]
        self._flat = flat
        self._options = options
        self.loss: ExampleLoss | None = None
        self._embedding: torch.Tensor = decoder.embed_tokens.weight
        self._head: torch.Tensor = causal.lm_head.weight
        self._norm: torch.Tensor = decoder.norm.weight
        self._eps = float(decoder.norm.variance_epsilon)
        self._rotary = decoder.rotary_emb
        self._dtype = self._embedding.dtype
        self.precision = str(self._dtype).removeprefix("torch.")
        built = build_layers(causal, flat, options, config=lora)
        self._layers: tuple[Layer, ...] = built.layers
        self._first = built.first
        self._shared_heads = built.heads.shared
        self._masks: dict[int, torch.Tensor] = {}
        self._cache: PrefixCache | None = None

    def cache_prefix(self, examples: Sequence[TokenizedExample]) -> None:
        """Keep the frozen prefix's activations of these examples, known by their index, over epochs."""
        if self._first > 0 and self._options.cache_bytes > 0:
            self._cache = PrefixCache(
                examples,
                self._prefix_of,
                row_bytes=self._embedding.shape[1] * self._embedding.element_size(),
                budget_bytes=self._options.cache_bytes,
            )

    @torch.no_grad()
    def accumulate(self, batch: Batch, *, scale: float, seed: int) -> float:
        """Add the gradient of `scale` · summed loss to the flat gradient; return the summed loss in nats."""
        rows = lay_out(batch)
        whole = (Share(self._flat.gradient, slice(None)),)
        shares = Shares(every=whole, predicting=whole)
        return float(self._learn(rows, shares, batch.soft, scale=scale, seed=seed).sum())

    @torch.no_grad()
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
        """Add the gradient of `scales[i]` · the summed loss of example i alone to `rows[owners[i]]`."""
        laid = lay_out(batch, alike=1.0)
        vectors = [rows[owners[i]] for i in laid.order]
        shares = Shares(
            every=tuple(map(Share, vectors, laid.extents)),
            predicting=tuple(map(Share, vectors, laid.spans)),
            sides=sides,
        )
        counts = torch.tensor([example.targets for example in laid.examples])
        scale = torch.tensor([scales[i] for i in laid.order]).repeat_interleave(counts)[:, None]
        losses = self._learn(laid, shares, batch.soft, scale=scale, seed=seed)
        found = {i: float(losses[span].sum()) for i, span in zip(laid.order, laid.spans, strict=True)}
        return [found[i] for i in range(len(found))]

    def _learn(
        self,
        rows: Rows,
        shares: Shares,
        targets: Mapping[int, SoftTargets],
        *,
        scale: float | torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        """Forward and backward; each target's loss (N,)."""
        p = self._pass(rows, dropout_seed=seed)
        self._refresh()
        cached = self._cache.get_all(rows.examples) if self._cache is not None else None
        x = torch.cat(cached) if cached is not None else self._prefix(rows, p)
        # Of each layer what backward needs, or only its input where that is computed again.
        saved: list[SavedLayer | torch.Tensor] = []
        last = len(self._layers) - 1
        for i in range(self._first, last + 1):
            wanted = rows.predicting if i == last else None
            entry = x
            x, kept = self._layers[i].forward(x, p, keep=not self._options.gradient_checkpointing, rows=wanted)
            saved.append(entry if kept is None else self._narrowed(kept, rows, i))
        h, inverse = rms_norm(x, self._norm, self._eps)
        soft = soft_rows(rows.examples, targets, h.device)
        other = example_rows(self.loss, rows.examples, without=targets, seed=seed)
        losses, d_h = loss_and_gradient(h, self._head, None, rows.targets, scale=scale, soft=soft, other=other)
        d_x: torch.Tensor | None = rms_norm_backward(d_h, x, inverse, self._norm, torch.zeros_like(x))
        narrow = not self._options.context_gradients
        for i in range(last, self._first - 1, -1):
            if d_x is None:
                break
            memory = saved.pop()
            if isinstance(memory, torch.Tensor):
                _, again = self._layers[i].forward(memory, p, keep=True, rows=rows.predicting if i == last else None)
                memory = self._narrowed(again, rows, i)
            d_x = self._layers[i].backward(
                d_x,
                memory,
                p,
                shares,
                need_input=i > self._first,
                rows=rows.predicting if narrow or i == last else None,
                narrow=narrow,
            )
        return losses

    @torch.no_grad()
    def score(self, batch: Batch) -> list[ExampleScore]:
        """Losses and hits of each example, nothing learnt, no dropout."""
        rows = lay_out(batch)
        return split_scores(rows.examples, token_scores(self._hidden(rows), self._head, None, rows.targets))

    @torch.no_grad()
    def top_logits(self, batch: Batch, *, k: int) -> dict[int, TopLogits]:
        """By example index: the k largest logits at each target, nothing learnt, no dropout."""
        rows = lay_out(batch)
        return split_logits(rows.examples, *top_logits(self._hidden(rows), self._head, None, k=k))

    def unscale(self) -> bool:
        """Nothing is scaled here."""
        return True

    def _hidden(self, rows: Rows) -> torch.Tensor:
        """What the head is given at the predicting rows."""
        p = self._pass(rows, dropout_seed=None)
        self._refresh()
        x = self._prefix(rows, p)
        last = len(self._layers) - 1
        for i in range(self._first, last + 1):
            x, _ = self._layers[i].forward(x, p, keep=False, rows=rows.predicting if i == last else None)
        return rms_norm(x, self._norm, self._eps)[0]

    def _refresh(self) -> None:
        working = self._flat.vector.detach().to(self._dtype)
        for layer in self._layers[self._first :]:
            for group in layer.groups.values():
                group.refresh(working)

    def _pass(self, rows: Rows, *, dropout_seed: int | None) -> Pass:
        cos, sin = self._rotary(self._embedding, rows.positions[None])
        half = cos.shape[-1] // 2
        for group in rows.groups:
            if group.width not in self._masks:
                self._masks[group.width] = causal_mask(group.width, self._shared_heads, self._dtype)
        return Pass(
            rows=rows,
            cos=cos[0, :, None, :half].contiguous(),
            sin=sin[0, :, None, :half].contiguous(),
            masks=self._masks,
            dropout_seed=dropout_seed,
        )

    def _prefix(self, rows: Rows, p: Pass) -> torch.Tensor:
        x = self._embedding[rows.tokens]
        for layer in self._layers[: self._first]:
            x, _ = layer.forward(x, p, keep=False)
        return x

    def _prefix_of(self, examples: Sequence[TokenizedExample]) -> list[torch.Tensor]:
        rows = lay_out(Batch(examples=tuple(examples)))
        x = self._prefix(rows, self._pass(rows, dropout_seed=None))
        by_index = dict(
            zip((e.index for e in rows.examples), x.split([len(e.tokens) for e in rows.examples]), strict=True)
        )
        return [by_index[e.index].clone() for e in examples]

    def _narrowed(self, kept: SavedLayer, rows: Rows, i: int) -> SavedLayer:
        # Without context gradients backward walks on predicting rows alone; the last layer kept only those.
        if self._options.context_gradients or i == len(self._layers) - 1:
            return kept
        chosen = rows.predicting
        for name in ("out", "x2", "x2_inverse", "h2", "gate_up", "act"):
            setattr(kept, name, getattr(kept, name)[chosen])
        for name, lora in kept.lora.items():
            if name != "qkv":
                lora.down = lora.down[chosen]
                lora.masks = [mask[chosen] for mask in lora.masks]
        return kept
