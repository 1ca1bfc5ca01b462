"""Where lines for a person go."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, soft_wrap: bool = True) -> Console:
    """Standard output that prints texts as they are: a path such as `[old]` is no markup, `:x:` no picture."""
    return Console(soft_wrap=soft_wrap, markup=False, highlight=False, emoji=False)
