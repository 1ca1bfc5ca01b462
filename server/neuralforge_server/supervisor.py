"""Keeps the SuperLink process running: starts it, notices when it dies or hangs, starts it again.

starting ──ready──▶ healthy ──dies, or answers no health check──▶ (pause, growing) ──▶ starting
└─ exits before it was ever healthy ──▶ given up: its own error line is what `wait_healthy` raises
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from neuralforge_common.errors import FederationError
from neuralforge_common.key_files import PRIVATE_FILE
from neuralforge_server.superlink import LOOPBACK, READY

LOG = "superlink.log"

_MAX_LOG_BYTES = 4 * 2**20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_STEADY_SECONDS = 30.0
"""Who ran for so long is started again without a pause."""
_START_SECONDS = 60.0
_CHECK_SECONDS, _CHECK_TIMEOUT, _CHECKS = 5.0, 10.0, 3
_STOP_SECONDS = 5.0


class Supervisor:
    """A SuperLink that is there again a few seconds after it died, as long as the `with` block lasts.

    `state` is the coordinator's folder, `host` and `fleet_port` where clients come; `admin_port` is on the loopback.
    What the process writes is in `superlink.log` in the state folder.
    """

    def __init__(self, state: Path, *, host: str, fleet_port: int, admin_port: int) -> None:
        self._log = state / LOG
        self._admin_port = admin_port
        self._command = [
            *(sys.executable, "-m", "neuralforge_server.superlink", str(state.absolute()), "--host", host),
            *("--fleet-port", str(fleet_port), "--admin-port", str(admin_port), "--parent", str(os.getpid())),
        ]
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._healthy = False
        self._starts = 0
        self._failure: str | None = None
        self._ending = threading.Event()
        # The child is killed when the thread that started it ends, which on Linux is what its death signal watches.
        self._thread = threading.Thread(target=self._supervise, name="superlink-supervisor", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the SuperLink; None while there is none."""
        with self._changed:
            return self._process.pid if self._process is not None else None

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""
        with self._changed:
            return max(0, self._starts - 1)

    @property
    def is_healthy(self) -> bool:
        """Whether it answers, as far as we know."""
        with self._changed:
            return self._healthy

    def start(self) -> None:
        """Begin; `wait_healthy` says when it answers."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the SuperLink and do not start it again."""
        self._ending.set()
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if self._thread.is_alive():
            self._thread.join()

    def wait_healthy(self, timeout: float) -> None:
        """Returns when the SuperLink answers.

        Raises:
            FederationError: it does not within `timeout` seconds, or ended before it ever did.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._healthy or self._failure is not None, timeout)
            if self._failure is not None:
                what, _, hint = self._failure.partition("\n  hint: ")
                raise FederationError(what, hint=hint or f"see {self._log}")
            if not self._healthy:
                raise FederationError(
                    f"the SuperLink did not come up within {timeout:.0f} seconds", hint=f"see {self._log}"
                )

    def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        ever_healthy = False
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                was_healthy, said = self._run_once()
            except OSError as error:
                was_healthy, said = False, f"cannot start the SuperLink: {error}"
            ever_healthy = ever_healthy or was_healthy
            if self._ending.is_set():
                return
            if not ever_healthy:
                with self._changed:
                    self._failure = said or "the SuperLink ended before it was ready"
                    self._changed.notify_all()
                return
            pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY_SECONDS else min(2 * pause, _LONGEST_PAUSE)
            self._ending.wait(pause)

    def _run_once(self) -> tuple[bool, str]:
        """Runs one process to its end; returns whether it was ever healthy, and its error line."""
        with contextlib.suppress(FileNotFoundError):
            if self._log.stat().st_size > _MAX_LOG_BYTES:
                self._log.replace(self._log.with_name(f"{LOG}.1"))
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE)
        begin = os.fstat(descriptor).st_size
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                # Ctrl-C in a terminal reaches everybody in the group; when the SuperLink ends is ours to say.
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        with process:
            self._note(process=process, started=True)
            if self._ending.is_set():
                process.terminate()
            watchdog = threading.Timer(_START_SECONDS, process.kill)
            watchdog.daemon = True
            watchdog.start()
            assert process.stdout is not None  # noqa: S101 - PIPE was asked for
            healthy = process.stdout.readline() == READY
            watchdog.cancel()
            if healthy:
                self._note(healthy=True)
                self._watch(process)
            self._wait(process)
            self._note(process=None, healthy=False)
        return healthy, _error_line(self._log, begin)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Returns when the process has ended or is about to be: killed, as it answers no health check any more."""
        failures = 0
        while not self._ending.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CHECK_SECONDS)
                return
            failures = 0 if self._answers() else failures + 1
            if failures >= _CHECKS:
                process.kill()
                return

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # It was told to stop, or closed its output without being ready: either way its time is over.
                process.send_signal(signal.SIGKILL)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self._admin_port, timeout=_CHECK_TIMEOUT)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _note(
        self, *, process: subprocess.Popen[bytes] | object | None = ..., healthy: bool = False, started: bool = False
    ) -> None:
        with self._changed:
            if process is not ...:
                self._process = process  # type: ignore[assignment]
            self._healthy = healthy
            self._starts += started
            self._changed.notify_all()


def _error_line(log: Path, begin: int) -> str:
    """What a process that gave up said last, without its "error: "."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(begin)
        text = file.read(64 * 1024).decode("utf-8", "replace")
        _, found, error = text.rpartition("error: ")
        return error.strip() if found else (text.strip().splitlines() or [""])[-1]
    return ""
