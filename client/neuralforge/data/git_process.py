"""A running git that a hostile repository can neither make run its programs nor keep waiting.

A repository brings its own configuration, and configuration names programs: file system monitors, filters, diff and
merge drivers, hooks, pagers, transports. What keeps them from running:

- Callers use only plumbing that reads no content but by its name, and writes nothing: `rev-parse`, `rev-list`,
  `ls-tree`, `diff-tree --raw` or `--name-only` between trees, `cat-file --batch`. These look at neither work tree,
  index nor attributes, so no monitor, filter or driver has an occasion. (`status`, `diff`, `log`, even `ls-files` do.)
- A partial clone fetches missing objects behind the reader's back, through programs that its configuration names.
  `GIT_NO_LAZY_FETCH` forbids it where git knows the word (2.39.4, 2.45 and later); `GIT_ALLOW_PROTOCOL`, which
  outranks every configuration, forbids each transport in all versions.
- The environment is our own: no `GIT_DIR` or `GIT_CONFIG_…` of a hook that calls us, no system or user configuration.
- Git's own owner check stays on, with the `safe.directory` entries that the user, not the repository, has set.

Who stays silent too long (a named pipe in the place of a file) is killed, and so is whatever it started.
"""

import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from neuralforge.data.source import printable
from neuralforge_common.errors import DataError

_OPTIONS = (
    *("--no-pager", "--no-replace-objects", "--no-optional-locks"),
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=never"),
)

_ENVIRONMENT = {
    "LC_ALL": "C",  # its messages are read below
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": str(Path(__file__).with_name("no-grafts")),  # parents are those that a commit names
    "GIT_INDEX_FILE": str(Path(__file__).with_name("no-index")),  # diff-tree would read the repository's
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ALLOC_LIMIT": "512m",  # a small file can be packed as a difference from a giant one
}
# SUDO_UID: whose repositories git lets root read. DEVELOPER_DIR: where macOS finds its git.
_KEPT = ("PATH", "HOME", "SUDO_UID", "DEVELOPER_DIR")

_LONGEST_ANSWER = 1 << 20
_MOST_MEMORY = 2 << 30  # `diff-tree` holds all changes of a commit at once, and a few small objects can name 10⁹ files


@dataclass(frozen=True, slots=True, kw_only=True)
class Git:
    """Git, to be asked about one repository; `silence` is how many seconds it may go without a byte."""

    repository: Path
    silence: float
    trusted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The repository's path, fit for a message."""
        return printable(str(self.repository))

    @contextmanager
    def run(self, *arguments: str) -> Iterator["GitProcess"]:
        """A running git command; it and whatever it started are gone when the block ends."""
        safe = [option for entry in self.trusted for option in ("-c", f"safe.directory={entry}")]
        command = ["git", *_OPTIONS, *safe, "-C", str(self.repository), *arguments]
        environment = {key: os.environ[key] for key in _KEPT if key in os.environ} | _ENVIRONMENT
        with _started(command, environment) as (process, errors):
            yield GitProcess(process, errors, self)

    def ask(self, *arguments: str) -> str:
        """The output of a short command without its last line end, or "" where it fails without a word."""
        with self.run(*arguments) as process:
            output = process.rest()
            return os.fsdecode(output.removesuffix(b"\n")) if process.succeeded() else ""


def open_git(repository: Path, *, silence: float) -> Git:
    """Git for a repository, with the owner exceptions of the user who asks."""
    # GIT_DIR: the user's own configuration is wanted, and surely none of a repository.
    kept = (*_KEPT, "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
    environment = {key: os.environ[key] for key in kept if key in os.environ} | {"GIT_DIR": os.devnull}
    git = Git(repository=repository, silence=silence)
    with _started(["git", "config", "-z", "--get-all", "safe.directory"], environment) as (process, errors):
        entries = GitProcess(process, errors, git).rest()
    trusted = tuple(os.fsdecode(entry) for entry in entries.split(b"\0")[:-1])
    return Git(repository=repository, silence=silence, trusted=trusted)


class GitProcess:
    """The two ends of a running git: requests in, answers out, each awaited for a bounded time."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], git: Git) -> None:
        self._process = process
        self._errors = errors
        self._git = git
        self._buffer = bytearray()
        self._poll = select.poll()
        if process.stdin is None or process.stdout is None:
            raise ValueError("a git process needs both pipes")
        self._stdin, self._stdout = process.stdin, process.stdout
        self._poll.register(self._stdout, select.POLLIN)

    def write(self, request: bytes) -> None:
        """Send a request; at most 4 KiB, unless all earlier answers were read (a full pipe would hang both)."""
        try:
            self._stdin.write(request)
        except BrokenPipeError:
            self.succeeded()
            raise DataError(f"{self._git.name}: git ended before it was asked", hint=DAMAGED) from None

    def feed(self, requests: bytes) -> None:
        """Send any number of requests beside the reading of answers, then close: there are no others."""

        def send() -> None:
            with suppress(OSError, ValueError):  # it has ended, or nobody reads on: whoever reads is told why
                self._stdin.write(requests)
                self._stdin.close()

        threading.Thread(target=send, daemon=True).start()

    def until(self, end: bytes) -> bytes:
        """The output up to a one-byte mark, without it; b"" where the output has ended."""
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            searched = len(self._buffer)
            if searched > _LONGEST_ANSWER:
                raise DataError(f"{self._git.name}: git gave a name of over 1 MiB", hint=DAMAGED)
            if not self._read():
                if self._buffer:
                    self._fail("its output ends in the middle of a name")
                return b""
        answer = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return answer

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes of the output."""
        while len(self._buffer) < size:
            if not self._read():
                self._fail("its output ends in the middle of a file")
        answer = bytes(self._buffer[:size])
        del self._buffer[:size]
        return answer

    def rest(self) -> bytes:
        """All that is left of a short output."""
        while self._read():
            if len(self._buffer) > _LONGEST_ANSWER:
                raise DataError(f"{self._git.name}: git gave an answer of over 1 MiB", hint=DAMAGED)
        return bytes(self._buffer)

    def succeeded(self) -> bool:
        """Wait for the end: True for success, False for a failure without a word, DataError for one with a reason."""
        self._stdin.close()
        try:
            code = self._process.wait(self._git.silence)
        except subprocess.TimeoutExpired:
            raise self._silent() from None
        if code == 0:
            return True
        self._errors.seek(0)
        said = self._errors.read(4096).decode("utf-8", "replace").strip()
        if said or code != 1:
            raise _failure(self._git.name, said or f"it ended with code {code}")
        return False

    def _read(self) -> bool:
        if not self._poll.poll(self._git.silence * 1000):
            raise self._silent()
        chunk = os.read(self._stdout.fileno(), 1 << 16)
        self._buffer += chunk
        return bool(chunk)

    def _fail(self, what: str) -> None:
        self.succeeded()
        raise _failure(self._git.name, what)

    def _silent(self) -> DataError:
        return DataError(
            f"{self._git.name}: git gave no answer for {self._git.silence:g} seconds and was stopped", hint=DAMAGED
        )


DAMAGED = "the repository may be damaged or a trap: see what `git fsck` says, or train from a fresh clone"


def _failure(name: str, said: str) -> DataError:
    if "not a git repository" in said:
        return DataError(f"{name}: not a git repository", hint="for a folder without git use create-dataset --source")
    if "dubious ownership" in said or "unsafe repository" in said:
        return DataError(
            f"{name}: the repository belongs to another user, and git refuses to read it",
            hint="if you trust that user: git config --global --add safe.directory <the repository's full path>",
        )
    first = printable(said.splitlines()[0].removeprefix("fatal: ").removeprefix("error: "))[:300]
    return DataError(f"{name}: git could not read the repository: {first}", hint=DAMAGED)


@contextmanager
def _started(
    command: Sequence[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 (no shell; the callers' arguments are constants, a path, an id)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        except FileNotFoundError as error:
            hint = "install git, or use create-dataset --source for a folder of source code"
            raise DataError("git is not installed, or not on the PATH", hint=hint) from error
        if sys.platform == "linux":  # from here, as nothing may run between a fork and git in a program of threads
            with suppress(OSError, ValueError):  # it has ended, or its limit is lower already
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
        try:
            yield process, errors
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            process.wait()
