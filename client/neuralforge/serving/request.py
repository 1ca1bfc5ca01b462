"""What an editor asks for, and what it gets: pieces of text, then how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MOST_ALTERNATIVES = 5
"""How many alternatives to a token may be asked for, as in OpenAI's API."""

FinishReason = Literal["stop", "length", "cancelled"]
SuffixUse = Literal["none", "fim", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One completion.

    `temperature` 0 is greedy. `logprobs` is the number of alternatives to report for each token, None for no
    probabilities at all. `model` is an adapter's name, the base's, or empty for what is current. Of one `session` only
    the newest request is worked on; an empty one is alone. `seconds` bounds the writing, not the reading of the prompt.
    """

    prompt: str
    suffix: str = ""
    model: str = ""
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    session: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenToken:
    """A token of the completion; `offset` is where its text begins, in characters of the completion."""

    text: str
    offset: int
    logprob: float
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text that will not be taken back, and its tokens where probabilities were asked for."""

    text: str
    tokens: tuple[WrittenToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a completion ended.

    `reused_tokens` of the `prompt_tokens` were still in memory from the request before. `truncated` tells whether the
    prompt was cut at its beginning. Seconds are those of reading the prompt and of writing.
    """

    reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    truncated: bool
    prompt_seconds: float
    write_seconds: float
