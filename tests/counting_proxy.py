"""A TCP relay that counts what passes each way, and stops passing once it is more than a test wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class CountingProxy:
    """Relays connections to a port; `up` and `down` count bytes. Past a limit it holds them back."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._closed = False
        self._open: list[socket.socket] = []
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self, *, up: int | None = None, down: int | None = None) -> None:
        """Count from zero; past `up` or `down` bytes set `reached` and pass nothing more."""
        self.up = self.down = 0
        self._most, self.reached = {"up": up, "down": down}, threading.Event()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every connection."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for source, target, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._relay, args=(source, target, way), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                setattr(self, way, getattr(self, way) + len(data))
                most = self._most[way]
                if most is not None and getattr(self, way) > most:
                    self.reached.set()
                    return  # held back: both ends stay open, nothing passes
                target.sendall(data)
        if not self.reached.is_set():
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def wait_for_part(place: Path, size: int) -> None:
    """Return once an unfinished file of at least `size` bytes lies below `place`."""
    end = time.monotonic() + 60
    while (largest := max((part.stat().st_size for part in place.rglob("*.part")), default=0)) < size:
        assert time.monotonic() < end, f"{largest:,} bytes came through"
        time.sleep(0.01)


@contextmanager
def counting_proxy(port: int) -> Iterator[CountingProxy]:
    proxy = CountingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
