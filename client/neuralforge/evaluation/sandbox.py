"""Code of strangers, run where it can do no harm: without network, children, or any file but its own.

A property counts only where the kernel holds it. Always: a filter of system calls (no sockets, no children, no
tracing), no privileges, limits of CPU time, memory, file size and open files, a clean environment, a wall clock. Of
the file system: namespaces with a root of their own, or Landlock, or, where the machine has both, both. Where it has
neither, nothing is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neuralforge.evaluation.confinement.enter import READY
from neuralforge_common.errors import SandboxError

MIB = 1024 * 1024
LAYERS = (("namespaces", "landlock"), ("landlock",), ("namespaces",))
"""What holds the file system, strongest first; each suffices."""

_START = "import sys; sys.path.append(sys.argv[2]); from confinement.enter import main; sys.path.pop(); main()"
_HINT = "without --sandbox, --generations-only FILE writes the code for another machine to run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use: seconds, bytes, files. It may have no children, threads or folders."""

    wall: float = 10.0
    cpu: int = 5
    memory: int = 512 * MIB
    file: int = 4 * MIB
    disk: int = 64 * MIB
    output: int = 64 * 1024
    open_files: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program ended.

    `ended` is exit (by itself, or by a signal: `code` is 128 + signal), time, output or disk. `stdout` and `stderr`
    are cut at the limit of output.
    """

    ended: str
    code: int
    stdout: str
    stderr: str
    seconds: float


def run_confined(program: str, *, limits: Limits | None = None, layers: tuple[str, ...] | None = None) -> Outcome:
    """Run a Python program that nobody trusts, and wait for its end or its limits.

    `layers` is for tests; by default the strongest that this machine has. Raises SandboxError where it cannot be
    confined, and then has run nothing.
    """
    return _run(program, limits or Limits(), confinement() if layers is None else layers)


@cache
def confinement() -> tuple[str, ...]:
    """The layers that hold the file system on this machine, tried once; raises SandboxError where none does."""
    if sys.platform != "linux":
        raise SandboxError(f"generated code can only be confined on Linux, this is {sys.platform}", hint=_HINT)
    faults = []
    for layers in LAYERS:
        try:
            outcome = _run("print('confined')", Limits(), layers)
        except SandboxError as error:
            faults.append(f"{' and '.join(layers)}: {error.message}")
            continue
        if outcome.stdout == "confined\n":
            return layers
        faults.append(f"{' and '.join(layers)}: Python does not start there")
    raise SandboxError(f"this machine cannot confine generated code ({'; '.join(faults)})", hint=_HINT)


def _run(program: str, limits: Limits, layers: tuple[str, ...]) -> Outcome:
    if layers not in LAYERS:
        raise SandboxError(f"{' and '.join(layers) or 'nothing'} does not hold the file system")
    with tempfile.TemporaryDirectory(prefix="neuralforge-") as folder, tempfile.TemporaryFile() as source:
        source.write(program.encode("utf-8", "surrogatepass"))
        source.seek(0)
        reported, report = os.pipe()
        began = time.monotonic()
        try:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter
                [*_interpreter(), "-c", _START, json.dumps(_terms(folder, limits, layers, report)), str(_HERE)],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"LANG": "C.UTF-8"},
                cwd=folder,
                pass_fds=(report,),
                start_new_session=True,
            )
        finally:
            os.close(report)
        try:
            watched = Path(folder) if "namespaces" not in layers else None
            ended, texts = _watch(child, limits, began, watched)
        finally:
            _kill(child)
            with open(reported, "rb") as pipe:  # noqa: PTH123 - a descriptor
                told = pipe.read(1000)
        if told != READY:
            fault = told.removeprefix(READY).decode("utf-8", "replace") or "it ended before it began"
            raise SandboxError(f"a program could not be confined: {fault}", hint=_HINT)
        out, err = (text[: limits.output].decode("utf-8", "replace") for text in texts)
        code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        return Outcome(ended=ended, code=code, stdout=out, stderr=err, seconds=time.monotonic() - began)


_HERE = Path(__file__).resolve().parent


def _interpreter() -> tuple[str, ...]:
    # Not the link of a virtual environment: what it points to is all that the program will see.
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return python, "-I", "-S", "-B"


def _terms(folder: str, limits: Limits, layers: tuple[str, ...], report: int) -> dict[str, Any]:
    return {
        "folder": folder,
        "layers": layers,
        "report": report,
        "parent": os.getpid(),
        "disk": limits.disk,
        "limits": {
            "RLIMIT_AS": limits.memory,
            "RLIMIT_CPU": limits.cpu,
            "RLIMIT_FSIZE": limits.file,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
        },
    }


def _watch(
    child: subprocess.Popen[bytes], limits: Limits, began: float, folder: Path | None
) -> tuple[str, tuple[bytes, bytes]]:
    """Read until the program ends or goes past a limit; `folder` is measured where no file system bounds it."""
    assert child.stdout is not None  # noqa: S101 - for the type checker
    assert child.stderr is not None  # noqa: S101
    held = {child.stdout: b"", child.stderr: b""}
    ended = "exit"
    with selectors.DefaultSelector() as ready:
        for pipe in held:
            os.set_blocking(pipe.fileno(), False)
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map() or child.poll() is None:
            left = began + limits.wall - time.monotonic()
            if left <= 0:
                ended = "time"
                break
            if not ready.get_map():
                time.sleep(min(left, 0.01))
            for key, _ in ready.select(min(left, 0.1)) if ready.get_map() else ():
                pipe = next(p for p in held if p is key.fileobj)
                data = os.read(pipe.fileno(), 1 << 16)
                if not data:
                    ready.unregister(pipe)
                held[pipe] += data
            if max(map(len, held.values())) > limits.output:
                ended = "output"
                break
            if folder is not None and _size(folder, limits.disk) > limits.disk:
                ended = "disk"
                break
    return ended, (held[child.stdout], held[child.stderr])


def _size(folder: Path, enough: int) -> int:
    """Bytes in a folder that changes meanwhile, a page for each name; stops at `enough`. It has no folders in it."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += max(4096, entry.stat(follow_symlinks=False).st_size)
            if total > enough:
                break
    return total


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The whole group, for nobody in it can leave it. A child that has ended has taken them along already."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
