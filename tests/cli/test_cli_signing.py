"""`keygen`, `sign-adapter`, `trust` and `adapters verify`, as two people use them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from signed_adapters import write_small_adapter

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]

FINGERPRINT = re.compile(r"^fingerprint  sha256:([0-9a-f]{64})$", re.MULTILINE)


@pytest.fixture
def author(cli: Cli, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Somebody with a home of their own."""
    return lambda *arguments, **more: cli(*arguments, cwd=tmp_path, NEURALFORGE_HOME=str(tmp_path / "author"), **more)


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, Any]:
    """Where another person works, for `cli` and `refused`."""
    return {"cwd": tmp_path, "NEURALFORGE_HOME": str(tmp_path / "reader")}


@pytest.fixture
def signed(author: Cli, tmp_path: Path) -> tuple[Path, str]:
    """An adapter that the author has signed, and the key's fingerprint."""
    folder = write_small_adapter(tmp_path / "theirs.lora")
    for arguments in (["keygen"], ["sign-adapter", folder]):
        done = author(*arguments)
        assert done.returncode == 0, done.stderr
    found = FINGERPRINT.search(done.stdout)
    assert found is not None
    return folder, found[1]


def test_a_key_is_private_and_its_fingerprint_is_printed(author: Cli, tmp_path: Path) -> None:
    done = author("keygen")
    assert (done.returncode, done.stderr) == (0, "")
    home = tmp_path / "author"
    assert (home / "private.key").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    found = FINGERPRINT.search(done.stdout)
    assert found is not None
    assert found[1] == hashlib.sha256((home / "private.pub").read_bytes()).hexdigest()


def test_a_key_is_not_overwritten_unless_it_is_forced(author: Cli, refused: Refused, tmp_path: Path) -> None:
    home = tmp_path / "author"
    author("keygen")
    first = (home / "private.key").read_bytes()
    line = refused("keygen", cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert line.startswith(f"{home / 'private.key'} is there already")
    assert (home / "private.key").read_bytes() == first
    assert author("keygen", "--force").returncode == 0
    assert (home / "private.key").read_bytes() != first
    assert (home / "private.key").stat().st_mode & 0o777 == 0o600


def test_signing_twice_gives_the_same_bytes(author: Cli, signed: tuple[Path, str]) -> None:
    folder, _ = signed
    first = (folder / "model.sig").read_bytes()
    assert author("sign-adapter", folder).returncode == 0
    assert (folder / "model.sig").read_bytes() == first


def test_an_adapter_is_verified_once_its_signer_is_trusted(
    cli: Cli, refused: Refused, reader: dict[str, Any], signed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, fingerprint = signed
    line = refused("adapters", "verify", folder, **reader)
    assert "step 2 of 6, signer: nobody whose key is sha256:" + fingerprint in line
    public = tmp_path / "author/private.pub"
    told = f"sha256:{fingerprint}"
    done = cli("trust", "add", public, "--name", "alice", "--team", "acme", "--fingerprint", told, **reader)
    assert (done.returncode, done.stderr) == (0, "")
    done = cli("adapters", "verify", folder, "--team", "acme", **reader)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"verified {folder}: mine 1.0.0, signed by alice (acme)\n")
    assert FINGERPRINT.findall(done.stdout) == [fingerprint]
    facts = json.loads(cli("adapters", "verify", folder, "--json", **reader).stdout)
    assert (facts["signer"], facts["teams"], facts["fingerprint"]) == ("alice", ["acme"], fingerprint)
    assert "trusted as one of acme, wanted 'other'" in refused(
        "adapters", "verify", folder, "--team", "other", **reader
    )


def test_a_revoked_signer_is_refused_and_listed_as_such(
    cli: Cli, refused: Refused, reader: dict[str, Any], signed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, fingerprint = signed
    cli("trust", "add", tmp_path / "author/private.pub", "--name", "alice", **reader)
    assert "trusted, until 20" in cli("trust", "list", **reader).stdout
    done = cli("trust", "revoke", "alice", "--reason", "laptop stolen", **reader)
    assert (done.returncode, FINGERPRINT.findall(done.stdout)) == (0, [fingerprint])
    line = refused("adapters", "verify", folder, **reader)
    assert re.search(r"step 2 of 6, signer: the key of alice was revoked on [0-9-]{10}: laptop stolen", line)
    (entry,) = json.loads(cli("trust", "list", "--json", **reader).stdout)["signers"]
    assert entry["fingerprint"] == fingerprint
    assert entry["standing"].startswith("revoked on ")


def test_a_changed_byte_is_refused_with_the_step_and_the_key(
    refused: Refused, reader: dict[str, Any], signed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, fingerprint = signed
    with (folder / "README.md").open("a") as card:
        card.write("!")
    line = refused("adapters", "verify", folder, "--key", tmp_path / "author/private.pub", **reader)
    assert "step 5 of 6, files: 'README.md' was changed after it was signed" in line
    assert line.endswith(f"[key sha256:{fingerprint}]")


def test_another_key_than_the_owner_has_told_is_not_trusted(
    cli: Cli, refused: Refused, reader: dict[str, Any], signed: tuple[Path, str], tmp_path: Path
) -> None:
    public = tmp_path / "author/private.pub"
    line = refused("trust", "add", public, "--name", "alice", "--fingerprint", "0" * 64, **reader)
    assert f"its fingerprint is sha256:{signed[1]}" in line
    assert cli("trust", "list", **reader).stdout.startswith("nobody is trusted in ")


def test_a_locked_key_signs_with_its_passphrase_only(author: Cli, refused: Refused, tmp_path: Path) -> None:
    folder = write_small_adapter(tmp_path / "x.lora")
    home = {"cwd": tmp_path, "NEURALFORGE_HOME": str(tmp_path / "author")}
    assert "locked by a passphrase" in author("keygen", NEURALFORGE_PASSPHRASE="horse").stdout
    assert "ENCRYPTED" in (tmp_path / "author/private.key").read_text()
    assert "is locked by a passphrase" in refused("sign-adapter", folder, **home)
    assert "not the passphrase" in refused("sign-adapter", folder, NEURALFORGE_PASSPHRASE="cow", **home)
    assert not (folder / "model.sig").exists()
    assert author("sign-adapter", folder, NEURALFORGE_PASSPHRASE="horse").returncode == 0


def test_at_a_terminal_the_passphrase_is_asked_for_twice_and_then_once(terminal: Any, tmp_path: Path) -> None:
    folder = write_small_adapter(tmp_path / "x.lora")
    made = terminal("keygen", "--key", "my.key", cwd=tmp_path)
    for prompt in ("empty for none): ", "the same again: "):
        made.wait_for(prompt)
        made.send("horse\n")
    assert made.ended() == 0
    assert "horse" not in made.shown
    signed = terminal("sign-adapter", folder, "--key", "my.key", cwd=tmp_path)
    signed.wait_for("passphrase for my.key: ")
    signed.send("horse\n")
    assert signed.ended() == 0
    assert "signed " in signed.shown


def test_a_key_that_others_may_read_is_not_used(author: Cli, refused: Refused, tmp_path: Path) -> None:
    folder = write_small_adapter(tmp_path / "x.lora")
    author("keygen")
    (tmp_path / "author/private.key").chmod(0o640)
    line = refused("sign-adapter", folder, cwd=tmp_path, NEURALFORGE_HOME=str(tmp_path / "author"))
    assert "others than its owner may use it" in line


def test_without_a_key_the_way_to_one_is_named(cli: Cli, reader: dict[str, Any], tmp_path: Path) -> None:
    done = cli("sign-adapter", write_small_adapter(tmp_path / "x.lora"), **reader)
    assert done.returncode == 1
    assert done.stderr.endswith("\n  hint: neuralforge keygen makes one\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["keygen", "--type", "rsa"],
        ["trust", "add", "x.pub", "--name", "x", "--expires", "2001-01-01"],
        ["trust", "add", "x.pub", "--name", "x", "--expires", "soon"],
        ["adapters", "verify", "x", "--key", "x.pub", "--team", "t"],
        ["adapters", "verify", "x", "--key", "x.pub", "--trusted", "k"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(
    cli: Cli, author: Cli, reader: dict[str, Any], tmp_path: Path, arguments: list[str]
) -> None:
    author("keygen", "--key", "x.key")
    assert cli(*arguments, **reader).returncode == 2
    assert not (tmp_path / "reader").exists()


@pytest.mark.parametrize("command", [["keygen"], ["sign-adapter"], ["trust"], ["trust", "add"], ["adapters", "verify"]])
def test_help_ends_with_examples_and_imports_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    code = """if True:
        import sys
        from neuralforge.cli.main import main
        try:
            main(sys.argv[1:])
        finally:
            print(sorted({"torch", "numpy", "cryptography", "pydantic", "yaml", "rich"} & set(sys.modules)))
        """
    command = [sys.executable, "-c", code, *command, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert "\nexamples:\n  neuralforge " in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_signing_and_verifying_need_no_torch(tmp_path: Path) -> None:
    write_small_adapter(tmp_path / "x.lora")
    code = """if True:
        import sys
        from neuralforge.cli.main import main
        for line in ("keygen --key k.key", "sign-adapter x.lora --key k.key", "adapters verify x.lora --key k.pub"):
            assert main(line.split()) == 0
        print(sorted({"torch", "transformers", "peft", "pydantic", "rich", "grpc", "flwr"} & set(sys.modules)))
        """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr
