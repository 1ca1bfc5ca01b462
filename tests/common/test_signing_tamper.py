"""Hostile folders and signatures: each is refused at the step that it breaks, in bounded time and memory."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from signed_adapters import (
    Document,
    change_bundle,
    change_statement,
    sign_payload,
    statement_of,
    write_small_adapter,
)

from neuralforge_common.codec import encode_tensors
from neuralforge_common.errors import SignatureError
from neuralforge_common.folder import SIGNATURE, read_adapter_folder
from neuralforge_common.signing.envelope import encode_bundle, seal
from neuralforge_common.signing.keys import generate_key
from neuralforge_common.signing.manifest import hash_files, list_files, open_folder
from neuralforge_common.signing.sign import sign_adapter
from neuralforge_common.signing.statement import encode_statement
from neuralforge_common.signing.verify import only, verify_adapter

KEY, STRANGER = generate_key("p256"), generate_key("p256")
SAFETENSORS, BIN, CARD = "adapter_model.safetensors", "lora_weights.bin", "README.md"
ZEROS = "0" * 64

Attack = Callable[[Path], object]
ATTACKS: dict[str, tuple[str, str, Attack]] = {}


def attack(step: str, refusal: str) -> Callable[[Attack], Attack]:
    """Adds a function that does something to a signed folder, the step that must refuse it, and a part of the line."""

    def add(function: Attack) -> Attack:
        ATTACKS[function.__name__.replace("_", " ")] = (step, refusal, function)
        return function

    return add


def attacks(step: str, refusal: str, **functions: Attack) -> None:
    for name, function in functions.items():
        ATTACKS[name.replace("_", " ")] = (step, refusal, function)


def flip(path: Path, place: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ bit]))


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)


def dsse(change: Callable[[Document], object]) -> Attack:
    return lambda folder: change_bundle(folder, lambda bundle: change(bundle["dsseEnvelope"]))


def material(change: Callable[[Document], object]) -> Attack:
    return lambda folder: change_bundle(folder, lambda bundle: change(bundle["verificationMaterial"]))


def signed(change: Callable[[Document], object]) -> Attack:
    return lambda folder: change_statement(folder, KEY, change)


def resources(change: Callable[[list[Document]], object]) -> Attack:
    return signed(lambda statement: change(statement["predicate"]["resources"]))


def serialization(**values: object) -> Attack:
    return signed(lambda statement: statement["predicate"]["serialization"].update(values))


def sign_files_as_they_are(folder: Path) -> None:
    """What the owner of a key can do with another program: vouch for a folder that is no sound adapter."""
    descriptor = open_folder(folder)
    manifest = hash_files(descriptor, list_files(descriptor))
    os.close(descriptor)
    sign_payload(folder, KEY, encode_statement("mine", manifest))


# The folder.
attacks(
    "files",
    "was changed after it was signed",
    a_bit_of_the_weights=lambda folder: flip(folder / SAFETENSORS, -1),
    a_bit_of_the_weights_header=lambda folder: flip(folder / SAFETENSORS, 12),
    a_bit_of_the_peft_configuration=lambda folder: flip(folder / "adapter_config.json", 2),
    a_bit_of_the_metadata=lambda folder: flip(folder / "metadata.json", -3),
    a_bit_of_the_card=lambda folder: flip(folder / CARD, 0),
    a_longer_card=lambda folder: (folder / CARD).open("a").write("\n"),
    an_empty_card=lambda folder: sparse(folder / CARD, 0),
    a_shorter_file_of_weights=lambda folder: os.truncate(folder / SAFETENSORS, 100),
    another_file_under_the_weights_other_name=lambda folder: replace_file(folder / BIN, b"x"),
    two_files_that_changed_places=lambda folder: [
        (folder / CARD).rename(folder / "swap"),
        (folder / "metadata.json").rename(folder / CARD),
        (folder / "swap").rename(folder / "metadata.json"),
    ],
)
attacks(
    "files",
    "was signed and is missing",
    a_missing_card=lambda folder: (folder / CARD).unlink(),
    a_missing_second_name_of_the_weights=lambda folder: (folder / BIN).unlink(),
)
attacks(
    "files",
    "is in the folder and was not signed",
    a_program_more=lambda folder: (folder / "modeling.py").write_text("import os"),
    a_pickle_more=lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    a_renamed_card=lambda folder: (folder / CARD).rename(folder / "readme.md"),
    a_second_signature=lambda folder: shutil.copy(folder / SIGNATURE, folder / "model.sig.bak"),
    an_empty_file=lambda folder: (folder / "empty").touch(),
)
attacks(
    "files",
    "is a folder",
    a_git_folder=lambda folder: [(folder / ".git").mkdir(), (folder / ".git/config").write_text("[core]")],
    an_empty_folder=lambda folder: (folder / "notes").mkdir(),
    a_folder_in_the_place_of_a_file=lambda folder: [(folder / CARD).unlink(), (folder / CARD).mkdir()],
)
attacks(
    "files",
    "is a hidden file",
    a_gitattributes=lambda folder: (folder / ".gitattributes").write_text("* filter=evil"),
    a_draft_of_a_signature=lambda folder: (folder / f".{SIGNATURE}.{'0' * 16}.new").touch(),
)
attacks(
    "files",
    "is a link",
    a_link_more=lambda folder: (folder / "passwd").symlink_to("/etc/passwd"),
    a_link_to_nowhere=lambda folder: (folder / "nowhere").symlink_to("nothing"),
    a_link_to_a_folder=lambda folder: (folder / "up").symlink_to(".."),
    a_link_to_the_same_bytes=lambda folder: [
        shutil.copy(folder / CARD, folder.parent / "card"),
        (folder / CARD).unlink(),
        (folder / CARD).symlink_to("../card"),
    ],
)
attacks(
    "files",
    "is no file",
    a_pipe=lambda folder: os.mkfifo(folder / "pipe"),
    a_pipe_in_the_place_of_a_file=lambda folder: [(folder / CARD).unlink(), os.mkfifo(folder / CARD)],
)
attacks(
    "files",
    "is no plain file name",
    a_name_that_is_not_text=lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff.md")).touch(),
    a_name_that_drives_a_terminal=lambda folder: (folder / "\x1b[2J").touch(),
    a_name_of_two_lines=lambda folder: (folder / "a\nverified b").touch(),
)
attacks("files", "more than 256 files", many_files=lambda folder: [(folder / f"{i}").touch() for i in range(2000)])
attacks(
    "files",
    "bytes, at most",
    a_huge_card=lambda folder: sparse(folder / CARD, 2**40),
    huge_weights=lambda folder: sparse(folder / SAFETENSORS, 2**40),
)

# The bundle.
attacks(
    "bundle",
    "it is not signed",
    no_signature=lambda folder: (folder / SIGNATURE).unlink(),
)
attacks(
    "bundle",
    "not valid JSON",
    an_empty_signature=lambda folder: sparse(folder / SIGNATURE, 0),
    half_a_signature=lambda folder: os.truncate(folder / SIGNATURE, 500),
    zeros=lambda folder: sparse(folder / SIGNATURE, 1000),
    bytes_that_are_not_utf8=lambda folder: (folder / SIGNATURE).write_bytes(b'{"mediaType": "\xff"}'),
    something_after_the_bundle=lambda folder: (folder / SIGNATURE).open("a").write("{}"),
)
attacks("bundle", "nested too deeply", nesting=lambda folder: (folder / SIGNATURE).write_text('{"a":' * 40_000))
attacks("bundle", "wanted a JSON object", a_list=lambda folder: (folder / SIGNATURE).write_text("[]"))
attacks("bundle", "bytes, at most", a_huge_signature=lambda folder: sparse(folder / SIGNATURE, 2**40))
attacks(
    "bundle",
    "is a link",
    a_signature_elsewhere=lambda folder: [
        (folder / SIGNATURE).rename(folder.parent / "s"),
        (folder / SIGNATURE).symlink_to("../s"),
    ],
)
attacks(
    "bundle",
    "not a regular file",
    a_pipe_as_the_signature=lambda folder: [(folder / SIGNATURE).unlink(), os.mkfifo(folder / SIGNATURE)],
    a_folder_as_the_signature=lambda folder: [(folder / SIGNATURE).unlink(), (folder / SIGNATURE).mkdir()],
)


@attack("bundle", "the key 'payload' is given twice")
def a_payload_given_twice(folder: Path) -> None:
    text = (folder / SIGNATURE).read_text()
    (folder / SIGNATURE).write_text(text.replace('"payload":', '"payload":"e30=","payload":', 1))


attacks("bundle", "mediaType: wanted", another_version=lambda f: change_bundle(f, lambda b: b.update(mediaType="v0.1")))
attacks("bundle", "'x' does not belong there", a_key_more=lambda f: change_bundle(f, lambda b: b.update(x=1)))
attacks("bundle", "is missing", no_envelope=lambda f: change_bundle(f, lambda b: b.pop("dsseEnvelope")))
attacks(
    "bundle",
    "wanted a signature by a key",
    a_certificate=material(lambda m: [m.pop("publicKey"), m.update(certificate={"rawBytes": "AA=="})]),
)
attacks("bundle", "tlogEntries: wanted none", an_entry_of_a_log=material(lambda m: m["tlogEntries"].append({})))
attacks(
    "bundle",
    "publicKey.hint: wanted 64 hex digits",
    a_hint_that_is_no_fingerprint=material(lambda m: m["publicKey"].update(hint="mine")),
    a_hint_in_capitals=material(lambda m: m["publicKey"].update(hint=m["publicKey"]["hint"].upper())),
)
attacks("bundle", "hint is missing", no_hint=material(lambda m: m.update(publicKey={})))
attacks("bundle", "payloadType: wanted", another_type=dsse(lambda d: d.update(payloadType="application/json")))
attacks(
    "bundle",
    "signatures: wanted one",
    two_signatures=dsse(lambda d: d["signatures"].append(d["signatures"][0])),
    no_signatures=dsse(lambda d: d.update(signatures=[])),
)
attacks("bundle", "keyid: wanted", a_key_id=dsse(lambda d: d["signatures"][0].update(keyid="x")))
attacks(
    "bundle",
    "base64",
    a_payload_that_is_cut=dsse(lambda d: d.update(payload=d["payload"][:-1] if d["payload"][-1] == "=" else "e")),
    a_payload_with_a_line_break=dsse(lambda d: d.update(payload=d["payload"][:40] + "\n" + d["payload"][40:])),
    a_payload_with_unused_bits=dsse(lambda d: d.update(payload="e31=")),
    a_payload_in_another_alphabet=dsse(lambda d: d.update(payload="-_--")),
    a_payload_that_is_a_number=dsse(lambda d: d.update(payload=7)),
    an_empty_payload=dsse(lambda d: d.update(payload="")),
    a_signature_of_no_bytes=dsse(lambda d: d["signatures"][0].update(sig="")),
)

# The signer and the signature.
attacks(
    "signer",
    "it is signed by another key",
    a_strangers_signature=lambda folder: sign_adapter(folder, STRANGER),
    a_strangers_hint=material(lambda m: m["publicKey"].update(hint=STRANGER.public.fingerprint)),
    an_ed25519_signature=lambda folder: sign_adapter(folder, generate_key("ed25519")),
)


def put_signature(folder: Path, signature: bytes) -> None:
    text = base64.b64encode(signature).decode()
    change_bundle(folder, lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig=text))


def payload_of(folder: Path) -> bytes:
    return base64.b64decode(json.loads((folder / SIGNATURE).read_text())["dsseEnvelope"]["payload"])


@attack("signature", "does not hold")
def the_signature_of_another_adapter(folder: Path) -> None:
    other = write_small_adapter(folder.parent / "other.lora", seed=8)
    sign_adapter(other, KEY)
    sig = json.loads((other / SIGNATURE).read_text())["dsseEnvelope"]["signatures"]
    change_bundle(folder, lambda bundle: bundle["dsseEnvelope"].update(signatures=sig))


@attack("signature", "does not hold")
def a_strangers_signature_under_the_trusted_hint(folder: Path) -> None:
    sign_adapter(folder, STRANGER)
    change_bundle(folder, lambda b: b["verificationMaterial"]["publicKey"].update(hint=KEY.public.fingerprint))


@attack("signature", "does not hold")
def a_payload_with_one_digit_changed(folder: Path) -> None:
    payload = bytearray(payload_of(folder))
    payload[payload.index(b'"digest":"') + 10] ^= 1
    changed = base64.b64encode(payload).decode()
    change_bundle(folder, lambda bundle: bundle["dsseEnvelope"].update(payload=changed))


@attack("signature", "does not hold")
def a_text_of_another_type_that_the_key_did_sign(folder: Path) -> None:
    sealed = seal(KEY, "application/vnd.example+json", payload_of(folder))
    (folder / SIGNATURE).write_bytes(encode_bundle(sealed).replace(b"vnd.example", b"vnd.in-toto"))


attacks(
    "signature",
    "does not hold",
    a_signature_without_the_encoding=lambda folder: put_signature(folder, KEY.sign(payload_of(folder))),
    a_signature_of_zeros=lambda folder: put_signature(folder, bytes.fromhex("3006020100020100")),
    a_signature_that_is_cut=lambda folder: put_signature(folder, KEY.sign(b"x")[:-1]),
    a_signature_with_a_tail=lambda folder: put_signature(folder, KEY.sign(b"x") + b"\0"),
    a_signature_of_one_byte=lambda folder: put_signature(folder, b"x"),
    a_huge_signature_value=lambda folder: put_signature(folder, bytes(100_000)),
)


# The statement, by the trusted key: it was stolen, or its owner is hostile.
@attack("files", "was changed after it was signed")
def the_whole_bundle_of_another_adapter(folder: Path) -> None:
    other = write_small_adapter(folder.parent / "other.lora", seed=8)
    sign_adapter(other, KEY)
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)


attacks(
    "statement",
    "wanted 'https://",
    another_kind_of_statement=signed(lambda s: s.update(_type="https://in-toto.io/Statement/v0.1")),
    another_predicate=signed(lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")),
)
attacks(
    "statement",
    "the subject's digest: wanted",
    the_digest_of_another_subject=signed(lambda s: s["subject"][0].update(digest={"sha256": ZEROS})),
    a_digest_of_another_kind=signed(lambda s: s["subject"][0].update(digest={"sha512": ZEROS * 2})),
)
attacks(
    "statement",
    "wanted one subject",
    two_subjects=signed(lambda s: s["subject"].append(s["subject"][0])),
    no_subject=signed(lambda s: s.pop("subject")),
)
attacks(
    "statement", "as its name", a_name_of_control_codes=signed(lambda s: s["subject"][0].update(name="\x1b]0;x\x07"))
)
attacks("statement", "method: wanted 'files'", shards=serialization(method="shards"))
attacks("statement", "hash_type: wanted 'sha256'", blake=serialization(hash_type="blake2b"))
attacks(
    "statement",
    "allow_symlinks: wanted False",
    links_allowed=serialization(allow_symlinks=True),
    a_zero_for_false=serialization(allow_symlinks=0),
)
attacks("statement", "the algorithm of", sha1=resources(lambda r: r[0].update(algorithm="sha1")))
attacks(
    "statement",
    "wanted a SHA-256 of 64 hex digits",
    a_digest_in_capitals=resources(lambda r: r[0].update(digest="A" * 64)),
    a_short_digest=resources(lambda r: r[0].update(digest="00")),
)
attacks(
    "statement",
    "is no plain file name",
    a_path_upwards=resources(lambda r: r.insert(0, {"name": "../x", "algorithm": "sha256", "digest": ZEROS})),
    an_absolute_path=resources(lambda r: r.insert(0, {"name": "/etc/passwd", "algorithm": "sha256", "digest": ZEROS})),
    a_path_downwards=resources(lambda r: r.insert(0, {"name": "A/b", "algorithm": "sha256", "digest": ZEROS})),
    a_path_of_windows=resources(lambda r: r.insert(0, {"name": "A\\b", "algorithm": "sha256", "digest": ZEROS})),
    a_stream_of_windows=resources(lambda r: r.insert(0, {"name": "A:b", "algorithm": "sha256", "digest": ZEROS})),
    the_folder_itself=resources(lambda r: r.insert(0, {"name": ".", "algorithm": "sha256", "digest": ZEROS})),
    no_name=resources(lambda r: r.insert(0, {"name": "", "algorithm": "sha256", "digest": ZEROS})),
    a_nul=resources(lambda r: r.insert(0, {"name": "A\0b", "algorithm": "sha256", "digest": ZEROS})),
)
attacks(
    "statement",
    "is a hidden file",
    a_hidden_resource=resources(lambda r: r.insert(0, {"name": ".env", "algorithm": "sha256", "digest": ZEROS})),
)
attacks(
    "statement",
    "at most 255 bytes",
    a_long_name=resources(lambda r: r.insert(0, {"name": "A" * 256, "algorithm": "sha256", "digest": ZEROS})),
)
attacks("statement", "cannot cover itself", itself=resources(lambda r: r.append(r.pop() | {"name": SIGNATURE})))
attacks("statement", "stands there twice", a_resource_twice=resources(lambda r: r.insert(1, r[0])))
attacks("statement", "in the order of their names", another_order=resources(lambda r: r.reverse()))
attacks(
    "statement",
    "are one name on some disks",
    two_names_that_some_disks_take_for_one=resources(lambda r: r.append({**r[0], "name": "readme.MD"})),
)
attacks(
    "statement",
    "wanted 1 to 256 resources",
    no_resources=resources(lambda r: r.clear()),
    many_resources=resources(lambda r: r.extend({} for _ in range(20_000))),
    resources_that_are_no_list=signed(lambda s: s["predicate"].update(resources={})),
)
attacks("statement", "wanted a name and a digest", a_name_of_a_number=resources(lambda r: r[0].update(name=7)))
attacks("statement", "predicate: wanted an object", no_predicate=signed(lambda s: s.update(predicate=None)))
attacks(
    "statement",
    "not valid JSON",
    a_payload_that_is_no_json=lambda folder: sign_payload(folder, KEY, b"\xff\xfe"),
    not_a_number=lambda folder: sign_payload(folder, KEY, b'{"_type": 1' + b"0" * 5000 + b"}"),
)
attacks("statement", "is given twice", two_types=lambda folder: sign_payload(folder, KEY, b'{"_type":1,"_type":2}'))


@attack("files", "is in the folder and was not signed")
def a_statement_that_would_have_a_file_ignored(folder: Path) -> None:
    (folder / "evil.py").touch()

    change_statement(folder, KEY, lambda s: s["predicate"]["serialization"]["ignore_paths"].append("evil.py"))


# The adapter, signed by the trusted key as it is.
@attack("adapter", "not finite")
def weights_that_are_not_numbers(folder: Path) -> None:
    state = read_adapter_folder(folder).state
    arrays = {name: np.full_like(array, np.nan) for name, array in state.items()}
    for name in ("metadata.json", BIN):
        (folder / name).unlink()
    replace_file(folder / SAFETENSORS, encode_tensors(arrays))
    sign_files_as_they_are(folder)


@attack("adapter", "lora_weights.bin differ")
def two_names_of_different_weights(folder: Path) -> None:
    data = (folder / BIN).read_bytes()
    replace_file(folder / BIN, data[:-1] + b"\0")
    sign_files_as_they_are(folder)


@attack("adapter", "disagree on rank")
def a_rank_that_is_not_the_weights(folder: Path) -> None:
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text.replace('"r": 4', '"r": 5'))
    sign_files_as_they_are(folder)


def put_archive_in_its_place(folder: Path, kind: str) -> None:
    """The folder, packed with 32 MiB of zeros beside it: what unpacked it would read them."""
    (folder / "zeros").write_bytes(bytes(32 * 2**20))
    packed = shutil.make_archive(str(folder.with_name("packed")), kind, folder)
    shutil.rmtree(folder)
    Path(packed).rename(folder)


@attack("bundle", "Not a directory")
def a_zip_in_its_place(folder: Path) -> None:
    put_archive_in_its_place(folder, "zip")


@attack("bundle", "Not a directory")
def a_compressed_tar_in_its_place(folder: Path) -> None:
    put_archive_in_its_place(folder, "gztar")


@attack("bundle", "Not a directory")
def a_plain_tar_in_its_place(folder: Path) -> None:
    put_archive_in_its_place(folder, "tar")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = write_small_adapter(tmp_path / "mine.lora")
    sign_adapter(path, KEY)
    verify_adapter(path, only(KEY.public))
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_at_its_step_in_bounded_time_and_memory(folder: Path, name: str) -> None:
    step, refusal, function = ATTACKS[name]
    function(folder)
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(SignatureError) as caught:
            verify_adapter(folder, only(KEY.public))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.step == step
    assert refusal in caught.value.message
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert time.monotonic() - start < 5
    assert peak < 32 * 2**20


def test_whoever_is_refused_after_the_bundle_was_read_is_named_by_the_fingerprint(folder: Path) -> None:
    (folder / "extra").touch()
    with pytest.raises(SignatureError, match=f"step 5 of 6, files: .*sha256:{KEY.public.fingerprint}"):
        verify_adapter(folder, only(KEY.public))


def test_a_folder_may_be_renamed_and_copied(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "copy")  # as a file system without hard links does
    verify_adapter(folder.parent / "copy", only(KEY.public))
    assert statement_of(folder.parent / "copy") == statement_of(folder)


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(ATTACKS) >= 100
