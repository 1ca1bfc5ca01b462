"""Releases of real packages, one after the other, as what commits would have changed. Nothing of a package is run."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_speed import FILES_PER_COMMIT

Release = dict[str, bytes]


def wheels(specifications: Sequence[str], place: Path, ending: str) -> list[Release]:
    """Source files of wheels; nothing where PyPI does not answer."""
    found: list[Release] = []
    for specification in specifications:
        options = ("--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "20")
        folder = place / specification
        done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", folder, specification])
        if done.returncode:
            return []
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(ending))
            found.append({name: archive.read(name) for name in names})
    return found


def packages(specifications: Sequence[str], place: Path, ending: str) -> list[Release]:
    """Source files of npm packages; nothing where npm is missing or does not answer."""
    place.mkdir()
    try:
        done = subprocess.run(["npm", "pack", "--silent", *specifications], cwd=place, capture_output=True, text=True)
    except FileNotFoundError:
        return []
    if done.returncode:
        return []
    found: list[Release] = []
    for name in done.stdout.split():
        with tarfile.open(place / name) as archive:
            files = [entry for entry in archive if entry.isfile() and entry.name.endswith(ending)]
            read = {entry.name.partition("/")[2]: archive.extractfile(entry) for entry in files}
            found.append({path: stream.read() for path, stream in sorted(read.items()) if stream})
    return found


def changes(releases: Iterable[Release]) -> Iterator[list[tuple[str, bytes | None]]]:
    """What each release changed, a few files at a time."""
    former: Release = {}
    for release in releases:
        changed: list[tuple[str, bytes | None]] = [
            (path, content) for path, content in release.items() if former.get(path) != content
        ]
        changed += [(path, None) for path in former if path not in release]
        for start in range(0, len(changed), FILES_PER_COMMIT):
            yield changed[start : start + FILES_PER_COMMIT]
        former = release
