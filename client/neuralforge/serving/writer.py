"""The loop that writes a completion: read the prompt, choose a token, let out what is certain, look for a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from neuralforge.data.fim import fim_marks
from neuralforge.models.base import BaseModel
from neuralforge.models.forced_text import ForcedText, spellings_of
from neuralforge.serving.kept_prefix import KeptPrefix
from neuralforge.serving.prompt import Prompt, make_prompt
from neuralforge.serving.request import CompletionRequest, Finish, FinishReason, Piece, WrittenToken
from neuralforge.serving.sampling import choose, most_likely
from neuralforge.serving.text_stream import StopStrings, TextStream


class Writer:
    """Writes completions with a causal base, whatever adapter is on it at the time; one thread at a time.

    Prompt and completion together take at most `max_context` tokens. `clock` tells seconds.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        max_context: int,
        reuse_prefix: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._tokenizer: Any = base.tokenizer
        self._end = base.end_token_id
        self._marks = fim_marks(base.tokenizer)
        self._kept = KeptPrefix(base.model, reuse=reuse_prefix)
        self._max_context = max_context
        self._clock = clock
        spellings_of(base.tokenizer)  # made now, not when somebody waits
        # Every special token ends a piece of code: behind it another file, or another speaker, would begin.
        marks = (self._marks.prefix, self._marks.suffix, self._marks.middle) if self._marks else ()
        self._ends = frozenset([self._end, *self._tokenizer.all_special_ids, *marks])

    @property
    def has_fim(self) -> bool:
        """Whether the base can be shown what stands after the cursor."""
        return self._marks is not None

    def forget(self) -> None:
        """Forget what was read: the weights change."""
        self._kept.forget()

    def prompt(self, request: CompletionRequest) -> Prompt:
        """The tokens that a request becomes; a completion may take at most half of `max_context`."""
        room = self._max_context - min(request.max_tokens, self._max_context // 2)
        return make_prompt(self._tokenizer, self._marks, request.prompt, request.suffix, room=room, end=self._end)

    def write(self, request: CompletionRequest, cancelled: Callable[[], bool]) -> Iterator[Piece | Finish]:
        """Pieces of text as they become certain, and a Finish last; `cancelled` is asked before each token."""
        prompt = self.prompt(request)
        began = self._clock()
        logits, reused = self._kept.read(prompt.tokens, cancelled)
        read = self._clock()
        stops = StopStrings([*request.stop, prompt.stop])
        text = _Text(self._tokenizer, prompt, stops, logprobs=request.logprobs)
        forced = ForcedText(self._tokenizer, prompt.forced)
        generator = None
        if request.seed is not None and logits is not None:
            generator = torch.Generator(device=logits.device).manual_seed(request.seed)
        most = min(request.max_tokens, self._max_context // 2)
        reason: FinishReason = "length"
        written = 0
        while True:
            if logits is None or cancelled():
                reason = "cancelled"
                break
            if written >= most or (request.seconds is not None and written and self._clock() - read > request.seconds):
                break
            token = choose(
                forced.hold(logits), temperature=request.temperature, top_p=request.top_p, generator=generator
            )
            if token in self._ends:
                reason = "stop"
                break
            within = forced.push(token)
            written += not within
            if piece := text.push(token, logits, within=within):
                yield piece
            if stops.found:
                reason = "stop"
                break
            if written < most:
                logits = self._kept.push(token)
        if reason != "cancelled" and (piece := text.flush()):
            yield piece
        yield Finish(
            reason=reason,
            prompt_tokens=len(prompt.tokens),
            reused_tokens=reused,
            completion_tokens=written,
            truncated=prompt.truncated,
            prompt_seconds=read - began,
            write_seconds=self._clock() - read,
        )


class _Text:
    """The text of one completion, and its tokens where probabilities are wanted."""

    def __init__(self, tokenizer: Any, prompt: Prompt, stops: StopStrings, *, logprobs: int | None) -> None:
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, prompt.tokens)
        self._stops = stops
        self._forced = len(prompt.forced)  # characters that stand before the cursor already
        self._logprobs = logprobs
        self._decoded = self._shown = 0
        self._waiting: list[WrittenToken] = []

    def push(self, token: int, logits: torch.Tensor, *, within: bool) -> Piece | None:
        known = self._forced
        new = self._new(self._stream.push(token))
        if self._logprobs is not None and not within:
            logprob, likeliest = most_likely(logits, token, self._logprobs)
            self._waiting.append(
                WrittenToken(
                    text=self._spelt(token)[known:],
                    offset=self._decoded,
                    logprob=logprob,
                    alternatives=tuple((self._spelt(other), value) for other, value in likeliest),
                )
            )
        self._decoded += len(new)
        return self._piece(self._stops.push(new))

    def _new(self, text: str) -> str:
        new, self._forced = text[self._forced :], max(0, self._forced - len(text))
        return new

    def flush(self) -> Piece | None:
        return self._piece(self._stops.push(self._new(self._stream.flush())) + self._stops.flush(), last=True)

    def _piece(self, text: str, *, last: bool = False) -> Piece | None:
        self._shown += len(text)
        # A token belongs to the text if it begins in what is shown; behind a stop string nothing does.
        everything = last and not self._stops.found
        ready = [token for token in self._waiting if everything or token.offset < self._shown]
        self._waiting = self._waiting[len(ready) :]
        return Piece(text=text, tokens=tuple(ready)) if text or ready else None

    def _spelt(self, token: int) -> str:
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
