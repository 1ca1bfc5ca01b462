"""Under which license code stands: as a file says of itself, else as its repository does."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from identify import identify

from neuralforge.data.git import check_repository, commit_named
from neuralforge.data.git_process import open_git

_HEAD = 2_000
_SPDX = re.compile(
    r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9][A-Za-z0-9.+-]{0,60}(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]{1,60}){0,4})"
)
_NAMED = re.compile(r"(?:licen[cs]e|copying|unlicense)(?:[.-][\w.-]{1,20})?", re.IGNORECASE)
_LONGEST = 1 << 17


def license_of_text(text: str) -> str:
    """The SPDX expression at the head of a file, or ""."""
    if "SPDX-" not in text[:_HEAD]:
        return ""
    found = _SPDX.search(text, 0, _HEAD)
    return found[1] if found else ""


def license_of_repository(repository: Path, *, revision: str = "HEAD", silence: float = 60.0) -> str:
    """The SPDX identifier of the license file at a repository's root, "" where there is none that is known.

    Raises:
        DataError: as of `read_git_tree`.
    """
    check_repository(repository)
    git = open_git(repository, silence=silence)
    commit = commit_named(git, revision)
    names: list[bytes] = []
    with git.run("ls-tree", "-l", "-z", "--full-tree", commit) as lister:
        while line := lister.until(b"\0"):
            details, _, path = line.partition(b"\t")
            mode, _, name, size = details.split()
            is_file = mode in (b"100644", b"100755") and size.isdigit() and int(size) <= _LONGEST
            if is_file and _NAMED.fullmatch(path.decode("utf-8", "replace")):
                names.append(name)
        lister.succeeded()
    for name in names[:8]:
        with git.run("cat-file", "blob", name.decode()) as reader:
            if found := _identified(reader.rest()):
                return found
    return ""


def license_of_folder(folder: Path) -> str:
    """The same of a folder of code, or of the folder around a file; links and large files are not opened."""
    place = folder if folder.is_dir() else folder.parent
    try:
        names = sorted(path for path in place.iterdir() if _NAMED.fullmatch(path.name))
    except OSError:
        return ""
    for path in names[:8]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as stream:
                content = stream.read(_LONGEST + 1)
        except OSError:
            continue
        if len(content) <= _LONGEST and (found := _identified(content)):
            return found
    return ""


def _identified(content: bytes) -> str:
    with TemporaryDirectory() as place:  # the library reads files alone
        path = Path(place, PurePosixPath("LICENSE"))
        path.write_bytes(content)
        try:
            return identify.license_id(str(path)) or ""
        except UnicodeDecodeError:
            return ""
