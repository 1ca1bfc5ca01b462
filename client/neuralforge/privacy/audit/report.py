"""What an audit came to: bounds against claims, counts against what they must be; a finding or nothing found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

AT_MOST = 5
"""Bounds in a report: each may be wrong with this fraction of what the whole may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """ε is at least `lower`; no more than `claimed`, it is said; `power` is the most that could have come out."""

    name: str
    lower: float
    claimed: float
    power: float

    @property
    def passed(self) -> bool:
        """Whether the claim stands."""
        return self.lower <= self.claimed

    def __str__(self) -> str:
        if self.passed:
            weak = ", less than is claimed: it could not have shown a violation" if self.power <= self.claimed else ""
            return (
                f"lower bound {self.lower:.2f} ≤ claimed {self.claimed:.2f}: consistent "
                f"(it could have shown {self.power:.2f} at most{weak})"
            )
        return f"VIOLATION: lower bound {self.lower:.2f} > claimed {self.claimed:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A figure that a private step has by its construction, and whether it was found."""

    name: str
    passed: bool
    found: str
    wanted: str

    def __str__(self) -> str:
        if self.passed:
            return f"{self.found} (wanted {self.wanted}): consistent"
        return f"VIOLATION: {self.found}, wanted {self.wanted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Of one part of an audit; `audited` says what it looked at."""

    title: str
    audited: Mapping[str, str | int | float]
    bounds: tuple[Bound, ...]
    checks: tuple[Check, ...] = ()

    @property
    def lines(self) -> tuple[Bound | Check, ...]:
        """Bounds, then checks."""
        return (*self.bounds, *self.checks)

    @property
    def violations(self) -> tuple[Bound | Check, ...]:
        """All that contradicts the claim."""
        return tuple(finding for finding in self.lines if not finding.passed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole audit. All its bounds hold together with probability `confidence`."""

    parts: tuple[Findings, ...]
    delta: float
    confidence: float

    @property
    def violations(self) -> tuple[Bound | Check, ...]:
        """All that contradicts the claim, in every part."""
        return tuple(finding for part in self.parts for finding in part.violations)

    @property
    def exit_code(self) -> int:
        """1 for a violation, else 0."""
        return 1 if self.violations else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, a verdict beside each of them."""
        return {
            "verdict": "violation" if self.violations else "consistent",
            "delta": self.delta,
            "confidence": self.confidence,
            "parts": [
                {
                    "title": part.title,
                    "audited": dict(part.audited),
                    "bounds": [asdict(bound) | {"verdict": str(bound)} for bound in part.bounds],
                    "checks": [asdict(check) | {"verdict": str(check)} for check in part.checks],
                }
                for part in self.parts
            ],
        }


def each_confidence(confidence: float) -> float:
    """Of one bound, so that all of a report hold together (Bonferroni)."""
    return 1 - (1 - confidence) / AT_MOST
