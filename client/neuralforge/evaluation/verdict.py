"""A better, B better, or inconclusive: decided over all figures of a comparison together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from neuralforge.evaluation.intervals import Interval
from neuralforge.evaluation.paired import holm

Winner = Literal["A better", "B better", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure of both adapters.

    `change` is A against B with its interval, as the figure's unit says (points, or a ratio - 1). `sign` is 1 where
    more is better, -1 where less is. `p` is None of what is counted, not sampled (memory); `adjusted` is p after Holm.
    `needed` tells how many samples would decide, None where no difference is seen.
    """

    metric: str
    a: float
    b: float
    change: float
    interval: Interval | None
    sign: int
    samples: int
    p: float | None
    needed: int | None = None
    adjusted: float | None = None
    verdict: Winner = "inconclusive"

    @property
    def more(self) -> int | None:
        """Samples that are missing for a verdict; at least one where there is none yet."""
        if self.verdict != "inconclusive" or self.needed is None:
            return None
        return max(1, self.needed - self.samples)


def decide(rows: Sequence[Compared], *, alpha: float) -> list[Compared]:
    """Each row with its adjusted p and its verdict: the chance of any wrong "better" is at most α over all rows."""
    tested = [i for i, row in enumerate(rows) if row.p is not None]
    adjusted = dict(zip(tested, holm([rows[i].p or 0.0 for i in tested]), strict=True))
    decided = []
    for i, row in enumerate(rows):
        p = adjusted.get(i)
        found = row.change != 0 and (p is None or p <= alpha)
        winner: Winner = "inconclusive"
        if found:
            winner = "A better" if row.sign * row.change > 0 else "B better"
        decided.append(replace(row, adjusted=p, verdict=winner))
    return decided


def overall(rows: Sequence[Compared]) -> str:
    """One line for all rows that were sampled; what is merely counted decides where nothing else was asked for."""
    sampled = [row for row in rows if row.p is not None] or list(rows)
    wins = {who: [row.metric for row in sampled if row.verdict == who] for who in ("A better", "B better")}
    if wins["A better"] and wins["B better"]:
        return f"inconclusive: A better in {_joined(wins['A better'])}, B better in {_joined(wins['B better'])}"
    for who, metrics in wins.items():
        if metrics:
            return f"{who} ({_joined(metrics)})"
    missing = [(row.more, row.metric) for row in sampled if row.more is not None]
    if not missing:
        return "inconclusive: no difference was seen that more samples could show"
    more, metric = min(missing)
    return f"inconclusive, about {more:,} more samples needed (for {metric}, if the difference seen is the true one)"


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names)
