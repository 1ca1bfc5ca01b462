"""What became of one file or one example, and who was in its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`reason` is "" where it was kept; `twin` names what it repeats, by path or id. `id` is "" of a whole file.

    `commit` is the one that wrote it, in a history. No text is in it, so nothing that was redacted can be.
    """

    path: str
    commit: str = ""
    id: str = ""
    reason: str = ""
    twin: str = ""


Watch = Callable[[Decision], None]
"""Told of each decision, in the order in which they fall."""


def nobody(decision: Decision) -> None:
    """For whoever does not want to know."""
