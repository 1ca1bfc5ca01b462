"""Which examples a run learns more of, and how much more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuralforge.data.detectors import Detector
from neuralforge.data.example import Example

FOCUSED, OTHER = "focused", "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """The group of each example, and how many each detector fires on.

    An example on which one fires or several do is drawn `weight` times as often as one on which none does.
    """

    groups: tuple[str, ...]
    found: dict[str, int]
    weight: float

    @property
    def focused(self) -> int:
        """Examples on which at least one fires."""
        return self.groups.count(FOCUSED)

    @property
    def shares(self) -> dict[str, float]:
        """Of all that is drawn, the share of each group; empty where there is only one, so that nothing moves."""
        focused, other = self.weight * self.focused, float(len(self.groups) - self.focused)
        if not focused or not other:
            return {}
        return {FOCUSED: focused / (focused + other), OTHER: other / (focused + other)}


def focus_on(examples: Sequence[Example], detectors: Sequence[Detector], *, weight: float) -> Focus:
    """Ask each detector about each example."""
    fired = [[detector.name for detector in detectors if detector.fires(example)] for example in examples]
    return Focus(
        groups=tuple(FOCUSED if names else OTHER for names in fired),
        found={detector.name: sum(detector.name in names for names in fired) for detector in detectors},
        weight=weight,
    )
