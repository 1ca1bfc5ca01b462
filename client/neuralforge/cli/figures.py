"""How figures of evaluation are shown: a value with its interval for a person, numbers without infinities for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.evaluation.intervals import Interval

LABELS = {
    "accuracy": "accuracy (a token)",
    "latency": "latency (a token)",
    "memory": "memory (weights)",
    "perplexity": "perplexity (a token)",
    "exact_match": "exact match",
    "line_match": "first line match",
    "edit_similarity": "edit similarity",
    "syntax": "syntax valid",
}
SHARES = frozenset({"accuracy", "exact_match", "line_match", "edit_similarity", "syntax", "pass"})


def shown(metric: str, value: float, interval: Interval | None = None) -> str:
    """`74.1% [70.2, 77.5]`, `13.2 ms [12.9, 13.6]`; an end that the data do not bound is `?`."""
    if not math.isfinite(value):
        return "-"
    scale, digits, unit = _form(metric)
    text = f"{scale * value:.{digits}f}{unit}"
    if interval is None:
        return text
    ends = [f"{scale * end:.{digits}f}" if math.isfinite(end) else "?" for end in (interval.low, interval.high)]
    return f"{text} [{ends[0]}, {ends[1]}]"


def plain(value: Any) -> Any:
    """Anything made of figures as JSON has it: intervals as [low, high], what is not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        if names == ["low", "high"]:
            return [plain(getattr(value, name)) for name in names]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def _form(metric: str) -> tuple[float, int, str]:
    if metric in SHARES:
        return 100.0, 1, "%"
    return {"latency": (1.0, 1, " ms"), "memory": (1.0, 1, " MB")}.get(metric, (1.0, 2, ""))
