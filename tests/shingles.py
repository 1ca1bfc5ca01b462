"""Runs of five tokens, spelt out: what `dedup` compares is made more quickly, and must come to the same."""

from __future__ import annotations

import re


def token_shingles(text: str) -> list[str]:
    """Runs of five tokens; a shorter text is one shingle. White space does not count."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return [" ".join(tokens[at : at + 5]) for at in range(max(1, len(tokens) - 4))]
