"""Who may take part, as Flower's SuperLink must know it: registered and unregistered as the registry changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping

from neuralforge_server.flower import Control
from neuralforge_server.identity import Identities

MEMBERS_SECONDS = 0.5

_LOG = logging.getLogger(__name__)


class Members(threading.Thread):
    """Keeps Flower's list of nodes the same as the registry's, and knows which node number is whose."""

    def __init__(self, identities: Identities, control: Control) -> None:
        super().__init__(name="members", daemon=True)
        self._identities = identities
        self._control = control
        self._revision = -1
        self._nodes: dict[int, str] = {}
        self._keys: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()

    def forget(self) -> None:
        """Register everybody anew at the next turn: the SuperLink may have lost its own list."""
        with self._lock:
            self._revision = -1
            self._keys.clear()
            self._nodes.clear()

    def synchronise(self) -> None:
        """Register who joined, unregister who was revoked or rotated away."""
        revision = self._identities.revision()
        with self._lock:
            if revision == self._revision:
                return
            wanted = self._identities.active_keys()
            for name, (key, node) in [*self._keys.items()]:
                if wanted.get(name) != key:
                    self._control.unregister_node(node)
                    del self._keys[name], self._nodes[node]
            for name, key in wanted.items():
                if name not in self._keys:
                    node = self._control.register_node(key, name)
                    self._keys[name] = key, node
                    self._nodes[node] = name
            self._revision = revision

    def roster(self, node_ids: Iterable[int]) -> Mapping[int, str]:
        """Of these nodes, those that may take part now, by name: the registry itself is asked, not a memory of it."""
        self.synchronise()
        with self._lock:
            return {node: self._nodes[node] for node in node_ids if node in self._nodes}

    def run(self) -> None:
        """Go on until `stop`."""
        while not self._done.wait(MEMBERS_SECONDS):
            try:
                self.synchronise()
            except Exception as fault:  # the SuperLink may be away for a moment; the next turn tries again
                _LOG.warning("the list of members could not be brought up to date: %s", fault)

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self.join()
