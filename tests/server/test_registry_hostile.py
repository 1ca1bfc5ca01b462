"""A registry over real TLS: uploads that break off, damaged blobs, requests that nobody honest makes, its index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from registry_rig import RegistryRig, code, files_of, make_adapter, refusal, registry_rig

from neuralforge_common.errors import SignatureError
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.index import check_current, read_index
from neuralforge_server.registry.published import Quota
from neuralforge_server.registry.streams import Streams


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RegistryRig]:
    with registry_rig(tmp_path) as made:
        yield made


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "spring.lora")


# Uploads that break off


def test_an_upload_goes_on_where_it_broke_off(rig: RegistryRig, adapter: Path) -> None:
    alice, files = rig.member("alice", "blue"), files_of(adapter)
    weights = files["lora_weights.bin"]
    first = alice.begin(files)

    def broken() -> Iterator[messages.UploadPart]:
        start = messages.UploadStart(upload=first.upload, sha256=hashlib.sha256(weights).hexdigest())
        yield messages.UploadPart(start=start)
        yield messages.UploadPart(data=weights[:100])

    alice.stub.Upload(broken(), metadata=alice.metadata)
    again = alice.begin(files)
    held = {each.sha256: each.bytes for each in again.held}
    assert again.upload == first.upload
    assert held[hashlib.sha256(weights).hexdigest()] == 100
    assert code(alice.resolve) == "NOT_FOUND"
    assert code(alice.finish, again.upload) == "FAILED_PRECONDITION"
    alice.publish(adapter)
    assert alice.download(alice.resolve(), "lora_weights.bin") == weights


def test_bytes_of_another_digest_are_thrown_away(rig: RegistryRig, adapter: Path) -> None:
    alice, files = rig.member("alice", "blue"), files_of(adapter)
    card = files["README.md"]
    begin = alice.begin(files)
    start = messages.UploadStart(upload=begin.upload, sha256=hashlib.sha256(card).hexdigest())
    parts = [messages.UploadPart(start=start), messages.UploadPart(data=b"x" * len(card))]
    assert code(alice.stub.Upload, iter(parts)) == "DATA_LOSS"
    assert {each.bytes for each in alice.begin(files).held} == {0}


def test_what_one_could_download_need_not_travel_again(rig: RegistryRig, tmp_path: Path) -> None:
    alice = rig.member("alice", "blue")
    alice.publish(make_adapter(tmp_path / "a.lora"))
    second = make_adapter(tmp_path / "b.lora", version="1.0.1")
    files = files_of(second)
    held = {each.sha256: each.bytes for each in alice.begin(files).held}
    weights = files["lora_weights.bin"]
    assert held[hashlib.sha256(weights).hexdigest()] == len(weights)
    alice.publish(second)
    assert alice.download(alice.resolve(), "adapter_model.safetensors") == weights


def test_a_forgotten_upload_is_swept(rig: RegistryRig, adapter: Path) -> None:
    alice = rig.member("alice", "blue")
    upload = alice.begin(files_of(adapter)).upload
    rig.clock.ahead = 25 * 3600
    assert rig.registry.uploads.sweep() == 1
    assert code(alice.finish, upload) == "NOT_FOUND"


# Damage


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\0"), lambda p: p.write_bytes(b"")]
)
def test_a_damaged_blob_is_never_served_whole(
    rig: RegistryRig, adapter: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    alice = rig.member("alice", "blue")
    alice.publish(adapter)
    release = alice.resolve()
    digest = next(file.sha256 for file in release.files if file.name == "lora_weights.bin")
    damage(rig.blob(digest))
    parts: list[bytes] = []
    request = messages.DownloadRequest(team="blue", name="spring", version="1.0.0", file="lora_weights.bin")

    def download() -> None:
        parts.extend(part.data for part in alice.stub.Download(request))

    assert code(download) == "DATA_LOSS"
    assert sum(map(len, parts)) < len((adapter / "lora_weights.bin").read_bytes())
    # The same bytes published anew mend it.
    alice.publish(make_adapter(tmp_path / "b.lora", version="1.0.1"))
    assert alice.download(release, "lora_weights.bin") == (adapter / "lora_weights.bin").read_bytes()


def test_a_download_goes_on_from_any_offset(rig: RegistryRig, adapter: Path) -> None:
    alice = rig.member("alice", "blue")
    alice.publish(adapter)
    release, weights = alice.resolve(), (adapter / "lora_weights.bin").read_bytes()
    for offset in (0, 1, len(weights) - 1, len(weights)):
        assert alice.download(release, "lora_weights.bin", offset=offset) == weights[offset:]
    assert code(alice.download, release, "lora_weights.bin", offset=len(weights) + 1) == "INVALID_ARGUMENT"


# Hostile requests


@pytest.mark.parametrize(
    "name", ["../../ca.key", "/etc/passwd", "adapter_model.bin", "model.sig\0", ".hidden", "a/b", ""]
)
def test_no_file_name_but_the_formats_own_is_taken(rig: RegistryRig, adapter: Path, name: str) -> None:
    files = files_of(adapter)
    assert code(rig.member("alice", "blue").begin, files | {name: b"x"}) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "claims",
    [
        {"name": "../x"},
        {"name": "A"},
        {"name": ""},
        {"version": "1.0"},
        {"version": "1.0.0/.."},
        {"version": ""},
        {"visibility": 0},
        {"visibility": 99},
        {"tags": ("A b",)},
        {"tags": tuple(f"t{n}" for n in range(21))},
    ],
)
def test_names_versions_and_tags_that_cannot_be_are_refused(
    rig: RegistryRig, adapter: Path, claims: dict[str, object]
) -> None:
    assert code(rig.member("alice", "blue").begin, files_of(adapter), **claims) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("file", "size", "status"),
    [
        ("adapter_model.safetensors", 2**40, "RESOURCE_EXHAUSTED"),
        ("adapter_model.safetensors", 2**64 - 1, "RESOURCE_EXHAUSTED"),
        ("metadata.json", 2**21, "RESOURCE_EXHAUSTED"),
        ("metadata.json", 0, "RESOURCE_EXHAUSTED"),
        ("model.sig", 2**20, "RESOURCE_EXHAUSTED"),
    ],
)
def test_sizes_that_no_adapter_has_are_refused_before_a_byte_travels(
    rig: RegistryRig, file: str, size: int, status: str
) -> None:
    names = ("metadata.json", "adapter_config.json", "adapter_model.safetensors", "model.sig")
    files = [messages.File(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), size=9) for name in names]
    files[names.index(file)].size = size
    request = messages.BeginPublishRequest(
        team="blue", name="spring", version="1.0.0", visibility=messages.TEAM, files=files
    )
    assert code(rig.member("alice", "blue").call, "BeginPublish", request) == status


def test_uploads_with_wrong_offsets_too_many_bytes_or_no_beginning_are_refused(rig: RegistryRig, adapter: Path) -> None:
    alice, files = rig.member("alice", "blue"), files_of(adapter)
    upload, card = alice.begin(files).upload, files["README.md"]
    digest = hashlib.sha256(card).hexdigest()

    def start(**fields: object) -> messages.UploadPart:
        told = {"upload": upload, "sha256": digest} | fields
        return messages.UploadPart(start=messages.UploadStart(**told))

    data = messages.UploadPart(data=card)
    for parts, status in (
        ([], "INVALID_ARGUMENT"),
        ([data], "INVALID_ARGUMENT"),
        ([start(offset=5), data], "INVALID_ARGUMENT"),
        ([start(offset=2**63), data], "INVALID_ARGUMENT"),
        ([start(), start()], "INVALID_ARGUMENT"),
        ([start(), messages.UploadPart(data=b"")], "INVALID_ARGUMENT"),
        ([start(sha256="f" * 64), data], "INVALID_ARGUMENT"),
        ([start(sha256="../" * 20), data], "INVALID_ARGUMENT"),
        ([start(upload="../registry.db"), data], "NOT_FOUND"),
        ([start(upload=""), data], "NOT_FOUND"),
        ([start(), messages.UploadPart(data=b"x" * (600 * 1024))], "INVALID_ARGUMENT"),
        ([start(), messages.UploadPart(data=b"x" * (2 * 1024 * 1024))], "RESOURCE_EXHAUSTED"),
        ([start(), data, data], "INVALID_ARGUMENT"),
    ):
        assert code(alice.stub.Upload, iter(parts), timeout=20) == status, parts
    # What came in whole before one byte too many did is whole.
    assert {each.sha256: each.bytes for each in alice.begin(files).held}[digest] == len(card)


def test_quotas_hold_for_files_versions_teams_and_uploads(tmp_path: Path) -> None:
    size = sum(
        len(data) for name, data in files_of(make_adapter(tmp_path / "x.lora")).items() if name != "lora_weights.bin"
    )
    quota = Quota(blob_bytes=2**20, team_bytes=int(size * 2.5), versions=3, uploads=2)
    with registry_rig(tmp_path, quota=quota) as rig:
        alice = rig.member("alice", "blue")
        for number in range(2):
            alice.publish(make_adapter(tmp_path / f"{number}.lora", version=f"1.0.{number}", seed=number))
        third = make_adapter(tmp_path / "3.lora", version="1.0.3", seed=3)
        error = refusal(alice.publish, third)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the team blue has used" in error.details()
        # Another team has room of its own, for two uploads at a time.
        eve = rig.member("eve", "red")
        eve.begin(files_of(third), team="red")
        eve.begin(files_of(make_adapter(tmp_path / "4.lora", version="1.0.4", seed=4)), team="red")
        fifth = files_of(make_adapter(tmp_path / "5.lora", version="1.0.5", seed=5))
        assert code(eve.begin, fifth, team="red") == "RESOURCE_EXHAUSTED"


def test_an_adapter_has_only_so_many_versions(tmp_path: Path) -> None:
    with registry_rig(tmp_path, quota=Quota(versions=1)) as rig:
        alice = rig.member("alice", "blue")
        alice.publish(make_adapter(tmp_path / "a.lora"))
        assert code(alice.publish, make_adapter(tmp_path / "b.lora", version="2.0.0")) == "RESOURCE_EXHAUSTED"


def test_a_stream_that_goes_quiet_is_cut_off_and_gives_its_place_back(tmp_path: Path, adapter: Path) -> None:
    import threading

    with registry_rig(tmp_path, streams=Streams(most=1, each=1, seconds=0.5)) as rig:
        alice, files = rig.member("alice", "blue"), files_of(adapter)
        begin, quiet = alice.begin(files), threading.Event()
        start = messages.UploadStart(upload=begin.upload, sha256=hashlib.sha256(files["README.md"]).hexdigest())

        def parts() -> Iterator[messages.UploadPart]:
            yield messages.UploadPart(start=start)
            quiet.wait(10)

        call = alice.stub.Upload.future(parts())
        while not rig.registry.uploads._busy:  # until the server has read the first message
            assert not call.done()
        assert code(alice.index) == "RESOURCE_EXHAUSTED"
        assert code(call.result) == "CANCELLED"
        quiet.set()
        alice.publish(adapter)


# The index


def test_an_index_is_newer_each_time_and_after_a_restart_and_older_ones_are_noticed(tmp_path: Path) -> None:
    with registry_rig(tmp_path) as rig:
        alice = rig.member("alice", "blue")
        key = rig.registry.index.key
        first = read_index(alice.index(), key)
        alice.publish(make_adapter(tmp_path / "a.lora"))
        rig.clock.ahead = -3600  # a clock that was set back
        new = read_index(alice.index(), key)
        assert first.version < new.version
        (entry,) = new.entries
        assert entry.digest == alice.resolve().digest
        check_current(new, (first,), now=datetime.now(UTC))
        with pytest.raises(SignatureError, match="older than one seen before"):
            check_current(first, (new,), now=datetime.now(UTC))
        from neuralforge_server.registry.access import Caller
        from neuralforge_server.registry.index import IndexSigner

        registry = rig.registry
        later = IndexSigner(registry.database, registry.releases, name="team", key=registry.index._key, clock=rig.clock)
        assert read_index(later.signed(Caller()), key).version > new.version


def test_requests_to_read_that_make_no_sense_are_refused(rig: RegistryRig) -> None:
    stranger = rig.stranger()
    for fields in (
        {"limit": 101},
        {"text": "x" * 201},
        {"text": "x " * 11},
        {"after": "nothing"},
        {"language": "A B"},
        {"tags": ["\u202e"]},
    ):
        assert code(stranger.search, **fields) == "INVALID_ARGUMENT", fields
    assert code(stranger.resolve, "x", "latest") == "INVALID_ARGUMENT"
    assert stranger.search(text="100% _x' OR 1=1 --", base_model="x' OR '1'='1") == []
