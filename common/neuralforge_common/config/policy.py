"""What a machine's owner lets any federation do with it: `site_policy.yaml`, read here and enforced by the client.

The file alone counts: no environment variable and no option can widen what it allows.
"""

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from neuralforge_common.config.document import Document
from neuralforge_common.config.fields import (
    A_RANK,
    ABOVE_0,
    FLAG,
    FROM_1,
    Number,
    Rank,
    Section,
    Texts,
    Wanted,
    Whole,
)
from neuralforge_common.config.resolve import resolve

_HOURS = re.compile(r"((?:[01][0-9]|2[0-3]):[0-5][0-9])-((?:[01][0-9]|2[0-3]):[0-5][0-9])")


def _hours(value: str) -> str:
    found = _HOURS.fullmatch(value)
    if not found or found[1] == found[2]:
        raise ValueError("not two times of day")
    return value


class AllowSection(Section):
    """`allow:` the most that a round may ask for; None, and an empty list of bases, set no limit.

    `hours` is local time, and may reach over midnight. Without `report_metrics` a client sends its update and what the
    round cannot do without, but neither its loss nor its speed.
    """

    bases: Texts = ()
    max_rank: Annotated[Rank | None, A_RANK] = None
    max_steps: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    max_epochs: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    max_rounds: Annotated[Whole | None, Field(ge=1), FROM_1] = None
    hours: Annotated[
        Annotated[str, AfterValidator(_hours)] | None, Wanted("two different times of day such as 22:00-06:00")
    ] = None
    report_metrics: Annotated[bool, FLAG] = True

    @property
    def window(self) -> tuple[time, time] | None:
        """`hours` as its two times of day; the second is the earlier one where midnight lies between."""
        if self.hours is None:
            return None
        begin, _, end = self.hours.partition("-")
        return time.fromisoformat(begin), time.fromisoformat(end)


class RequireSection(Section):
    """`require:` without what nothing is learned and nothing sent.

    `max_epsilon` and `max_delta` bound what a federation may spend of this machine's data over all its rounds, `unit`
    is the least that must be protected (sample < file < repository); each of the three demands privacy by itself.
    `secure_aggregation` refuses rounds whose coordinator would see this client's update by itself.
    """

    privacy: Annotated[bool, FLAG] = False
    max_epsilon: Annotated[Number | None, Field(gt=0, le=1e6), ABOVE_0] = None
    max_delta: Annotated[Number | None, Field(gt=0, le=0.1), Wanted("a number above 0, at most 0.1")] = None
    unit: Annotated[Literal["sample", "file", "repository"] | None, Wanted("sample, file or repository")] = None
    secure_aggregation: Annotated[bool, FLAG] = False

    @property
    def demands_privacy(self) -> bool:
        """Whether a round without differential privacy is refused."""
        return self.privacy or not (self.max_epsilon is None and self.max_delta is None and self.unit is None)


class SitePolicy(Section):
    """All that an owner says; `SitePolicy()` allows what the client itself allows."""

    allow: AllowSection = AllowSection()
    require: RequireSection = RequireSection()


POLICY = Document(root=SitePolicy)


def load_site_policy(file: Path) -> SitePolicy:
    """The policy in a file.

    Raises:
        ConfigError: with one line for every fault there is.
    """
    return resolve(POLICY, file, {}, {}).config
