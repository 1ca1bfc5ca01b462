"""The HTTP server as a process: a socket, the routes, a file that says where it is, and a clean end."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from neuralforge.serving.app import make_app
from neuralforge.serving.guard import Rules
from neuralforge.serving.listening import LOOPBACK
from neuralforge.serving.running import RunningServer, announced
from neuralforge.serving.worker import Worker
from neuralforge_common.stop import StopRequest

_LAST_SECONDS = 3


def serve(
    worker: Worker, bound: socket.socket, *, host: str, token: str | None, home: Path, ready: Callable[[str], None]
) -> None:
    """Answer until Ctrl-C or SIGTERM; `ready` is told the address when requests are taken."""
    port = int(bound.getsockname()[1])
    rules = Rules(hosts=frozenset([*LOOPBACK, host.lower()]), token=token, admin_token=secrets.token_urlsafe(32))
    config = uvicorn.Config(
        make_app(worker, rules, started=int(time.time())),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        limit_concurrency=128,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    server = RunningServer(host=host, port=port, admin_token=rules.admin_token)
    shown = f"[{host}]" if ":" in host else host
    # uvicorn hands the signal on when it has ended: this block takes it, so that the file goes away, too.
    with StopRequest().listening(), announced(server, home=home):
        ready(f"http://{shown}:{port}")
        uvicorn.Server(config).run(sockets=[bound])
    worker.close()
