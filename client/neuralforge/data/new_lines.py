"""Which lines of a file are new against a former version of it, in bounded time whatever the two files hold."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from difflib import SequenceMatcher

_MOST_LINES = 3_000  # of a region that changed, on either side; a longer one counts as rewritten
_MOST_STEPS = 4_000_000  # of one file's comparison, a second or so; what is left then counts as rewritten


def new_lines(before: list[str], after: list[str]) -> tuple[tuple[int, int], ...]:
    """Ranges of lines of `after` that `before` did not have, in order.

    What is alike at both ends is set aside first, then the lines that stand once on either side and in the same order
    (patience diff). A region in between that is very long, or made to be compared for ever, counts as new from end to
    end.
    """
    first = 0
    while first < min(len(before), len(after)) and before[first] == after[first]:
        first += 1
    last = 0
    while last < min(len(before), len(after)) - first and before[-1 - last] == after[-1 - last]:
        last += 1
    old, new = before[first : len(before) - last], after[first : len(after) - last]
    if not new:
        return ()
    if not old or max(len(old), len(new)) > _MOST_LINES:
        return ((first, first + len(new)),)
    ranges: list[tuple[int, int]] = []
    steps = 0
    at_old = at_new = 0
    for old_line, new_line in (*_anchors(old, new), (len(old), len(new))):
        steps += _steps(old[at_old:old_line], new[at_new:new_line])
        if steps > _MOST_STEPS:
            ranges.append((first + at_new, first + new_line))
        elif new_line > at_new:
            blocks = SequenceMatcher(None, old[at_old:old_line], new[at_new:new_line]).get_opcodes()
            begin = first + at_new
            ranges += [(begin + a, begin + b) for kind, _, _, a, b in blocks if kind in ("insert", "replace")]
        at_old, at_new = old_line + 1, new_line + 1
    return tuple((begin, end) for begin, end in ranges if begin < end)


def _anchors(old: list[str], new: list[str]) -> list[tuple[int, int]]:
    """Where lines that stand once in both are, as many of them as are in the same order."""
    once_old, once_new = ({line for line, count in Counter(side).items() if count == 1} for side in (old, new))
    once = once_old & once_new
    places = {line: number for number, line in enumerate(old) if line in once}
    pairs = [(places[line], number) for number, line in enumerate(new) if line in places]
    ends: list[int] = []  # of the longest increasing run of each length: its last place in `old`
    tails: list[int] = []  # and which pair that is
    previous: list[int] = []
    for number, (place, _) in enumerate(pairs):
        length = bisect_left(ends, place)
        ends[length : length + 1] = [place]
        tails[length : length + 1] = [number]
        previous.append(tails[length - 1] if length else -1)
    found: list[tuple[int, int]] = []
    number = tails[-1] if tails else -1
    while number >= 0:
        found.append(pairs[number])
        number = previous[number]
    return found[::-1]


def _steps(old: list[str], new: list[str]) -> int:
    """At most so many pairs of lines does SequenceMatcher look at: all that are equal, once for each block it finds."""
    counts = Counter(old)
    return sum(counts[line] for line in new) * min(len(old), len(new))
