"""The state folder: made whole and once, and not used when it is loose, damaged or mixed up."""

import datetime
import os
import shutil
import stat
from pathlib import Path

import pytest

from neuralforge_common.certificates import private_pem
from neuralforge_common.errors import StorageError
from neuralforge_server.state_folder import (
    ServerState,
    create_state_folder,
    open_state_folder,
    renew_server_certificate,
)

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
HOSTS = ("build-box", "127.0.0.1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerState:
    old = os.umask(0)
    try:
        return create_state_folder(tmp_path_factory.mktemp("made") / "s", hosts=HOSTS, config="rounds\n", now=NOW)
    finally:
        os.umask(old)


@pytest.fixture
def state(made: ServerState, tmp_path: Path) -> ServerState:
    """A copy to damage."""
    shutil.copytree(made.path, tmp_path / "s")
    return open_state_folder(tmp_path / "s", now=NOW)


def test_it_is_private_and_its_address_carries_the_authoritys_fingerprint(made: ServerState) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.path.iterdir()}
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    assert {name for name, mode in modes.items() if mode == 0o600} == {"ca.key", "server.key", "superlink.secret"}
    assert modes.keys() == {"ca.pem", "ca.key", "server.pem", "server.key", "superlink.secret", "server.yaml"}
    assert len(made.secret) == 32
    assert str(made.address(8470)) == f"nf://build-box:8470#sha256:{made.fingerprint}"
    assert made.hosts == HOSTS
    assert made.notices == ()


def test_no_traceback_shows_a_secret(made: ServerState) -> None:
    assert repr(made.secret)[2:12] not in repr(made)
    assert "PRIVATE KEY" not in repr(made)


def test_a_second_time_is_refused_and_changes_nothing(state: ServerState) -> None:
    before = contents(state.path)
    with pytest.raises(StorageError, match="holds a federation already") as refusal:
        create_state_folder(state.path, hosts=HOSTS, config="other", now=NOW)
    assert "--renew" in refusal.value.hint
    assert contents(state.path) == before


def test_a_configuration_that_lies_there_is_kept_and_anything_else_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "server.yaml").write_text("mine")
    assert (create_state_folder(folder, hosts=HOSTS, config="new", now=NOW).path / "server.yaml").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match=r"holds other files \(thesis\.txt\)"):
        create_state_folder(other, hosts=HOSTS, config="new", now=NOW)
    assert contents(other) == {"thesis.txt": b"years of work"}


def test_nothing_is_left_where_it_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from neuralforge_common import atomic

    real = os.fsync
    done: list[int] = []

    def full(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        create_state_folder(tmp_path / "s", hosts=HOSTS, config="", now=NOW)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["ca.key", "server.key", "superlink.secret"])
def test_a_secret_that_others_may_read_stops_it(state: ServerState, name: str) -> None:
    (state.path / name).chmod(0o640)
    with pytest.raises(StorageError, match="its mode is 0640, wanted 0600") as refusal:
        open_state_folder(state.path, now=NOW)
    assert refusal.value.hint == f"chmod 600 {state.path / name}"


def test_a_folder_that_others_may_look_into_stops_it(state: ServerState) -> None:
    state.path.chmod(0o750)
    with pytest.raises(StorageError, match="its mode is 0750, wanted 0700"):
        open_state_folder(state.path, now=NOW)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.pem", "server.key", "superlink.secret"])
def test_a_file_that_is_missing_or_cut_is_named(state: ServerState, name: str) -> None:
    file = state.path / name
    whole = file.read_bytes()
    for damage in (whole[:20], b""):
        file.write_bytes(damage)
        with pytest.raises(StorageError, match=name):
            open_state_folder(state.path, now=NOW)
    file.unlink()
    with pytest.raises(StorageError, match=f"cannot read {file}: No such file"):
        open_state_folder(state.path, now=NOW)


def test_files_that_do_not_belong_together_are_refused(state: ServerState, tmp_path: Path) -> None:
    other = create_state_folder(tmp_path / "other", hosts=HOSTS, config="", now=NOW)
    mixed = (
        ("ca.pem", other.authority_pem, "ca.key is not the key of ca.pem"),
        ("server.pem", other.server_pem, "server.pem does not belong to server.key and ca.pem"),
        ("server.key", private_pem(other.authority.key), "server.pem does not belong to server.key and ca.pem"),
    )
    for name, data, line in mixed:
        whole = (state.path / name).read_bytes()
        (state.path / name).write_bytes(data)
        with pytest.raises(StorageError, match=line):
            open_state_folder(state.path, now=NOW)
        (state.path / name).write_bytes(whole)


def test_an_expired_certificate_stops_it_and_a_renewed_one_is_under_the_same_authority(state: ServerState) -> None:
    soon, late = (NOW + datetime.timedelta(days=days) for days in (340, 366))
    (notice,) = open_state_folder(state.path, now=soon).notices
    assert "expires in 25 days" in notice
    with pytest.raises(StorageError, match=r"server\.pem expired on ") as refusal:
        open_state_folder(state.path, now=late)
    assert "--renew" in refusal.value.hint
    renewed = renew_server_certificate(state.path, hosts=(), now=late)
    assert (renewed.fingerprint, renewed.hosts) == (state.fingerprint, HOSTS)
    assert renewed.server_key_pem != state.server_key_pem
    moved = renew_server_certificate(state.path, hosts=("elsewhere",), now=late)
    assert (moved.fingerprint, moved.hosts) == (state.fingerprint, ("elsewhere",))


def test_there_is_no_federation_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no federation here") as refusal:
        open_state_folder(tmp_path / "nf-server", now=NOW)
    assert "nf-server init" in refusal.value.hint
