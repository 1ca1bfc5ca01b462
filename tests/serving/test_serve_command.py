"""`serve` and `adapters load` as a person uses them: swapping, tokens, refusals, a clean end."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "a-token-that-nobody-guesses"


def test_adapters_load_swaps_the_adapter_of_the_running_server(
    start: Callable[..., Any], cli: Cli, adapter: Path, variants: dict[str, Path], code: str, tmp_path: Path
) -> None:
    home = tmp_path / "nf"
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o600)
    server = start("serve", "--adapter", adapter, "--port", 0, "--token-file", token_file, home=home)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0)

    def text(model: str = "neuralforge") -> str:
        return str(client.completions.create(model=model, prompt=code, max_tokens=16).choices[0].text)

    # 1. All requests need the token, and it is not the one that loads adapters.
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.post(
        f"{server.url}/adapters/load", json={"path": str(adapter)}, headers={"Authorization": f"Bearer {TOKEN}"}
    ).is_client_error
    # 2. The file that says where the server is belongs to its user alone.
    (record,) = (home / "serving").iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert record.name == f"{server.port}.json"
    # 3. Swapped, and back, without the base being loaded again.
    before, process = text(), server.process.pid
    done = cli("adapters", "load", variants["loud"], cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"loaded loud into the server at 127.0.0.1:{server.port}\n"
    assert text() == text("loud") != before
    assert text("team") == before
    # A relative path is the caller's, not the server's.
    done = cli("adapters", "load", adapter.name, cwd=adapter.parent, NEURALFORGE_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert text() == before
    assert server.process.pid == process
    # 4. What is refused is told in one line, and changes nothing.
    broken = tmp_path / "broken.lora"
    broken.mkdir()
    for name in ("adapter_config.json", "metadata.json"):
        (broken / name).write_bytes((adapter / name).read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 99)
    done = cli("adapters", "load", broken, cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert text() == before
    # 5. Ctrl-C ends it while it writes; it goes cleanly and takes its file with it.
    body = {"prompt": code, "max_tokens": 900, "temperature": 1, "stream": True}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers) as response:
        next(response.iter_lines())
        assert server.stop() == (0, "stopped\n")
    assert list((home / "serving").iterdir()) == []
    done = cli("adapters", "load", adapter, cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: no server of this user runs",
        "  hint: neuralforge --adapter ./my-adapter.lora",
    ]


def test_files_of_servers_that_died_are_no_servers(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nf" / "serving"
    folder.mkdir(parents=True, mode=0o700)
    record = {"host": "127.0.0.1", "port": 9, "admin_token": "x"}
    for name, text in (("9.json", json.dumps(record)), ("10.json", "{"), ("11.json", "{}")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    done = cli("adapters", "load", adapter, cwd=tmp_path, NEURALFORGE_HOME=str(tmp_path / "nf"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no server of this user runs\n")


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (("serve",), 2, "error: wanted an adapter or a base"),
        (("--adapter", "ADAPTER", "--host", "192.0.2.7"), 2, "error: --host 192.0.2.7: other machines could ask"),
        (("--adapter", "ADAPTER", "--host", "::"), 2, "error: --host: '::' is every address of this machine"),
        (("--adapter", "ADAPTER", "--port", "70000"), 2, "error: --port: wanted a number up to 65535, got 70000"),
        (("--adapter", "none.lora"), 1, "error: none.lora: cannot open the adapter: no such folder"),
        (("--adapter=none.lora",), 1, "error: none.lora: cannot open the adapter: no such folder"),
        (("--adapter", "ADAPTER", "--token-file", "loose"), 1, "error: "),
        (("--adapter", "ADAPTER", "--token-file", "short"), 2, "error: --token-file: wanted one line of at least 16"),
        (("lsp",), 2, "error: wanted an adapter or a base"),
        (("lsp", "--adapter", "none.lora"), 1, "error: none.lora: cannot open the adapter: no such folder"),
        (("adapters", "load", "none.lora"), 1, "error: none.lora: cannot open the adapter: no such folder"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    cli: Cli, adapter: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, wanted: str
) -> None:
    for name, mode in (("loose", 0o644), ("short", 0o600)):
        (tmp_path / name).write_text("secret")
        (tmp_path / name).chmod(mode)
    words = [str(adapter) if word == "ADAPTER" else word for word in arguments]
    done = cli(*words, cwd=tmp_path, NEURALFORGE_HOME=str(tmp_path / "nf"))
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(wanted)


def test_a_port_that_is_taken_is_told_before_a_base_is_loaded(cli: Cli, server: Any, adapter: Path) -> None:
    done = cli("--adapter", adapter, "--port", server.port, cwd=adapter.parent)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen at 127.0.0.1:{server.port}: ")


@pytest.mark.parametrize("command", [("serve",), ("lsp",), ("adapters", "load")])
def test_help_ends_with_examples(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    done = cli(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    examples = done.stdout.partition("\nexamples:\n")[2].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"neuralforge {' '.join(command)} ") for line in examples)
