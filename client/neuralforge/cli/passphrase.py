"""The passphrase of a signing key: from the environment, else asked for where somebody sits at a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from neuralforge_common.errors import StorageError, UsageError


def new_passphrase(path: Path) -> str | None:
    """What a key that is being made shall be locked by; None for nothing.

    Raises:
        UsageError: it was typed in two ways.
    """
    from neuralforge.continual.keys import PASSPHRASE

    if given := os.environ.get(PASSPHRASE):
        return given
    if not sys.stdin.isatty():
        return None
    typed = getpass.getpass(f"passphrase for {path} (empty for none): ")
    if typed and getpass.getpass("the same again: ") != typed:
        raise UsageError("the two passphrases differ; nothing was written")
    return typed or None


def known_passphrase(path: Path) -> str:
    """What an encrypted key is locked by.

    Raises:
        StorageError: nobody is there to say.
    """
    from neuralforge.continual.keys import PASSPHRASE

    if given := os.environ.get(PASSPHRASE):
        return given
    if not sys.stdin.isatty():
        raise StorageError(f"{path} is locked by a passphrase", hint=f"set {PASSPHRASE}, or call it at a terminal")
    return getpass.getpass(f"passphrase for {path}: ")
