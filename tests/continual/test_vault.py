"""A vault: nothing readable on the disk, nothing torn, no change unnamed, nothing left when erased."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge.continual import ReplayBuffer
from neuralforge.continual.keys import KeyFile, PassphraseKey
from neuralforge.continual.vault import HEADER, RECORDS, Vault, erase, is_vault, read_header
from neuralforge.data.example import Example
from neuralforge_common.errors import NeuralForgeError, StorageError, VaultError

PLANTED = "a_line_that_nobody_else_may_read"


def examples(count: int, *, first: int = 0) -> list[Example]:
    return [
        Example(
            context=f"# {PLANTED}\ndef f{n}():\n", completion=f"    return {n}\n", language="python", path=f"{n}.py"
        )
        for n in range(first, first + count)
    ]


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys" / "replay.key")


@pytest.fixture
def folder(tmp_path: Path, key: KeyFile) -> Path:
    """A buffer of twelve examples of two sessions."""
    buffer = ReplayBuffer.open(tmp_path / "replay", key)
    buffer.add(examples(6), session="the session's name")
    buffer.add(examples(6, first=6), session="the session's name, again")
    return tmp_path / "replay"


def on_disk(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plaintext(folder: Path) -> list[Path]:
    marks = (PLANTED.encode(), b"return", b"python", b"session's", b".py")
    return [path for path, data in on_disk(folder).items() if any(mark in data for mark in marks)]


def test_no_text_stands_anywhere_in_the_folder(folder: Path) -> None:
    assert {path.name for path in on_disk(folder)} == {HEADER, RECORDS, "lock"}
    assert plaintext(folder) == []


def test_everything_in_it_is_its_owners_alone(folder: Path, key: KeyFile) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in [*folder.iterdir(), key.path]} == {0o600}


@pytest.mark.parametrize(("name", "mode"), [("", 0o755), (HEADER, 0o640), (RECORDS, 0o644)])
def test_a_looser_mode_is_refused(folder: Path, key: KeyFile, name: str, mode: int) -> None:
    (folder / name).chmod(mode)
    with pytest.raises(StorageError, match=f"its mode is 0{mode:o}"):
        ReplayBuffer.open(folder, key)


def test_a_loose_key_file_is_refused(folder: Path, key: KeyFile) -> None:
    key.path.chmod(0o644)
    with pytest.raises(VaultError, match="its mode is 0644") as refused:
        ReplayBuffer.open(folder, key)
    assert "chmod 600" in refused.value.hint


def test_a_flipped_byte_is_found_wherever_it_is_and_the_record_is_named(folder: Path, key: KeyFile) -> None:
    vault = Vault.open(folder, key)
    manifest = vault.load()
    assert manifest is not None
    whole = (folder / RECORDS).read_bytes()
    first = len(whole) - sum(record.size for record in manifest.records)
    begin = first
    for record in manifest.records:
        for place in (begin, begin + record.size // 2, begin + record.size - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            (folder / RECORDS).write_bytes(damaged)
            with pytest.raises(VaultError, match=f"record {record.id} of .* is damaged"):
                ReplayBuffer.open(folder, key)
        begin += record.size
    for place in range(0, first, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (folder / RECORDS).write_bytes(damaged)
        with pytest.raises(VaultError, match=r"the manifest of .* is damaged"):
            ReplayBuffer.open(folder, key)
    (folder / RECORDS).write_bytes(whole)
    assert len(ReplayBuffer.open(folder, key)) == 12


def test_a_cut_file_is_found_and_the_first_record_that_lacks_is_named(folder: Path, key: KeyFile) -> None:
    manifest = Vault.open(folder, key).load()
    assert manifest is not None
    whole = (folder / RECORDS).read_bytes()
    (folder / RECORDS).write_bytes(whole[: -manifest.records[-1].size - 1])
    with pytest.raises(VaultError, match=f"record {manifest.records[-2].id} "):
        ReplayBuffer.open(folder, key)
    for length in (0, 5, 40):
        (folder / RECORDS).write_bytes(whole[:length])
        with pytest.raises(VaultError, match="manifest"):
            ReplayBuffer.open(folder, key)


def test_no_record_can_stand_in_anothers_place(folder: Path, key: KeyFile) -> None:
    manifest = Vault.open(folder, key).load()
    assert manifest is not None
    whole = (folder / RECORDS).read_bytes()
    first, second = manifest.records[-2:]
    assert first.size == second.size
    head, tail = whole[: -2 * first.size], whole[-2 * first.size :]
    (folder / RECORDS).write_bytes(head + tail[first.size :] + tail[: first.size])
    with pytest.raises(VaultError, match=f"record {first.id} "):
        ReplayBuffer.open(folder, key)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header | {"locked": header["locked"][:-2] + "00"},
        lambda header: header | {"id": "0" * 32},
        lambda header: header | {"format": 2},
        lambda header: header | {"locked": "zz"},
        lambda header: [header],
        lambda header: {name: value for name, value in header.items() if name != "facts"},
    ],
)
def test_a_changed_header_is_refused(folder: Path, key: KeyFile, change: Callable[[object], object]) -> None:
    header = json.loads((folder / HEADER).read_bytes())
    (folder / HEADER).write_text(json.dumps(change(header)))
    with pytest.raises(VaultError, match=r"does not open|is damaged"):
        ReplayBuffer.open(folder, key)


def test_the_header_cannot_ask_for_all_of_the_memory(tmp_path: Path) -> None:
    ReplayBuffer.open(tmp_path / "replay", PassphraseKey("right"))
    path = tmp_path / "replay" / HEADER
    header = json.loads(path.read_bytes())
    header["facts"]["memory_kib"] = 2**40
    path.write_text(json.dumps(header))
    with pytest.raises(VaultError, match="out of bounds"):
        ReplayBuffer.open(tmp_path / "replay", PassphraseKey("right"))


def test_another_key_file_and_another_passphrase_are_refused(tmp_path: Path, folder: Path, key: KeyFile) -> None:
    other = KeyFile(tmp_path / "keys" / "other.key")
    ReplayBuffer.open(tmp_path / "other", other)
    with pytest.raises(VaultError, match=r"the key file .*other\.key does not open the replay buffer"):
        ReplayBuffer.open(folder, other)
    ReplayBuffer.open(tmp_path / "said", PassphraseKey("correct horse")).add(examples(1))
    with pytest.raises(VaultError, match=r"a passphrase .* does not open the replay buffer"):
        ReplayBuffer.open(tmp_path / "said", PassphraseKey("correct house"))
    with pytest.raises(VaultError, match="locked by a passphrase, not by a key-file"):
        ReplayBuffer.open(tmp_path / "said", key)
    assert len(ReplayBuffer.open(tmp_path / "said", PassphraseKey("correct horse"))) == 1


def test_records_that_stay_are_not_sealed_anew(folder: Path, key: KeyFile) -> None:
    before = (folder / RECORDS).read_bytes()
    manifest = Vault.open(folder, key).load()
    assert manifest is not None
    ReplayBuffer.open(folder, key).add(examples(1, first=20))
    after = (folder / RECORDS).read_bytes()
    assert before[-sum(record.size for record in manifest.records) :] in after


def test_erasing_destroys_the_key_first_and_leaves_nothing(folder: Path, key: KeyFile) -> None:
    inode = os.open(folder / HEADER, os.O_RDONLY)  # what the blocks hold after the name is gone
    locked = json.loads((folder / HEADER).read_bytes())["locked"].encode()
    size = (folder / RECORDS).stat().st_size
    assert erase(folder) == size
    assert not folder.exists()
    assert locked not in os.read(inode, 65536)
    os.close(inode)
    assert key.path.exists()
    fresh = ReplayBuffer.open(folder, key)
    assert len(fresh) == fresh.seen == 0


def test_erasing_takes_what_a_killed_writer_left_and_nothing_of_others(folder: Path) -> None:
    for name in (HEADER, RECORDS):
        (folder / f".{name}.{'0' * 16}.new").write_bytes((folder / name).read_bytes())
    (folder / "somebody-elses").write_text("stays")
    erase(folder)
    assert [path.name for path in folder.iterdir()] == ["somebody-elses"]
    assert not is_vault(folder)


def test_records_without_their_key_are_said_to_be_lost(folder: Path, key: KeyFile) -> None:
    (folder / HEADER).unlink()  # as a purge leaves it that is killed halfway
    with pytest.raises(VaultError, match="its key is destroyed"):
        ReplayBuffer.open(folder, key)
    assert erase(folder) > 0
    assert read_header(folder) is None


def test_an_open_buffer_does_not_write_into_an_erased_folder(folder: Path, key: KeyFile) -> None:
    buffer = ReplayBuffer.open(folder, key)
    erase(folder)
    with pytest.raises((VaultError, StorageError)):
        buffer.add(examples(1, first=50))
    ReplayBuffer.open(folder, key)  # another vault at the same place
    with pytest.raises(VaultError, match="erased meanwhile"):
        buffer.add(examples(1, first=50))


def test_two_that_make_the_same_vault_at_once_share_it(tmp_path: Path, key: KeyFile) -> None:
    KeyFile(key.path).make("")
    faults: list[NeuralForgeError] = []

    def add(number: int) -> None:
        try:
            ReplayBuffer.open(tmp_path / "replay", key).add(examples(3, first=3 * number))
        except NeuralForgeError as fault:
            faults.append(fault)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(ReplayBuffer.open(tmp_path / "replay", key)) == 12


WRITER = f"""
import sys
from pathlib import Path
from neuralforge.continual import ReplayBuffer
from neuralforge.continual.keys import KeyFile
from neuralforge.data.example import Example

folder, key = Path(sys.argv[1]), KeyFile(Path(sys.argv[2]))
print("begun", flush=True)
while True:
    buffer = ReplayBuffer.open(folder, key, max_size=40, seed=5)
    first = buffer.seen
    buffer.add(
        [
            Example(context="# {PLANTED}" * 50, completion=f"    return {{n}}\\n", language="python")
            for n in range(first, first + 10)
        ],
        session=f"s{{first}}",
    )
"""


def test_kill_9_at_any_moment_leaves_a_whole_buffer(tmp_path: Path, key: KeyFile) -> None:
    key.make("")
    folder = tmp_path / "replay"
    chance = random.Random(11)
    seen = 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(key.path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert [path for path, data in on_disk(folder).items() if PLANTED.encode() in data] == []
        buffer = ReplayBuffer.open(folder, key, max_size=40, seed=5)
        assert buffer.seen % 10 == 0
        assert buffer.seen >= seen
        seen = buffer.seen
        assert sum(path.stat().st_size for path in folder.iterdir()) < 2 * 40 * 4096
    assert seen > 40, "nothing was written between the kills"
    whole = ReplayBuffer(max_size=40, seed=5)
    for first in range(0, seen, 10):
        whole.add(
            [
                Example(context=f"# {PLANTED}" * 50, completion=f"    return {n}\n", language="python")
                for n in range(first, first + 10)
            ],
            session=f"s{first}",
        )
    assert [(i.example, i.session) for i in buffer.items] == [(i.example, i.session) for i in whole.items]
