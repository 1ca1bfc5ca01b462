"""A client's memory: by round, bound to its federation, private, and never a reason to crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralforge.federation.memory import Binding, Memory
from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import StorageError

OURS = Binding(federation="team", base_fingerprint="sha256:01", layout_digest="02")


def vector(*values: float) -> dict[str, FloatArray]:
    return {"unsent": np.array(values, np.float32)}


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def memory(tmp_path: Path, notices: list[str]) -> Memory:
    return Memory(tmp_path / "memory", tell=notices.append)


def recalled(memory: Memory, before: int, binding: Binding = OURS) -> list[float] | None:
    found = memory.recall(binding, before=before)
    return found["unsent"].tolist() if found else None


def test_a_round_finds_the_newest_entry_before_it(memory: Memory) -> None:
    assert recalled(memory, 1) is None
    for number in (1, 2, 4):
        memory.keep(OURS, number, vector(number))
    assert [recalled(memory, before) for before in (1, 2, 3, 4, 5, 99)] == [None, [1], [2], [2], [4], [4]]


def test_the_newest_three_are_kept_and_later_rounds_go_when_one_is_done_again(memory: Memory, tmp_path: Path) -> None:
    for number in range(1, 7):
        memory.keep(OURS, number, vector(number))
    assert len(list((tmp_path / "memory").iterdir())) == 3
    assert recalled(memory, 4) is None
    memory.keep(OURS, 5, vector(50))
    assert recalled(memory, 7) == [50]
    assert recalled(memory, 5) == [4]


def test_an_empty_entry_hides_an_older_one(memory: Memory) -> None:
    memory.keep(OURS, 1, vector(1))
    memory.keep(OURS, 2, {})
    assert memory.recall(OURS, before=3) == {}
    assert recalled(memory, 2) == [1]


@pytest.mark.parametrize("other", [{"federation": "x"}, {"base_fingerprint": "x"}, {"layout_digest": "x"}])
def test_another_federation_base_or_layout_finds_nothing_and_takes_nothing(
    memory: Memory, other: dict[str, str]
) -> None:
    memory.keep(OURS, 1, vector(1))
    theirs = replace(OURS, **other)
    assert recalled(memory, 9, theirs) is None
    for number in range(1, 6):
        memory.keep(theirs, number, vector(-1))
    assert recalled(memory, 9) == [1]


def test_an_entry_under_another_name_is_not_believed(memory: Memory, tmp_path: Path, notices: list[str]) -> None:
    memory.keep(OURS, 1, vector(1))
    entry = next((tmp_path / "memory").iterdir())
    theirs = replace(OURS, federation="x")
    entry.rename(entry.with_name(f"{theirs.digest}-00000001.safetensors"))
    assert recalled(memory, 9, theirs) is None
    assert "digest" in notices[0]


def test_a_damaged_entry_is_passed_over_and_said_so(memory: Memory, tmp_path: Path, notices: list[str]) -> None:
    memory.keep(OURS, 1, vector(1, 2, 3))
    memory.keep(OURS, 2, vector(4, 5, 6))
    newest = sorted((tmp_path / "memory").iterdir())[-1]
    whole = newest.read_bytes()
    for place in range(len(whole)):
        torn = bytearray(whole)
        torn[place] ^= 0x10
        newest.write_bytes(torn)
        found = recalled(memory, 9)
        # A space of the header's padding may change and mean the same; no value ever does.
        assert found in ([1, 2, 3], [4, 5, 6]), place
        assert found == [1, 2, 3] or not notices, place
        notices.clear()
    for length in (0, 7, 8, 100, len(whole) - 1):
        newest.write_bytes(whole[:length])
        assert recalled(memory, 9) == [1, 2, 3]
        assert "round 2 is passed over" in notices.pop()


@pytest.mark.parametrize("metadata", ['"text"', "[]", "null", '{"neuralforge_memory": "no json"}', "{}"])
def test_a_header_that_says_something_else_is_passed_over(
    memory: Memory, tmp_path: Path, notices: list[str], metadata: str
) -> None:
    memory.keep(OURS, 1, vector(1))
    header = f'{{"__metadata__":{metadata},"unsent":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}'.encode()
    entry = next((tmp_path / "memory").iterdir())
    entry.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    assert recalled(memory, 9) is None
    assert len(notices) == 1


def test_nothing_is_left_where_all_are_damaged(memory: Memory, tmp_path: Path, notices: list[str]) -> None:
    memory.keep(OURS, 1, vector(1))
    next((tmp_path / "memory").iterdir()).write_bytes(b"rubbish")
    assert recalled(memory, 2) is None
    assert len(notices) == 1


def test_files_are_private_and_looser_ones_are_refused(memory: Memory, tmp_path: Path) -> None:
    memory.keep(OURS, 1, vector(1))
    entry = next((tmp_path / "memory").iterdir())
    assert entry.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o700
    entry.chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        memory.recall(OURS, before=2)
    (tmp_path / "memory").chmod(0o750)
    with pytest.raises(StorageError, match="chmod 700"):
        memory.keep(OURS, 2, vector(2))


def test_the_same_entry_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        Memory(tmp_path / name, tell=print).keep(OURS, 3, {"B": np.ones(4, np.float32)} | vector(1, 2))
        files.append(next((tmp_path / name).iterdir()).read_bytes())
    assert files[0] == files[1]
