"""Landlock: which files a process may open, whoever it runs as (Linux's userspace-api/landlock)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from .kernel import syscall

FIRST_ABI = 3
"""Before it (Linux 6.2) files could be truncated whatever the rules said."""

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_ABI = 1
_BENEATH = 1
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_TCP = 0b11
_SCOPES = 0b11  # abstract sockets, signals


def abi() -> int:
    """The kernel's version of Landlock; raises OSError where it has none."""
    return syscall(_CREATE, None, 0, _ASK_ABI)


def restrict(*, readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> None:
    """Let this process read and execute below `readable`, change what is below `writable`, and nothing else.

    `devices` are files that are read and written. Raises OSError.
    """
    version = abi()
    if version < FIRST_ABI:
        raise OSError(0, f"Landlock is of version {version}, and before {FIRST_ABI} files can be truncated")
    files = (1 << (16 if version >= 5 else 15)) - 1
    words = [files, _TCP, _SCOPES][: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = syscall(_CREATE, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    special = _MAKE_CHAR | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK | _IOCTL
    for paths, access in (
        (readable, _EXECUTE | _READ | _LIST),
        (writable, files & ~special & ~_EXECUTE),
        (devices, _READ | _WRITE),
    ):
        for path in paths:
            _allow(ruleset, path, access & files)
    syscall(_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        access &= _OF_FILES
    rule = struct.pack("=Qi", access, place)
    syscall(_ADD, ruleset, _BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    os.close(place)
