"""Who last touched each file of a repository, from its history."""

from __future__ import annotations

from pathlib import Path

from neuralforge.data.git_process import open_git
from neuralforge.data.source import printable

UNKNOWN = "unknown author"

# `log` is no plumbing, so what its configuration could start is switched off one by one: `log.showSignature` runs the
# program for signatures, and only patches, which are not asked for, run external differs and text converters.
_LOG = (
    *("log", "--no-show-signature", "--no-ext-diff", "--no-textconv", "--no-mailmap", "--no-notes"),
    *("--no-decorate", "--no-color", "--no-renames", "--no-merges", "--raw", "--no-abbrev", "-z"),
    "--format=tformat:>%an",
)


def authors_of(repository: Path, *, revision: str = "HEAD", silence: float = 60.0) -> dict[str, str]:
    """Path → name of the author of the newest commit (no merge) that changed it, for every path of the history.

    Raises:
        DataError: no git, no repository, a damaged one, a silent one.
    """
    authors: dict[str, str] = {}
    author = UNKNOWN
    with open_git(repository, silence=silence).run(*_LOG, revision, "--") as log:
        # An author is `>name`; a change is `:modes ids letter` and then its path, whatever that path looks like.
        while token := log.until(b"\0"):
            word = token.removeprefix(b"\n")
            if word.startswith(b":"):
                path = log.until(b"\0").decode("utf-8", "backslashreplace")
                authors.setdefault(path, author)
            else:
                author = printable(word.removeprefix(b">").decode("utf-8", "replace").strip()) or UNKNOWN
        log.succeeded()
    return authors
