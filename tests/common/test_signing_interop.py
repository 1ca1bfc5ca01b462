"""What we sign, OpenSSF's own tool verifies, and the other way round; what it lets pass is refused here.

Its dependencies clash with ours, so it is looked for as a program: in an environment of its own, on the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from signed_adapters import write_small_adapter

from neuralforge_common.errors import SignatureError
from neuralforge_common.folder import SIGNATURE
from neuralforge_common.signing.keys import Kind, SigningKey, generate_key, write_key_pair
from neuralforge_common.signing.sign import sign_adapter
from neuralforge_common.signing.verify import only, verify_adapter

pytestmark = pytest.mark.slow

PROGRAM = shutil.which("model_signing")

Theirs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def theirs(tmp_path: Path) -> Theirs:
    if PROGRAM is None or subprocess.run([PROGRAM, "--version"], capture_output=True).returncode != 0:
        pytest.skip(
            "no model_signing that starts is on the PATH: python -m venv V && V/bin/pip install model-signing==1.1.1 "
            "pyOpenSSL (it imports pyOpenSSL and does not ask for it)"
        )

    def run(action: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        key = ["--public_key", "my.pub"] if action == "verify" else ["--private_key", "my.key"]
        signature = ["--signature", str(folder / SIGNATURE)]
        command = [str(PROGRAM), action, "key", str(folder), *signature, *key, *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def make_key(folder: Path, kind: Kind = "p256") -> SigningKey:
    key = generate_key(kind)
    write_key_pair(folder / "my.key", key, passphrase=None, replace=False)
    return key


def test_their_tool_verifies_ours_and_sees_what_was_changed(tmp_path: Path, theirs: Theirs) -> None:
    folder = write_small_adapter(tmp_path / "mine.lora")
    sign_adapter(folder, make_key(tmp_path))
    done = theirs("verify", folder)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr
    (folder / "README.md").write_text("changed")
    done = theirs("verify", folder)
    assert done.returncode == 1
    assert "Hash mismatch for" in done.stderr
    assert "README.md" in done.stderr


def test_we_verify_theirs(tmp_path: Path, theirs: Theirs) -> None:
    folder, key = write_small_adapter(tmp_path / "mine.lora"), make_key(tmp_path)
    done = theirs("sign", folder)
    assert done.returncode == 0, done.stderr
    assert verify_adapter(folder, only(key.public)).manifest == sign_adapter(folder, key).manifest


def test_what_they_let_pass_beside_the_signed_files_we_refuse(tmp_path: Path, theirs: Theirs) -> None:
    folder, key = write_small_adapter(tmp_path / "mine.lora"), make_key(tmp_path)
    sign_adapter(folder, key)
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("[core]\n\tfsmonitor = evil\n")
    assert theirs("verify", folder).returncode == 0
    with pytest.raises(SignatureError, match=r"step 5 of 6, files: '\.git' is a folder"):
        verify_adapter(folder, only(key.public))


def test_ed25519_is_ours_alone(tmp_path: Path, theirs: Theirs) -> None:
    folder, key = write_small_adapter(tmp_path / "mine.lora"), make_key(tmp_path, "ed25519")
    sign_adapter(folder, key)
    verify_adapter(folder, only(key.public))
    assert theirs("verify", folder).returncode != 0
