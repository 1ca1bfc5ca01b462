"""The key-value cache between keystrokes: what two prompts have in common at their beginning is read once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_CHUNK = 512
"""Tokens read at a time: between two chunks a stale request can be given up."""

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary embeddings that change with the length of the text: kept keys would have been turned otherwise."""


class KeptPrefix:
    """What a causal model has read so far, and the keys and values that came of it.

    Reuse is exact up to the order in which a chunk's sums are taken. It needs a cache that can be cut at any token;
    with sliding windows, linear attention or rotary embeddings that depend on the length, each prompt is read anew.
    """

    def __init__(self, model: Any, *, reuse: bool = True) -> None:
        self._model = model
        self._reuse = reuse and _can_be_cut(model)
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache: Any = None
        self._ids: list[int] = []

    def forget(self) -> None:
        """Let go of everything: the next prompt may be for other weights."""
        self._cache, self._ids = None, []

    def read(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> tuple[torch.Tensor | None, int]:
        """Logits of shape (vocabulary,) for what follows `ids`, and how many of them were known already.

        None in the place of logits when it was cancelled; what was read by then is kept.
        """
        # The last token is always read again: its logits were not kept.
        common = min(_common_length(self._ids, ids), len(ids) - 1) if self._reuse else 0
        self._cut(common)
        logits = None
        for begin in range(common, len(ids), _CHUNK):
            if cancelled():
                return None, common
            logits = self._forward(ids[begin : begin + _CHUNK])
        return logits, common

    def push(self, token: int) -> torch.Tensor:
        """Logits of shape (vocabulary,) for what follows one token more."""
        return self._forward([token])

    def _cut(self, length: int) -> None:
        if length == 0 or self._cache is None:
            self._cache, self._ids = DynamicCache(config=self._model.config), []
        elif length < len(self._ids):
            self._cache.crop(length - len(self._ids))
            del self._ids[length:]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int]) -> torch.Tensor:
        cache, known, self._cache = self._cache, self._ids, None  # half a step must not be taken for a whole one
        self._ids = []
        device = self._model.get_input_embeddings().weight.device
        only: dict[str, Any] = {"logits_to_keep": 1} if self._last_only else {}
        answer = self._model(
            input_ids=torch.tensor([list(ids)], device=device), past_key_values=cache, use_cache=True, **only
        )
        known.extend(ids)
        self._cache, self._ids = cache, known
        logits: torch.Tensor = answer.logits[0, -1]
        return logits


def _can_be_cut(model: Any) -> bool:
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in _LENGTH_DEPENDENT_ROPE:
        return False
    cache = DynamicCache(config=model.config)
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _common_length(known: Sequence[int], wanted: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(known, wanted, strict=False)):
        if one != other:
            return index
    return min(len(known), len(wanted))
