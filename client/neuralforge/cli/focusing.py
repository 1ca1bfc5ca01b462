"""`training.focus_on` and `dataset.features` in a run: known names before anything is read, what was found after."""

from __future__ import annotations

from neuralforge.data.dataset import Dataset
from neuralforge.data.detectors import Detector, find_detectors
from neuralforge.data.focus import FOCUSED, Focus, focus_on
from neuralforge_common.config.schema import TrainConfig


def wanted_detectors(config: TrainConfig) -> tuple[Detector, ...]:
    """Those that the configuration names; raises ConfigError for a name that there is not."""
    names = (*config.training.focus_on, *config.dataset.features)
    return find_detectors(names) if names else ()


def focus_of(config: TrainConfig, dataset: Dataset) -> Focus | None:
    """What the run learns more of, or None where nobody asked."""
    detectors = wanted_detectors(config)
    return focus_on(dataset.train, detectors, weight=config.training.focus_weight) if detectors else None


def focus_line(focus: Focus) -> str:
    """How many examples each detector found, and what that does to the run."""
    total = len(focus.groups)
    found = ", ".join(f"{name} in {count:,}" for name, count in focus.found.items())
    line = f"focus, of {total:,} examples: {found}"
    if not focus.shares:
        which = "none" if not focus.focused else "all"
        return f"{line}\n{which} of them: nothing is drawn more often than the rest"
    share = focus.shares[FOCUSED]
    return (
        f"{line}\n{focus.focused:,} with any of these are drawn {focus.weight:g} times as often as others: "
        f"{focus.focused / total:.0%} of the examples, {share:.0%} of what is learnt"
    )
