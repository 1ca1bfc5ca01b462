"""How near a written completion comes to the wanted one, as text."""

from __future__ import annotations

LONGEST = 4096
"""Characters that are compared; a completion is a few lines."""


def trimmed(text: str) -> str:
    """The text as it is compared: no space at ends of lines, no blank lines at its end."""
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


def exact_match(written: str, wanted: str) -> bool:
    """Whether both are the same text, space at ends of lines and of the text aside."""
    return trimmed(written) == trimmed(wanted)


def line_match(written: str, wanted: str) -> bool:
    """Whether the first lines with code are the same: what an editor shows on the line of the cursor."""
    return _first_line(written) == _first_line(wanted)


def edit_similarity(written: str, wanted: str) -> float:
    """1 - Levenshtein distance / length of the longer one, in [0, 1], of at most `LONGEST` characters each."""
    a, b = trimmed(written)[:LONGEST], trimmed(wanted)[:LONGEST]
    longest = max(len(a), len(b))
    return 1.0 if longest == 0 else 1.0 - levenshtein(a, b) / longest


def levenshtein(a: str, b: str) -> int:
    """Least number of insertions, deletions and replacements from a to b.

    Myers 1999 in Hyyrö's form (2003): a column of the table is two integers of len(a) bits, vertical differences +1
    and -1, so a step takes a whole column.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    mask, last = (1 << len(a)) - 1, 1 << len(a) - 1
    plus, minus, distance = mask, 0, len(a)
    for character in b:
        match = places.get(character, 0)
        diagonal = (((match & plus) + plus) ^ plus) | match | minus
        right = minus | ~(diagonal | plus) & mask
        left = plus & diagonal
        distance += bool(right & last) - bool(left & last)
        right = right << 1 | 1
        left <<= 1
        plus = (left | ~(diagonal | right)) & mask
        minus = right & diagonal & mask
    return distance


def _first_line(text: str) -> str:
    return next((line.rstrip() for line in text.split("\n") if line.strip()), "")
