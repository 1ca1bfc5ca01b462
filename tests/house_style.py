"""Code as one team writes it: what a base has not seen in this form, and an adapter can learn from a few files."""

from __future__ import annotations

import re

_INDENTATION = re.compile(r"^(?: {4})+", re.MULTILINE)


def house_style(source: str) -> str:
    """Python indented by tabs, with `this` for `self`: nf-tiny has read the standard library, but not so."""
    return _INDENTATION.sub(lambda found: "\t" * (len(found[0]) // 4), re.sub(r"\bself\b", "this", source))
