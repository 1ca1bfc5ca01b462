"""How many streams run at a time, and for how long: nobody takes every thread of the registry, or one for ever."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from neuralforge_common.errors import RegistryError
from neuralforge_server.registry.callers import peer_of


class Streams:
    """At most `most` at a time, `each` of one peer, `seconds` long; a longer one is cut off and can be gone on with."""

    def __init__(self, *, most: int = 12, each: int = 4, seconds: float = 900.0) -> None:
        self._most, self._each, self._seconds = most, each, seconds
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def one(self, context: grpc.ServicerContext) -> Iterator[None]:
        """A place for this call's stream, for as long as the block runs; raises RegistryError where there is none."""
        peer = peer_of(context)
        with self._lock:
            if self._running.total() >= self._most or self._running[peer] >= self._each:
                raise RegistryError("too many streams at a time: try again", status="RESOURCE_EXHAUSTED")
            self._running[peer] += 1
        # A thread that waits for a peer which has gone quiet hears nothing but this.
        alarm = threading.Timer(self._seconds, context.cancel)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()
            with self._lock:
                self._running[peer] -= 1
                self._running += Counter()  # forget those at zero
