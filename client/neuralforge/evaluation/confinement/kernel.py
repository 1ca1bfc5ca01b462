"""Calls into the kernel that Python has no names for, through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform

_LIBC = ctypes.CDLL(None, use_errno=True)

MACHINES = ("x86_64", "aarch64")
MACHINE = platform.machine()

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522


def syscall(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by number; raises OSError."""
    given = [value if isinstance(value, ctypes.Array) else ctypes.c_long(value or 0) for value in arguments]
    return _checked(_LIBC.syscall(ctypes.c_long(number), *given))


def prctl(option: int, *arguments: int | ctypes.c_void_p) -> int:
    """Call prctl; raises OSError."""
    given = [value if isinstance(value, ctypes.c_void_p) else ctypes.c_ulong(value) for value in arguments]
    given += [ctypes.c_ulong(0)] * (4 - len(given))
    return _checked(_LIBC.prctl(ctypes.c_int(option), *given))


def unshare(flags: int) -> None:
    """Call unshare; raises OSError."""
    _checked(_LIBC.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Call mount; raises OSError."""
    texts = [text.encode() or None for text in (source, target, kind)]
    _checked(_LIBC.mount(*texts, ctypes.c_ulong(flags), options.encode() or None), target)


def detach(target: str) -> None:
    """Call umount2, lazily; raises OSError."""
    _checked(_LIBC.umount2(target.encode(), ctypes.c_int(2)), target)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the one that made it ends, and end now where it already has."""
    prctl(_PR_SET_PDEATHSIG, 9)
    if parent and os.getppid() != parent:
        os._exit(1)


def drop_privileges() -> None:
    """No capabilities, now or after an exec, and no setuid program gives any back."""
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # not ours to drop, or past the last one
            continue
    header = ctypes.create_string_buffer(_CAPABILITY_VERSION.to_bytes(4, "little") + bytes(4), 8)
    _checked(_LIBC.capset(header, ctypes.create_string_buffer(bytes(24), 24)))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _checked(result: int, what: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)
    return result
