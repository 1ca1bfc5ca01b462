"""Time that passes when somebody waits for it: a slow client costs its simulation nothing."""

from __future__ import annotations

from collections.abc import Callable


class VirtualClock:
    """Seconds since the beginning; work takes none of them.

    `next_event` is when something that is being waited for will happen, None for nothing: a wait goes on until then
    at least, so that a day of silence is one step and not a hundred thousand.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.next_event: Callable[[], float | None] = lambda: None

    def now(self) -> float:
        """Seconds that have passed."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let at least so many seconds pass."""
        self._now = max(self._now + seconds, self.next_event() or 0.0)
