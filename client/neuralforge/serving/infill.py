"""llama.cpp's `/infill`, as llama.vim and llama.vscode ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neuralforge.serving.openai_api import MOST_TOKENS, RequestError, plain, stop_strings
from neuralforge.serving.request import CompletionRequest, Finish, Piece

_DEFAULT_TOKENS = 128


class _Extra(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str = ""


class InfillBody(BaseModel):
    """What of the body counts here; samplers beyond temperature and top_p are not known and left out of account."""

    model_config = ConfigDict(extra="ignore")

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[_Extra] = Field(default_factory=list, max_length=1024)
    prompt: str = ""
    model: str = Field("", max_length=256)
    n_predict: int = _DEFAULT_TOKENS
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[str] = Field(default_factory=list)
    stream: bool = False
    t_max_predict_ms: float = Field(0, ge=0, allow_inf_nan=False)
    response_fields: list[str] = Field(default_factory=list, max_length=64)


def read_infill(document: dict[str, object]) -> InfillBody:
    """A checked body.

    Raises:
        RequestError: a field is wrong, or a stream is asked for.
    """
    try:
        body = InfillBody.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else None
        raise RequestError(f"{name or 'the body'}: {fault['msg'].lower()}", param=name) from error
    if body.stream:
        raise RequestError("stream: /infill answers in one piece; /v1/completions streams", param="stream")
    return body


def infill_request(body: InfillBody) -> CompletionRequest:
    """What is to be written; the extra context stands before the file, and goes first where room is short."""
    extra = "".join(f"{chunk.text.rstrip()}\n\n" for chunk in body.input_extra if chunk.text.strip())
    return CompletionRequest(
        prompt=plain(extra + body.input_prefix + body.prompt),
        suffix=plain(body.input_suffix),
        model=body.model,
        max_tokens=min(body.n_predict, MOST_TOKENS) if body.n_predict > 0 else _DEFAULT_TOKENS,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=None if body.seed is None or body.seed < 0 else body.seed,
        stop=stop_strings(body.stop),
        seconds=body.t_max_predict_ms / 1000 or None,
    )


def infill_document(pieces: Sequence[Piece], finish: Finish | None, body: InfillBody, model: str) -> dict[str, Any]:
    """The answer in llama.cpp's words; `response_fields` picks from it, by paths with slashes."""
    timings: dict[str, Any] = {}
    if finish is not None:
        read = finish.prompt_tokens - finish.reused_tokens
        for name, count, seconds in (
            ("prompt", read, finish.prompt_seconds),
            ("predicted", finish.completion_tokens, finish.write_seconds),
        ):
            timings |= {
                f"{name}_n": count,
                f"{name}_ms": 1000 * seconds,
                f"{name}_per_token_ms": 1000 * seconds / max(1, count),
                f"{name}_per_second": count / seconds if seconds else 0.0,
            }
    answer: dict[str, Any] = {
        "content": "".join(piece.text for piece in pieces),
        "stop": True,
        "model": model,
        "tokens_predicted": finish.completion_tokens if finish else 0,
        "tokens_evaluated": finish.prompt_tokens if finish else 0,
        "tokens_cached": finish.prompt_tokens + finish.completion_tokens if finish else 0,
        "truncated": bool(finish and finish.truncated),
        "timings": timings,
    }
    if not body.response_fields:
        return answer
    chosen = {}
    for path in body.response_fields:
        value: Any = answer
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            chosen[path] = value
    return chosen
