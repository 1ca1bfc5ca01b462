"""Private files: for their owner alone when they are made, and refused when they are not when they are read."""

import os
import stat
from pathlib import Path

import pytest

from neuralforge_common.errors import StorageError
from neuralforge_common.key_files import check_private, make_private_folder, read_private_file, write_private_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_written_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "b")
        write_private_file(tmp_path / "a" / "b" / "key", b"secret")
    finally:
        os.umask(old)
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/key")] == [0o700, 0o700, 0o600]
    assert read_private_file(tmp_path / "a" / "b" / "key") == b"secret"


def test_writing_again_replaces_the_file_and_its_looser_mode(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"old")
    file.chmod(0o644)
    write_private_file(file, b"new")
    assert (mode(file), read_private_file(file)) == (0o600, b"new")


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o644, 0o660, 0o606, 0o620, 0o601])
def test_a_file_that_others_may_use_is_not_read(tmp_path: Path, loose: int) -> None:
    file = tmp_path / "a key"
    write_private_file(file, b"secret")
    file.chmod(loose)
    with pytest.raises(StorageError) as refusal:
        read_private_file(file)
    assert refusal.value.message == f"{file}: others than its owner may use it: its mode is 0{loose:o}, wanted 0600"
    assert refusal.value.hint == f"chmod 600 '{file}'"


@pytest.mark.parametrize("loose", [0o750, 0o705, 0o755, 0o711])
def test_a_folder_that_others_may_look_into_is_not_used(tmp_path: Path, loose: int) -> None:
    folder = tmp_path / "state"
    make_private_folder(folder)
    check_private(folder)
    folder.chmod(loose)
    for check in (check_private, make_private_folder):
        with pytest.raises(StorageError) as refusal:
            check(folder)
        assert f"its mode is 0{loose:o}, wanted 0700" in refusal.value.message
        assert refusal.value.hint == f"chmod 700 {folder}"


def test_modes_that_are_tighter_are_fine(tmp_path: Path) -> None:
    write_private_file(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(0o400)
    assert read_private_file(tmp_path / "key") == b"secret"


def test_links_pipes_folders_and_missing_or_huge_files_are_refused(tmp_path: Path) -> None:
    write_private_file(tmp_path / "key", b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name in ("link", "pipe", "folder", "missing"):
        with pytest.raises(StorageError, match=f"cannot read {tmp_path / name}: "):
            read_private_file(tmp_path / name)
    with pytest.raises(StorageError, match="larger than 99 bytes"):
        read_private_file(tmp_path / "key", limit=99)
    with pytest.raises(StorageError, match="it is a link"):
        check_private(tmp_path / "link")
