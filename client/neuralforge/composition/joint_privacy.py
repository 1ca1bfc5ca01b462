"""What a composed adapter tells of the data of its parents, when each of them has a figure for its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from neuralforge_common.privacy import PrivacyStatement


def joint_privacy(
    parents: Mapping[str, PrivacyStatement | None], *, learnt_on: int | None
) -> tuple[PrivacyStatement | None, str]:
    """The figure that can be claimed, None where none can; and a line that says why, empty where no parent has one.

    `parents` maps digests to statements, so that one release that is used twice counts once. Composing is
    post-processing of all parents: by basic composition (Dwork & Roth 2014, theorem 3.16) it is (Σε, Σδ) for one unit
    that may be in the data of each. Were the data known to share no unit it would be the largest; nobody can check
    that from the adapters, so it is not claimed.
    """
    statements = [statement for statement in parents.values() if statement is not None]
    if not statements:
        return None, ""
    if len(statements) < len(parents):
        bare = len(parents) - len(statements)
        return None, f"no joint privacy figure: {bare} of {len(parents)} parents have none, so nothing bounds the whole"
    if learnt_on is not None:
        return None, (
            f"no joint privacy figure: the weights were learnt on {learnt_on} samples, which no parent's figure covers"
        )
    units = sorted({statement.unit for statement in statements})
    if len(units) > 1:
        return None, f"no joint privacy figure: the parents' are of different units ({', '.join(units)})"
    delta = sum(statement.delta for statement in statements)
    if delta >= 1:
        return None, f"no joint privacy figure: the parents' δ add up to {delta:g}"
    accountants: set[Literal["rdp", "prv"]] = {statement.accountant for statement in statements}
    notes = list(dict.fromkeys(statement.note for statement in statements if statement.note))
    said = (
        f"the sum over {len(statements)} parents by basic composition, for a {units[0]} that may be in the data of each"
    )
    joint = PrivacyStatement(
        epsilon=sum(statement.epsilon for statement in statements),
        delta=delta,
        unit=statements[0].unit,
        accountant=accountants.pop() if len(accountants) == 1 else "rdp",
        steps=sum(statement.steps for statement in statements),
        note="; ".join([said, *notes])[:1024],
    )
    return joint, f"{joint}: {said}; were their data known to be disjoint, it would be the largest of them"
