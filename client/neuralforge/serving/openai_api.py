"""OpenAI's `/v1/completions` and `/v1/models`: what comes in, checked, and what goes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neuralforge.serving.names import CURRENT, ModelName
from neuralforge.serving.prompt import spelt_fim
from neuralforge.serving.request import MOST_ALTERNATIVES, CompletionRequest, Finish, Piece, WrittenToken
from neuralforge_common.errors import ServingError
from neuralforge_common.strict_json import shortened

DEFAULT_TOKENS = 64
MOST_TOKENS = 1024
_MOST_STOPS = 64
_LONGEST_STOP = 256


class RequestError(ServingError):
    """A request that cannot be answered as it is; `status` is HTTP's, `param` the field that is at fault."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class CompletionBody(BaseModel):
    """The body of `/v1/completions`; a field that OpenAI has and we do not must not ask for anything."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field("", max_length=256)
    prompt: str | list[str]
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = Field(None, max_length=256)
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


def read_body(document: dict[str, object]) -> CompletionBody:
    """A checked body.

    Raises:
        RequestError: a field is wrong, or asks for what this server does not do.
    """
    try:
        body = CompletionBody.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else None
        raise RequestError(f"{name or 'the body'}: {fault['msg'].lower()}", param=name) from error
    for name, value in (("n", body.n), ("best_of", body.best_of)):
        if value not in (None, 1):
            raise RequestError(f"{name}: got {value}, and one completion is written for one prompt", param=name)
    if body.echo:
        raise RequestError("echo: the prompt is not sent back", param="echo")
    for name, asked in (
        ("presence_penalty", body.presence_penalty),
        ("frequency_penalty", body.frequency_penalty),
        ("logit_bias", body.logit_bias),
    ):
        if asked:
            raise RequestError(f"{name} is not known to this server: leave it out", param=name)
    return body


def completion_request(body: CompletionBody) -> CompletionRequest:
    """What is to be written.

    Raises:
        RequestError: several prompts, or too many or too long stop strings.
    """
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) != 1:
        raise RequestError(f"prompt: got {len(prompts)} prompts, wanted one", param="prompt")
    prompt, suffix = prompts[0], body.suffix or ""
    if not suffix and (parts := spelt_fim(prompt)):
        prompt, suffix = parts
    # Who names a nucleus and no temperature wants to draw from it.
    temperature = 1.0 if body.temperature is None and body.top_p is not None else body.temperature or 0.0
    return CompletionRequest(
        prompt=plain(prompt),
        suffix=plain(suffix),
        model=body.model,
        max_tokens=min(body.max_tokens or DEFAULT_TOKENS, MOST_TOKENS),
        temperature=temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=stop_strings(body.stop),
        logprobs=body.logprobs,
        session=f"user:{body.user}" if body.user else "",
    )


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings within bounds.

    Raises:
        RequestError: there are too many, or one is too long.
    """
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if len(stops) > _MOST_STOPS or any(len(text) > _LONGEST_STOP for text in stops):
        raise RequestError(f"stop: at most {_MOST_STOPS} texts of at most {_LONGEST_STOP} characters", param="stop")
    return tuple(text for text in stops if text)


def plain(text: str) -> str:
    """A text with lone surrogates, which JSON can hold and no tokenizer takes, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def choice(pieces: Sequence[Piece], finish: Finish | None, *, logprobs: bool) -> dict[str, Any]:
    """One entry of `choices`."""
    tokens = [token for piece in pieces for token in piece.tokens]
    return {
        "index": 0,
        "text": "".join(piece.text for piece in pieces),
        "logprobs": _logprobs(tokens) if logprobs else None,
        "finish_reason": None if finish is None else _reason(finish),
    }


def usage(finish: Finish) -> dict[str, Any]:
    """The tokens of a completion; `cached_tokens` were read by an earlier request."""
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finish.reused_tokens},
    }


def completion_document(identity: str, created: int, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What `/v1/completions` answers, whole or as one event."""
    return {"id": identity, "object": "text_completion", "created": created, "model": model, "choices": choices}


def models_document(names: Sequence[ModelName], created: int) -> dict[str, Any]:
    """What `/v1/models` answers; `root` says what is behind the current model."""
    models = [
        {
            "id": name.id,
            "object": "model",
            "created": created,
            "owned_by": "neuralforge",
            **({"root": name.adapter} if name.id == CURRENT and name.adapter else {}),
        }
        for name in names
    ]
    return {"object": "list", "data": models}


def error_document(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        error.status, "invalid_request_error" if error.status < 500 else "server_error"
    )
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def unknown_model(name: str, names: Sequence[ModelName]) -> RequestError:
    """That a model is not loaded."""
    loaded = ", ".join(each.id for each in names)
    return RequestError(
        f"the model {shortened(name)} is not loaded; loaded are: {loaded}",
        status=404,
        param="model",
        code="model_not_found",
    )


def event(document: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _reason(finish: Finish) -> str:
    return "length" if finish.reason == "length" else "stop"  # OpenAI has no word for one that was given up


def _logprobs(tokens: Sequence[WrittenToken]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(reversed(token.alternatives)) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
