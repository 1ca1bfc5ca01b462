"""Signing and verifying: what was signed verifies, the same bytes each time, and only by the key that signed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from signed_adapters import statement_of, write_small_adapter

from neuralforge_common.errors import AdapterError, SignatureError, StorageError
from neuralforge_common.folder import SIGNATURE, read_adapter_folder, write_adapter_folder
from neuralforge_common.signing.envelope import decode_bundle, encode_bundle, seal
from neuralforge_common.signing.keys import (
    KINDS,
    Kind,
    SigningKey,
    decode_public_key,
    decode_signing_key,
    generate_key,
    read_public_key,
    write_key_pair,
)
from neuralforge_common.signing.manifest import Manifest
from neuralforge_common.signing.sign import sign_adapter
from neuralforge_common.signing.statement import PAYLOAD_TYPE, decode_statement, encode_statement
from neuralforge_common.signing.verify import only, verify_adapter

KEYS = {kind: generate_key(kind) for kind in KINDS}

# RFC 6979, A.2.5: P-256, SHA-256, the message "sample".
RFC_PRIVATE = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
RFC_R = "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
RFC_S = "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_adapter(tmp_path / "mine.lora")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_signed_verifies_and_tells_the_key(folder: Path, kind: Kind) -> None:
    key = KEYS[kind]
    signed = sign_adapter(folder, key)
    verified = verify_adapter(folder, only(key.public))
    assert verified.key == key.public
    assert verified.manifest == signed.manifest
    assert verified.adapter.state == read_adapter_folder(folder).state


def test_every_file_is_covered_under_every_name_that_it_has(folder: Path) -> None:
    sign_adapter(folder, KEYS["p256"])
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del found[SIGNATURE]
    signed = {entry["name"]: entry["digest"] for entry in statement_of(folder)["predicate"]["resources"]}
    assert signed == found
    assert {"lora_weights.bin", "adapter_model.safetensors", "README.md"} < signed.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_signing_again_gives_the_same_bytes_wherever_the_folder_lies(tmp_path: Path, folder: Path, kind: Kind) -> None:
    sign_adapter(folder, KEYS[kind])
    first = (folder / SIGNATURE).read_bytes()
    sign_adapter(folder, KEYS[kind])
    assert (folder / SIGNATURE).read_bytes() == first
    elsewhere = tmp_path / "other-name"
    shutil.copytree(folder, elsewhere)
    sign_adapter(elsewhere, KEYS[kind])
    assert (elsewhere / SIGNATURE).read_bytes() == first


def test_ecdsa_takes_its_nonce_from_key_and_message() -> None:
    private = ec.derive_private_key(RFC_PRIVATE, ec.SECP256R1())
    signature = SigningKey(private).sign(b"sample")
    assert [format(number, "064X") for number in decode_dss_signature(signature)] == [RFC_R, RFC_S]


def test_the_signature_is_over_dsses_encoding_as_openssl_checks_it(tmp_path: Path, folder: Path) -> None:
    sign_adapter(folder, KEYS["p256"])
    dsse = json.loads((folder / SIGNATURE).read_bytes())["dsseEnvelope"]
    payload = base64.b64decode(dsse["payload"])
    (tmp_path / "message").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(dsse["signatures"][0]["sig"]))
    (tmp_path / "key.pub").write_bytes(KEYS["p256"].public.pem)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "signature", "message"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "Verified OK\n"


def test_the_subjects_digest_is_over_the_digests_in_order_of_names(folder: Path) -> None:
    sign_adapter(folder, KEYS["p256"])
    statement = statement_of(folder)
    names = [entry["name"] for entry in statement["predicate"]["resources"]]
    assert names == sorted(names)
    total = hashlib.sha256(b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in names))
    assert statement["subject"] == [{"name": "mine", "digest": {"sha256": total.hexdigest()}}]


@settings(max_examples=40)
@given(
    name=st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_categories=["C"]), max_size=40),
    files=st.dictionaries(
        st.from_regex(r"[a-z0-9_ä][a-zé0-9_. -]{0,20}", fullmatch=True).filter(lambda name: name != SIGNATURE),
        st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
        min_size=1,
        max_size=8,
    ),
)
def test_reading_a_statement_undoes_writing_it(name: str, files: dict[str, str]) -> None:
    manifest = Manifest(files)
    assert decode_statement(encode_statement(name, manifest)) == (name, manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_a_bundle_can_be_flipped(folder: Path, kind: Kind) -> None:
    key = KEYS[kind]
    whole = encode_bundle(seal(key, PAYLOAD_TYPE, encode_statement("x", Manifest({"a": "0" * 64}))))
    assert decode_bundle(whole, payload_type=PAYLOAD_TYPE, what="x").is_by(key.public)
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            try:
                envelope = decode_bundle(bytes(changed), payload_type=PAYLOAD_TYPE, what="x")
            except AdapterError:
                continue
            assert envelope.fingerprint != key.public.fingerprint or not envelope.is_by(key.public), (place, bit)


def test_an_unsound_adapter_is_not_signed(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        sign_adapter(folder, KEYS["p256"])
    assert not (folder / SIGNATURE).exists()


@pytest.mark.parametrize(
    ("plant", "refusal"),
    [
        (lambda folder: (folder / ".git").mkdir(), "'.git' is a folder"),
        (lambda folder: (folder / "notes").mkdir(), "'notes' is a folder"),
        (lambda folder: (folder / ".hidden").touch(), "'.hidden' is a hidden file"),
        (lambda folder: (folder / "link").symlink_to("README.md"), "'link' is a link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "'pipe' is no file"),
        (lambda folder: (folder / "a\nb").touch(), r"'a\\nb' is no plain file name"),
        (lambda folder: [(folder / f"{i}.txt").touch() for i in range(300)], "more than 256 files"),
    ],
)
def test_what_could_not_be_verified_is_not_signed(folder: Path, plant: object, refusal: str) -> None:
    plant(folder)  # type: ignore[operator]
    with pytest.raises(AdapterError, match=refusal):
        sign_adapter(folder, KEYS["p256"])
    assert not (folder / SIGNATURE).exists()


def test_a_draft_that_a_power_cut_left_is_cleaned_up_by_signing_again(folder: Path) -> None:
    (folder / f".{SIGNATURE}.{'0' * 16}.new").write_bytes(b"half")
    sign_adapter(folder, KEYS["p256"])
    verify_adapter(folder, only(KEYS["p256"].public))


def test_signing_with_another_key_says_whose_signature_it_replaces(folder: Path) -> None:
    assert sign_adapter(folder, KEYS["p256"]).replaced is None
    assert sign_adapter(folder, KEYS["p256"]).replaced is None
    assert sign_adapter(folder, KEYS["ed25519"]).replaced == KEYS["p256"].public.fingerprint
    with pytest.raises(SignatureError, match="signed by another key"):
        verify_adapter(folder, only(KEYS["p256"].public))


def test_an_adapter_written_in_the_place_of_a_signed_one_is_not_signed(folder: Path) -> None:
    sign_adapter(folder, KEYS["p256"])
    old = read_adapter_folder(folder)
    write_adapter_folder(folder, spec=old.spec, state=old.state, metadata=old.metadata)
    with pytest.raises(SignatureError, match="it is not signed"):
        verify_adapter(folder, only(KEYS["p256"].public))


def test_a_fingerprint_is_what_sha256sum_prints_of_the_public_key(tmp_path: Path) -> None:
    key = KEYS["p256"]
    write_key_pair(tmp_path / "my.key", key, passphrase=None, replace=False)
    assert hashlib.sha256((tmp_path / "my.pub").read_bytes()).hexdigest() == key.public.fingerprint
    assert read_public_key(tmp_path / "my.pub") == key.public


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_reads_back_and_a_locked_one_only_with_its_passphrase(kind: Kind) -> None:
    key = KEYS[kind]
    assert decode_signing_key(key.to_pem(None), "k").public == key.public
    locked = key.to_pem("pässword")
    assert decode_signing_key(locked, "k", "pässword").public == key.public
    for wrong in (None, "", "password"):
        with pytest.raises(StorageError, match="not the passphrase"):
            decode_signing_key(locked, "k", wrong)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain), public


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["p384", "rsa"]
)
def test_keys_of_other_kinds_are_refused(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    private, public = _pem(key)
    with pytest.raises(StorageError, match=r"wanted a key on P-256 or Ed25519, got (secp384r1|RSAPrivateKey)"):
        decode_signing_key(private, "k")
    with pytest.raises(StorageError, match=r"wanted a key on P-256 or Ed25519, got (secp384r1|RSAPublicKey)"):
        decode_public_key(public, "k")


def test_a_private_key_given_as_a_public_one_is_called_one() -> None:
    with pytest.raises(StorageError, match="is a private key: wanted the public one"):
        decode_public_key(KEYS["p256"].to_pem(None), "k")
    with pytest.raises(StorageError, match="holds no public key"):
        decode_public_key(b"nothing", "k")


@pytest.mark.parametrize("there", ["my.key", "my.pub"])
def test_neither_half_of_a_key_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(StorageError, match=f"{there} is there already"):
        write_key_pair(tmp_path / "my.key", KEYS["p256"], passphrase=None, replace=False)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_no_repr_of_a_key_shows_it() -> None:
    assert repr(KEYS["p256"]) == "SigningKey()"
