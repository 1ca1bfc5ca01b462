"""An adapter opened on its base: validated, matched by fingerprint, ready to be scored and to write code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel

from neuralforge.data.example import Example
from neuralforge.data.fim import fim_marks
from neuralforge.data.tokens import encode, tokenize
from neuralforge.evaluation.generation import Generation, write
from neuralforge.evaluation.metrics import score_all
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.models.lora import attach_lora, write_state
from neuralforge.training.choose import make_engine
from neuralforge.training.engine import EngineOptions, ExampleScore
from neuralforge.training.flat import FlatParameters
from neuralforge_common.folder import AdapterFolder, read_adapter_folder, verify_base


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

    def complete(
        self,
        context: str,
        *,
        adapter: bool,
        suffix: str = "",
        max_new_tokens: int = 48,
        to_the_end: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
        ended: Callable[[str], bool] | None = None,
    ) -> Generation:
        """Completion of `context`, greedy or drawn at `temperature`; `suffix` is shown to a base that has marks for it.

        `to_the_end` goes on over end marks until there are `max_new_tokens`, as a measurement of speed wants it.
        `ended` is asked after each token whether the text so far is enough.
        """
        self._switch(adapter)
        with nullcontext() if adapter else self.peft.disable_adapter():
            return write(
                self.base.model,
                self.base,
                context,
                suffix=suffix,
                max_length=self._max_length,
                max_new_tokens=max_new_tokens,
                to_the_end=to_the_end,
                temperature=temperature,
                seed=seed,
                ended=ended,
            )

    @property
    def shows_suffix(self) -> bool:
        """Whether the base has marks for what stands after the cursor."""
        return not self.base.is_encoder_decoder and fim_marks(self.base.tokenizer) is not None

    def first_tokens(self, text: str, count: int) -> str:
        """As much of a text as `count` tokens of this base can write."""
        tokenizer: Any = self.base.tokenizer
        ids = encode(tokenizer, [text], special=False)[0]
        return text if len(ids) <= count else str(tokenizer.decode(ids[:count], skip_special_tokens=True))

    @property
    def device(self) -> str:
        """cpu, cuda or mps."""
        return str(self._flat.vector.device.type)

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
