"""An adapter opened on its base: validated, matched by fingerprint, ready to be scored and to write code."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from neuralforge.data.example import Example
from neuralforge.data.tokens import encode, tokenize
from neuralforge.evaluation.metrics import score_all
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.models.lora import attach_lora, write_state
from neuralforge.training.choose import make_engine
from neuralforge.training.engine import EngineOptions, ExampleScore
from neuralforge.training.flat import FlatParameters
from neuralforge_common.folder import AdapterFolder, read_adapter_folder, verify_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A completion and how long each of its tokens took, in seconds."""

    text: str
    tokens: int
    seconds: float


class OpenedAdapter:
    """A base with an adapter on it that can be switched off: the base itself, to compare with."""

    def __init__(self, folder: AdapterFolder, base: BaseModel, *, max_length: int) -> None:
        verify_base(folder.spec, base.fingerprint, base.name)
        self.folder = folder
        self.base = base
        self._max_length = max_length
        self.peft: PeftModel = attach_lora(base.model, folder.spec, seed=0)
        self._flat = FlatParameters(self.peft)
        # B is zero until the state is written: a copy of that is the base.
        self._off = self._flat.vector.detach().clone()
        write_state(self.peft, folder.state)
        self._on = self._flat.vector.detach().clone()
        made = make_engine(self.peft, self._flat, EngineOptions(), base=base, max_length=max_length)
        self._engine = made.engine

    def score(self, examples: Sequence[Example], *, adapter: bool, max_length: int | None = None) -> list[ExampleScore]:
        """Scores of the examples in their order, with the adapter or with the base alone.

        `max_length` may cut them shorter than the adapter was opened for.
        """
        self._switch(adapter)
        tokenized = tokenize(
            examples,
            self.base.tokenizer,
            max_length=max_length or self._max_length,
            end_token_id=self.base.end_token_id,
            is_encoder_decoder=self.base.is_encoder_decoder,
        )
        return score_all(self._engine, tokenized)

    @torch.no_grad()
    def complete(self, context: str, *, adapter: bool, max_new_tokens: int = 48) -> Generation:
        """Greedy completion of `context`."""
        self._switch(adapter)
        tokenizer: Any = self.base.tokenizer
        model: Any = self.base.model
        limit = max(1, self._max_length - max_new_tokens)
        # An empty context still needs one token to start from.
        ids = encode(tokenizer, [context], special=True)[0][-limit:] or [self.base.end_token_id]
        inputs = torch.tensor([ids], device=self._flat.vector.device)
        ends = {self.base.end_token_id, tokenizer.eos_token_id} - {None}
        began = time.perf_counter()
        with nullcontext() if adapter else self.peft.disable_adapter():
            output = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(ends),
                pad_token_id=tokenizer.pad_token_id,
            )
        seconds = time.perf_counter() - began
        new = output[0].tolist()
        new = new[1:] if self.base.is_encoder_decoder else new[len(ids) :]
        text = tokenizer.decode([t for t in new if t not in ends], skip_special_tokens=True)
        return Generation(text=str(text), tokens=len(new), seconds=seconds)

    def latency(self, contexts: Sequence[str], *, max_new_tokens: int = 16) -> tuple[float, float]:
        """Median milliseconds a generated token, of base and adapter, measured in turn on the same contexts."""
        per_token: dict[bool, list[float]] = {False: [], True: []}
        for i, context in enumerate(contexts):
            for adapter in (False, True):
                done = self.complete(context, adapter=adapter, max_new_tokens=max_new_tokens)
                if i or len(contexts) == 1:  # the first one warms caches up
                    per_token[adapter].append(1000 * done.seconds / max(1, done.tokens))
        return statistics.median(per_token[False]), statistics.median(per_token[True])

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of weights in memory: of the base, and of base and adapter."""
        base = sum(p.numel() * p.element_size() for n, p in self.peft.named_parameters() if ".lora_" not in n)
        return base, base + self._flat.vector.numel() * self._flat.vector.element_size()

    def _switch(self, adapter: bool) -> None:
        self._flat.load(self._on if adapter else self._off)


def open_adapter(
    path: Path, *, base: str | None = None, device: str = "auto", max_length: int = 256, trust_remote_code: bool = False
) -> OpenedAdapter:
    """Validate the folder, load the base that it names (or `base`), check that it is the very base, attach.

    Raises AdapterError and ModelError.
    """
    folder = read_adapter_folder(path)
    loaded = load_base_model(
        base or folder.spec.base,
        revision=None if base else folder.spec.base_revision,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    return OpenedAdapter(folder, loaded, max_length=max_length)
