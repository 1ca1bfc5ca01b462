"""What may be said of a composed adapter's privacy: the sum, and nothing where a parent says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from neuralforge.composition.joint_privacy import joint_privacy
from neuralforge_common.privacy import PrivacyStatement


def told(epsilon: float, **changes: Any) -> PrivacyStatement:
    facts: dict[str, Any] = {"epsilon": epsilon, "delta": 1e-5, "unit": "file", "accountant": "prv", "steps": 10}
    return PrivacyStatement(**facts | changes)


def test_figures_of_one_unit_add_up_and_the_note_says_why() -> None:
    joint, line = joint_privacy({"a": told(2.0), "b": told(3.0, delta=1e-6, note="not its tests")}, learnt_on=None)
    assert joint is not None
    assert (joint.epsilon, joint.delta, joint.unit, joint.steps) == (5.0, pytest.approx(1.1e-5), "file", 20)
    assert joint.accountant == "prv"
    assert joint.note == (
        "the sum over 2 parents by basic composition, for a file that may be in the data of each; not its tests"
    )
    assert "were their data known to be disjoint, it would be the largest" in line


def test_parents_without_figures_have_nothing_to_say() -> None:
    assert joint_privacy({"a": None, "b": None}, learnt_on=None) == (None, "")


@pytest.mark.parametrize(
    ("parents", "learnt_on", "why"),
    [
        ({"a": told(2.0), "b": None}, None, "1 of 2 parents have none"),
        ({"a": told(2.0), "b": told(1.0, unit="sample")}, None, "different units (file, sample)"),
        ({"a": told(2.0), "b": told(1.0)}, 16, "learnt on 16 samples, which no parent's figure covers"),
        ({"a": told(2.0, delta=0.6), "b": told(1.0, delta=0.5)}, None, "δ add up to 1.1"),
    ],
)
def test_where_no_figure_holds_none_is_claimed_and_the_reason_is_given(
    parents: dict[str, PrivacyStatement | None], learnt_on: int | None, why: str
) -> None:
    joint, line = joint_privacy(parents, learnt_on=learnt_on)
    assert joint is None
    assert line.startswith("no joint privacy figure: ")
    assert why in line
