"""Blobs by their digest: whole or not there, damaged or not given; in a folder and in another store of fsspec's."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

import pytest

from neuralforge_common.errors import RegistryError, UsageError
from neuralforge_server.registry.blobs import CHUNK, BlobStore

BIG = os.urandom(2 * CHUNK + 17)
DIGEST = hashlib.sha256(BIG).hexdigest()


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    place = f"file://{tmp_path / 'blobs'}" if request.param == "file" else f"memory://{secrets.token_hex(8)}"
    store = BlobStore(place)
    (tmp_path / "source").write_bytes(BIG)
    store.put(DIGEST, tmp_path / "source")
    return store


def overwrite(store: BlobStore, data: bytes) -> None:
    store._files.pipe_file(store._path(DIGEST), data)


@pytest.mark.parametrize("offset", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 16, 2 * CHUNK + 17])
def test_what_was_put_is_read_from_any_offset(store: BlobStore, offset: int) -> None:
    assert b"".join(store.read(DIGEST, len(BIG), offset=offset)) == BIG[offset:]


@pytest.mark.parametrize(
    "damaged", [b"", BIG[:-1], BIG + b"x", b"x" + BIG[1:], BIG[:-1] + bytes([BIG[-1] ^ 1]), BIG + BIG]
)
def test_a_damaged_blob_is_given_without_its_end_and_with_an_error(store: BlobStore, damaged: bytes) -> None:
    overwrite(store, damaged)
    given: list[bytes] = []
    with pytest.raises(RegistryError, match="not what was published") as caught:
        given.extend(store.read(DIGEST, len(BIG)))
    assert caught.value.status == "DATA_LOSS"
    assert sum(map(len, given)) < len(BIG)


def test_putting_it_again_mends_a_damaged_blob(store: BlobStore, tmp_path: Path) -> None:
    overwrite(store, b"x" + BIG[1:])
    store.put(DIGEST, tmp_path / "source")
    store.check(DIGEST, len(BIG))


def test_only_what_nobody_names_is_swept(store: BlobStore) -> None:
    far = 4e9  # long after it was written
    assert store.sweep([DIGEST], older=0, now=far) == 0
    assert store.sweep([], older=2 * far, now=far) == 0
    assert store.sweep([], older=0, now=far) == 1
    with pytest.raises(RegistryError, match="it is gone"):
        store.check(DIGEST, len(BIG))


def test_a_folder_of_blobs_is_its_owners_alone(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path / 'blobs'}")
    (tmp_path / "source").write_bytes(BIG)
    store.put(DIGEST, tmp_path / "source")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "blobs").rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "blobs").stat().st_mode) == 0o700


def test_a_store_that_fsspec_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="--blobs"):
        BlobStore("nowhere://x")
