"""How much memory work takes at its peak."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

SECONDS = 0.005


class PeakMemory:
    """Inside the `with`, the largest resident set of this process, looked at every 5 ms; `bytes` afterwards.

    The whole process: interpreter, libraries, weights and activations. Where the work is on a GPU its own peak is in
    `device_bytes`. Peaks shorter than the pause between two looks may be missed.
    """

    def __init__(self, *, device: str = "cpu") -> None:
        self.bytes = 0
        self.device_bytes: int | None = None
        self._device = device
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        if self._device == "cuda":
            import torch

            self.device_bytes = int(torch.cuda.max_memory_allocated())

    def _watch(self) -> None:
        while not self._done.wait(SECONDS):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, int(self._process.memory_info().rss))
