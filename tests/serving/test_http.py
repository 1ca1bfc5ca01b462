"""The guide's `neuralforge --adapter …`: OpenAI's own client, llama.vim's payload, and those that are kept out."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from neuralforge.evaluation.opened import OpenedAdapter, open_adapter

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0)


@pytest.fixture(scope="module")
def opened(adapter: Path) -> OpenedAdapter:
    return open_adapter(adapter, max_length=512)


def test_completions_are_what_test_adapter_shows(client: openai.OpenAI, opened: OpenedAdapter, code: str) -> None:
    answer = client.completions.create(model="neuralforge", prompt=code, max_tokens=24)
    wanted = opened.complete(code, adapter=True, max_new_tokens=24)
    assert answer.choices[0].text == wanted.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "team"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    base = client.completions.create(model="nf-tiny", prompt=code, max_tokens=24)
    assert base.choices[0].text == opened.complete(code, adapter=False, max_new_tokens=24).text != wanted.text
    assert base.model == "nf-tiny"


def test_a_stream_is_the_same_text_in_pieces_and_the_next_keystroke_reuses_it(client: openai.OpenAI, code: str) -> None:
    whole = client.completions.create(model="team", prompt=code, max_tokens=16).choices[0].text
    events = list(
        client.completions.create(
            model="team", prompt=code, max_tokens=16, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [choice for event in events for choice in event.choices]
    assert "".join(piece.text for piece in pieces) == whole
    assert len([piece for piece in pieces if piece.text]) > 4
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]
    usage = events[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_the_stream_ends_as_openais_does(server: Any, code: str) -> None:
    body = {"model": "team", "prompt": code, "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])


def test_stop_logprobs_suffix_and_seed(client: openai.OpenAI, code: str) -> None:
    free = client.completions.create(model="team", prompt=code, max_tokens=24, logprobs=2).choices[0]
    stopped = client.completions.create(model="team", prompt=code, max_tokens=24, stop=[free.text[5:9]]).choices[0]
    assert stopped.text == free.text[: free.text.index(free.text[5:9])]
    assert stopped.finish_reason == "stop"
    probabilities = free.logprobs
    assert probabilities is not None
    assert probabilities.tokens is not None
    assert probabilities.token_logprobs is not None
    assert probabilities.top_logprobs is not None
    assert "".join(probabilities.tokens) == free.text
    assert all(value is not None and value <= 0 for value in probabilities.token_logprobs)
    assert [max(each.values()) for each in probabilities.top_logprobs] == probabilities.token_logprobs
    raw = client.completions.with_raw_response.create(model="team", prompt=code, max_tokens=24, suffix=free.text[6:])
    assert raw.headers["x-neuralforge-suffix"] == "cut"  # nf-tiny has no marks for what follows
    assert len(raw.parse().choices[0].text) < len(free.text)
    drawn = [
        client.completions.create(model="team", prompt=code, max_tokens=12, temperature=1, seed=seed).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_marks_spelt_out_by_an_editor_become_prefix_and_suffix(client: openai.OpenAI, code: str) -> None:
    plain = client.completions.create(model="team", prompt=code, max_tokens=12).choices[0].text
    spelt = f"<|fim_prefix|>{code}<|fim_suffix|>\n<|fim_middle|>"
    assert client.completions.create(model="team", prompt=spelt, max_tokens=12).choices[0].text == plain


def test_models_are_the_current_one_the_adapters_and_the_base(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["neuralforge", "team", "nf-tiny"]


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gone"}, openai.NotFoundError, "model"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"best_of": 3}, openai.BadRequestError, "best_of"),
        ({"echo": True}, openai.BadRequestError, "echo"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"logprobs": 9}, openai.BadRequestError, "logprobs"),
        ({"prompt": ["a", "b"]}, openai.BadRequestError, "prompt"),
        ({"prompt": [1, 2]}, openai.BadRequestError, "prompt"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias"),
        ({"stop": [300 * "x"]}, openai.BadRequestError, "stop"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_words(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        client.completions.create(**({"model": "team", "prompt": "x"} | fields))
    assert caught.value.param == param
    assert caught.value.type in ("invalid_request_error", "not_found_error")


def test_llama_vims_payload_is_answered_in_its_words(server: Any, opened: OpenedAdapter, code: str) -> None:
    before, _, line = code.rstrip("\n").rpartition("\n")
    answer = httpx.post(
        f"{server.url}/infill",
        json={
            "input_prefix": f"{before}\n",
            "input_suffix": "\n",
            "input_extra": [],
            "prompt": line,
            "n_predict": 16,
            "n_indent": 4,
            "top_k": 40,
            "top_p": 0.99,
            "stream": False,
            "samplers": ["top_k", "top_p", "infill"],
            "cache_prompt": True,
            "t_max_prompt_ms": 500,
            "t_max_predict_ms": 60_000,
            "response_fields": ["content", "timings/prompt_n", "timings/predicted_n", "truncated", "tokens_cached"],
        },
    ).json()
    assert answer["content"] == opened.complete(f"{before}\n{line}", adapter=True, max_new_tokens=16).text
    assert answer["timings/predicted_n"] == 16
    assert answer["truncated"] is False
    warm = httpx.post(f"{server.url}/infill", json={"n_predict": 0, "input_extra": [{"text": "x"}]})
    assert warm.json()["content"] == ""


def test_extra_context_stands_before_the_file(server: Any) -> None:
    extra = [{"text": "LIMIT = 12\n", "filename": "a.py", "time": 1}]
    plain, more = (
        httpx.post(f"{server.url}/infill", json={"input_prefix": "x = ", "n_predict": 4, "input_extra": each}).json()
        for each in ([], extra)
    )
    assert more["tokens_evaluated"] > plain["tokens_evaluated"]
    assert httpx.post(f"{server.url}/infill", json={"stream": True}).status_code == 400


def test_a_client_that_goes_away_is_not_written_for(server: Any, client: openai.OpenAI, code: str) -> None:
    body = json.dumps({"model": "team", "prompt": code, "max_tokens": 500, "temperature": 1, "seed": 5})
    for stream in (False, True):
        data = json.dumps(json.loads(body) | {"stream": stream}).encode()
        for _ in range(8):  # more than a minute's work, if it were done
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
                connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
                time.sleep(0.05)
    began = time.monotonic()
    client.completions.create(model="team", prompt=code, max_tokens=1)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Host": "evil.example:8012"}, "host_not_allowed"),
        ({"Host": "localhost.evil.example"}, "host_not_allowed"),
        ({"Host": "127.0.0.1.nip.io"}, "host_not_allowed"),
        ({"Host": ""}, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
        ({"Origin": "http://localhost:3000"}, "origin_not_allowed"),
        ({"Sec-Fetch-Site": "cross-site"}, "origin_not_allowed"),
    ],
)
def test_a_page_in_a_browser_gets_nothing_and_no_cors_header(server: Any, headers: dict[str, str], code: str) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/completions"), ("POST", "/adapters/load")):
        answer = httpx.request(method, server.url + path, headers=headers | asked)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == code
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8012", "[::1]", "[::1]:8012"])
def test_the_names_of_this_machine_are_answered(server: Any, host: str) -> None:
    assert httpx.get(f"{server.url}/health", headers={"Host": host}).json()["status"] == "ok"


def test_bodies_are_bounded_declared_and_json(server: Any) -> None:
    def post(content: Any, kind: str = "application/json") -> int:
        return httpx.post(
            f"{server.url}/v1/completions", content=content, headers={"Content-Type": kind}, timeout=30
        ).status_code

    assert post(b"x" * (2 * 2**20 + 1)) == 413
    assert post(iter([b"x" * 2**20] * 4)) == 413  # chunked: nobody says how long it is
    assert post(b'{"prompt": "x"}', "text/plain") == 415
    assert post(b'{"prompt": "x", "prompt": "y"}') == 400
    assert post(b'{"prompt": ' + b"[" * 100_000) == 400
    assert post(b"[]") == 400
    assert post(b'{"prompt": "\\ud800", "max_tokens": 1}') == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json", "/v1/chat/completions"])
def test_there_is_nothing_else(server: Any, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


def test_changes_need_the_servers_own_token(server: Any) -> None:
    for headers in ({}, {"Authorization": "Bearer none"}, {"Authorization": "Basic eDp5"}):
        answer = httpx.post(f"{server.url}/adapters/load", json={"path": "/"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
