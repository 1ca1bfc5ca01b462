"""Writing a completion with a causal or an encoder-decoder base: greedy or drawn, each token with its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from neuralforge.data.boundary import CLOSED, open_ends
from neuralforge.data.fim import fim_marks, fim_prompt
from neuralforge.data.tokens import encode
from neuralforge.models.base import BaseModel
from neuralforge.models.forced_text import ForcedText, HeldTo


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A completion; `times` holds seconds from the call to each of its tokens, the end mark counted.

    `cut` tells that no end mark stopped it.
    """

    text: str
    times: tuple[float, ...]
    cut: bool

    @property
    def tokens(self) -> int:
        """Tokens that were generated."""
        return len(self.times)

    @property
    def seconds(self) -> float:
        """From the call to the last token."""
        return self.times[-1] if self.times else 0.0


class _Clock(BaseStreamer):
    """Notes when each token arrives; generation hands its prompt over first."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.times: list[float] = []
        self._prompt = True

    def put(self, value: Any) -> None:
        """A token, on the CPU: whatever computes it has finished."""
        if self._prompt:
            self._prompt = False
        else:
            self.times.append(time.perf_counter() - self.began)

    def end(self) -> None:
        """Nothing is held back."""


class _Enough(StoppingCriteria):
    """Stops where what was written so far is all that is wanted; `within` tokens of it stood there already."""

    def __init__(
        self, tokenizer: Any, forced: ForcedText, begin: int, most: int, ended: Callable[[str], bool] | None
    ) -> None:
        self._tokenizer, self._forced, self._begin, self._most, self._ended = tokenizer, forced, begin, most, ended
        self._known = len(forced.rest)
        self.within = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Of the one text that is written."""
        new = input_ids[0, self._begin :].tolist()
        self.within += self._forced.push(new[-1])
        enough = len(new) - self.within >= self._most
        if not enough and self._ended is not None:
            enough = self._ended(str(self._tokenizer.decode(new, skip_special_tokens=True))[self._known :])
        return torch.tensor([enough], device=input_ids.device)


@torch.no_grad()
def write(
    model: Any,
    base: BaseModel,
    context: str,
    *,
    suffix: str = "",
    max_length: int,
    max_new_tokens: int,
    to_the_end: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    ended: Callable[[str], bool] | None = None,
) -> Generation:
    """What `model`, which is `base` with or without an adapter on it, writes behind `context`.

    Greedy, or drawn at `temperature`; `suffix` is shown to a base that has marks for it. Prompt and completion take
    `max_length` tokens at most. `to_the_end` goes on over end marks until there are `max_new_tokens`; `ended` is asked
    after each token whether the text so far is enough.
    """
    tokenizer: Any = base.tokenizer
    ids, known = _prompt(base, context, suffix, room=max(1, max_length - max_new_tokens))
    inputs = torch.tensor([ids], device=model.device)
    ends = {base.end_token_id, tokenizer.eos_token_id} - {None}
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    begin = 1 if base.is_encoder_decoder else len(ids)
    forced = ForcedText(tokenizer, known)
    enough = _Enough(tokenizer, forced, begin, max_new_tokens, ended)
    most = max_new_tokens + len(known)  # a token of what is known has a character at least
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clock = _Clock()
        output = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=most,
            min_new_tokens=most if to_the_end else None,
            **drawn,
            num_beams=1,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
            streamer=clock,
            stopping_criteria=StoppingCriteriaList([enough]),
            logits_processor=LogitsProcessorList([HeldTo(forced)]),
        )
    new = output[0, begin:].tolist()
    text = str(tokenizer.decode([t for t in new if t not in ends], skip_special_tokens=True))
    return Generation(
        text=text[len(known) :], times=tuple(clock.times[enough.within :]), cut=not ends.intersection(new)
    )


def _prompt(base: BaseModel, context: str, suffix: str, *, room: int) -> tuple[list[int], str]:
    tokenizer: Any = base.tokenizer
    ids = encode(tokenizer, [context], special=True)[0]
    marks = fim_marks(tokenizer) if suffix and not base.is_encoder_decoder else None
    if marks:
        after = encode(tokenizer, [suffix], special=False)[0]
        return fim_prompt(ids, after, marks, room=room, first=tokenizer.bos_token_id), ""
    end = CLOSED if base.is_encoder_decoder else open_ends(tokenizer, [context], [ids])[0]
    # An empty context still needs one token to start from.
    return ids[: len(ids) - len(end.tokens)][-room:] or [base.end_token_id], end.text
