"""Which units were first seen together: a unit belongs to the cohort of the run that saw it first, for ever.

Units are kept as keyed hashes: whoever reads the file without the key beside it learns how many there are, not which.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from neuralforge.privacy.journal import FORGOTTEN, Journal
from neuralforge.privacy.units import hidden
from neuralforge_common.errors import PrivacyError
from neuralforge_common.key_files import read_private_file, write_private_file

COHORTS, KEY = "cohorts.jsonl", "key"

_HASH = re.compile("[0-9a-f]{32}")
_MARK = "the key of this file"


class Cohorts:
    """The cohorts of a scope's folder, which is locked by whoever enters units."""

    def __init__(self, folder: Path, key: bytes, journal: Journal) -> None:
        self._folder = folder
        self._key = key
        self._journal = journal
        self._of: dict[str, int] = {}
        self.sizes: list[int] = []
        for number, entry in enumerate(journal.entries[1:], start=1):
            units = entry.get("units")
            if entry.get("cohort") != number or not isinstance(units, list) or not _are_hashes(units):
                raise PrivacyError(f"{journal.path}, line {number + 1}: not an entry of this program")
            self._take(number, units)

    @classmethod
    def open(cls, folder: Path) -> Cohorts:
        """Read the cohorts of a private folder, which are none yet in a new one.

        Raises:
            PrivacyError: the file is damaged, or its key is gone or another one: seen units would count as new.
            StorageError: the disk refuses, or others may read the files.
        """
        journal = Journal(folder / COHORTS)
        if not (folder / KEY).exists():
            if journal.entries:
                raise PrivacyError(
                    f"{folder / KEY} is gone: nobody can tell which data was charged already",
                    hint=FORGOTTEN,
                )
            write_private_file(folder / KEY, secrets.token_bytes(32))
        key = read_private_file(folder / KEY)
        if not journal.entries:
            journal.append({"format": 1, "key": hidden(_MARK, key)})
            journal = Journal(folder / COHORTS)
        if journal.entries[0].get("format") != 1 or journal.entries[0].get("key") != hidden(_MARK, key):
            raise PrivacyError(
                f"{folder / KEY} is not the key of {COHORTS} beside it",
                hint=FORGOTTEN,
            )
        return cls(folder, key, journal)

    def __len__(self) -> int:
        return len(self.sizes)

    def enter(self, unit_ids: Sequence[str]) -> list[int]:
        """The cohort of each unit; those that were never seen are a new one, on the disk when this returns."""
        hashes = [hidden(unit, self._key) for unit in unit_ids]
        new = sorted({each for each in hashes if each not in self._of})  # sorted: keeps nothing of the data's order
        if new:
            number = len(self.sizes) + 1
            self._journal.append({"cohort": number, "units": new})
            self._take(number, new)
        return [self._of[each] for each in hashes]

    def _take(self, number: int, units: Sequence[str]) -> None:
        self._of |= dict.fromkeys(units, number)
        self.sizes.append(len(units))


def _are_hashes(units: Sequence[object]) -> bool:
    return all(isinstance(unit, str) and _HASH.fullmatch(unit) for unit in units)
