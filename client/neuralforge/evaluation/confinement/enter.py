"""From an ordinary child to a confined program, in steps; what fails is told through the pipe `report`.

`python -I -S -B -c … TERMS`, the program on standard input. It ends with the program's status, 128 + signal where it
was killed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from . import landlock, namespaces, seccomp
from .kernel import MACHINE, MACHINES, die_with, drop_privileges

READY = b"ready"
NAME = "program.py"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")


def main() -> None:
    """Never returns."""
    terms = json.loads(sys.argv[1])
    report: int = terms["report"]
    try:
        if MACHINE not in MACHINES:
            raise OSError(0, f"no list of system calls for {MACHINE}, only for {', '.join(MACHINES)}")
        _confine(terms)
    except BaseException as error:
        os.write(report, f"{type(error).__name__}: {error}".encode()[:500])
    os._exit(126)


def _confine(terms: dict[str, Any]) -> None:
    # 1. Nobody is left behind when NeuralForge is killed.
    die_with(terms["parent"])
    program = sys.stdin.buffer.read()
    quiet = os.open("/dev/null", os.O_RDONLY)
    os.dup2(quiet, 0)
    os.close(quiet)
    readable = _readable()
    folder = terms["folder"]
    if "namespaces" in terms["layers"]:
        # 2. Namespaces: this process waits outside, the first one inside reaps, the second one is the program's.
        namespaces.leave()
        _wait_for_child(terms["report"])
        namespaces.new_root(folder, readable=readable, devices=DEVICES, disk=terms["disk"])
        folder = namespaces.WORK
        _wait_for_child(terms["report"])
    os.chdir(folder)
    with open(NAME, "xb") as file:
        file.write(program)
    # 3. Limits that the kernel holds, whoever we are.
    for name, value in terms["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.umask(0o077)
    # 4. No privileges, then no files, then no system calls.
    drop_privileges()
    if "landlock" in terms["layers"]:
        landlock.restrict(readable=readable, writable=[folder], devices=DEVICES)
    os.set_inheritable(terms["report"], False)
    os.write(terms["report"], READY)
    seccomp.install()
    # 5. A new interpreter, which knows nothing of this one.
    python = os.path.realpath(sys.executable)
    clean = {"LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "PATH": "/nonexistent"}
    os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", NAME], clean)  # noqa: S606


def _wait_for_child(report: int) -> None:
    """Fork: the child returns, its parent waits for it and ends as it did."""
    mine = os.getpid()
    child = os.fork()
    if child == 0:
        # In a new process namespace the parent is seen as 0.
        die_with(mine if os.getppid() == mine else 0)
        return
    os.close(report)
    _, status = os.waitpid(child, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _readable() -> list[str]:
    """What an interpreter without site-packages reads: itself, the standard library, shared libraries."""
    found = [os.path.realpath(sys.executable), os.path.dirname(os.__file__), *_SYSTEM]
    found += [path for path in sys.path if os.path.isabs(path) and os.path.exists(path)]
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if " /" in line}
    found += [path for path in sorted(mapped) if ".so" in path and os.path.isfile(path)]
    # A folder comes before what is in it, and what is in it needs no mention.
    kept: list[str] = []
    for path in sorted(set(found)):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept
