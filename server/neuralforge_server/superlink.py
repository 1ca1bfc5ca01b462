"""Flower's SuperLink as a process of its own: `python -m neuralforge_server.superlink STATE --fleet-port …`.

Two listeners, one application: clients reach the Fleet API over TLS 1.3, the coordinator everything over the loopback.
It says `ready` on its standard output when both answer, everything else goes to standard error, and it does not outlive
the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import sqlite3
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuralforge_common.address import endpoint
from neuralforge_common.errors import FederationError, NeuralForgeError, StorageError
from neuralforge_common.key_files import check_private, read_private_file
from neuralforge_server.state_folder import SECRET, SERVER, SERVER_KEY

DATABASE = "superlink.db"
READY = b"ready\n"
LOOPBACK = "127.0.0.1"

_BIND_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m neuralforge_server.superlink", description=__doc__)
    parser.add_argument("state", type=Path, help="the coordinator's state folder")
    parser.add_argument("--host", default="0.0.0.0", help="where clients reach us")  # noqa: S104
    parser.add_argument("--fleet-port", type=int, required=True)
    parser.add_argument("--admin-port", type=int, required=True)
    parser.add_argument("--parent", type=int, default=0, help="end with this process")
    options = parser.parse_args(arguments)
    ready = _take_standard_output()
    try:
        _end_with(options.parent)
        _serve(options.state, options.host, options.fleet_port, options.admin_port, ready)
    except NeuralForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _serve(state: Path, host: str, fleet_port: int, admin_port: int, ready: int) -> None:
    os.umask(0o077)
    check_private(state)
    secret = read_private_file(state / SECRET)
    tls = _tls(state)
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _listener(LOOPBACK, admin_port) as admin, _listener(host, fleet_port) as fleet:
        notice = set_damaged_aside(state / DATABASE)
        if notice:
            print(f"notice: {notice}", file=sys.stderr, flush=True)
        # Flower takes two seconds to import: not before what can be refused without it.
        from neuralforge_server.flower.app import AdminOnly, FleetOnly, build_superlink, log_quietly

        log_quietly()
        try:
            app = build_superlink(state / DATABASE, secret)
        except Exception as error:
            raise StorageError(
                f"cannot use {state / DATABASE}: {type(error).__name__}: {str(error).splitlines()[0]}",
                hint="is the disk full or read-only? Else move the file away: nodes are registered again by themselves",
            ) from error
        asyncio.run(_run(AdminOnly(app, secret), admin, FleetOnly(app), fleet, tls, ready))


async def _run(
    admin_app: object, admin: socket.socket, fleet_app: object, fleet: socket.socket, tls: ssl.SSLContext, ready: int
) -> None:
    import uvicorn

    class Listener(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # two of them would fight over the handlers

    def listener(app: object, context: ssl.SSLContext | None) -> Listener:
        return Listener(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=2,
                ssl_context_factory=None if context is None else lambda *_: context,
            )
        )

    listeners = [listener(admin_app, None), listener(fleet_app, tls)]

    def stop() -> None:
        for each in listeners:
            each.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = asyncio.gather(*(each.serve(sockets=[s]) for each, s in zip(listeners, (admin, fleet), strict=True)))
    while not serving.done() and not all(each.started for each in listeners):
        await asyncio.sleep(0.02)
    if not serving.done():
        os.write(ready, READY)
    os.close(ready)
    await serving


def set_damaged_aside(database: Path) -> str | None:
    """Moves a database that SQLite finds damaged out of the way, and says so.

    Nothing of worth is in it: nodes are registered anew from our own registry, a round that was running is repeated.
    """
    if not database.exists():
        return None
    try:
        connection = sqlite3.connect(database, timeout=5)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise StorageError(f"cannot use {database}: {error}", hint="is it in use, or the disk full?") from error
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found == "ok":
        return None
    aside = database.with_name(f"{database.name}.damaged-{time.time_ns()}")
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            database.with_name(database.name + suffix).rename(aside.with_name(aside.name + suffix))
    database.rename(aside)
    return f"{database} was damaged ({found}); it lies in {aside.name} now, and a fresh one takes its place"


def _tls(state: Path) -> ssl.SSLContext:
    check_private(state / SERVER_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(state / SERVER, state / SERVER_KEY)
    except (OSError, ssl.SSLError) as error:
        raise StorageError(
            f"cannot use {state / SERVER}: {error.strerror or error}", hint="nf-server init --renew makes a new one"
        ) from error
    return context


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ends = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            # The predecessor of a coordinator that was killed a moment ago may still hold the port.
            return socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < ends:
                time.sleep(0.1)
                continue
            what = (
                "it is in use by another program" if error.errno == errno.EADDRINUSE else f"{error.strerror or error}"
            )
            raise FederationError(
                f"cannot listen on {endpoint(host, port)}: {what}", hint="choose other ports under listen:"
            ) from error


def _take_standard_output() -> int:
    """A descriptor for `ready`; whatever else prints goes to standard error from now on."""
    ours = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return ours


def _end_with(parent: int) -> None:
    """Ends this process, without asking, when its parent does: the ports must be free for the next coordinator."""
    if not parent:
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
