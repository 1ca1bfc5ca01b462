"""A world of its own: no network, no other processes, and a root folder with little more than Python in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable

from .kernel import MACHINE, detach, mount, syscall, unshare

WORK = "/work"
"""The folder of the program, in memory and bounded."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
_ALL = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV = 4096, 16384, 1 << 18, 2, 4
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_READ_ONLY = 0b111  # and neither setuid programs nor devices
_RECURSIVE = 0x8000
_HERE = -100  # AT_FDCWD
_NOBODY = 65534


def leave() -> None:
    """Into new namespaces, the next child being the first of its own; raises OSError."""
    user, group = os.geteuid(), os.getegid()
    try:
        unshare(_NEWUSER | _ALL)
    except OSError:  # root of a container that may not make user namespaces can do without one
        unshare(_ALL)
        return
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def new_root(place: str, *, readable: Iterable[str], devices: Iterable[str], disk: int) -> None:
    """Make `place`, an empty folder, the root: `readable` is in it, read-only, and `WORK` of `disk` bytes."""
    mount("none", "/", flags=_REC | _PRIVATE)
    mount("tmpfs", place, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=4k,mode=755")
    for path in readable:
        _show(path, place)
    os.mkdir(place + WORK)
    os.mkdir(place + "/dev")
    for path in devices:
        os.close(os.open(place + path, os.O_CREAT | os.O_WRONLY, 0o600))
    attributes = struct.pack("=4Q", _READ_ONLY, 0, 0, 0)
    size = len(attributes)
    syscall(
        _MOUNT_SETATTR,
        _HERE,
        ctypes.create_string_buffer(place.encode()),
        _RECURSIVE,
        ctypes.create_string_buffer(attributes, size),
        size,
    )
    for path in devices:
        mount(path, place + path, flags=_BIND)
    mount("tmpfs", place + WORK, "tmpfs", _NOSUID | _NODEV, f"size={disk},nr_inodes=4k,mode=700")
    os.chdir(place)
    here = ctypes.create_string_buffer(b".")
    syscall(_PIVOT_ROOT[MACHINE], here, here)
    detach(".")
    os.chdir(WORK)


def _show(path: str, place: str) -> None:
    if not os.path.lexists(path) or os.path.lexists(place + path):
        return
    os.makedirs(os.path.dirname(place + path), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place + path)
        return
    if os.path.isdir(path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(place + path)
    else:
        os.close(os.open(place + path, os.O_CREAT | os.O_WRONLY, 0o600))
    mount(path, place + path, flags=_BIND | _REC)
