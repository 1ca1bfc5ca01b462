"""Clients against a registry over real TLS: what a person publishes another pulls, whatever the registry tries."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from counting_proxy import CountingProxy, counting_proxy, wait_for_part
from enrolment_rig import now
from registry_rig import ALICE, MALLORY, RegistryRig, files_of, make_adapter, registry_rig

from neuralforge.federation.join import join
from neuralforge.registry.connection import TOKEN_VARIABLE, connected, login
from neuralforge.registry.home import INDEXES, PULLS, TOKEN, known_registry
from neuralforge.registry.publish import prepare, publish, publishing_team
from neuralforge.registry.pull import Pulled, pull
from neuralforge.registry.search import search
from neuralforge.registry.yank import yank
from neuralforge_common.address import FederationAddress
from neuralforge_common.errors import NeuralForgeError, RegistryError, SignatureError, StorageError, UsageError
from neuralforge_common.folder import SIGNATURE, read_adapter_folder, write_adapter_folder
from neuralforge_common.registry.index import Index, read_index, sign_index
from neuralforge_common.registry.release import ReleaseFile, ReleaseName, release_digest
from neuralforge_common.signing.keys import SigningKey, decode_signing_key
from neuralforge_common.signing.sign import sign_adapter
from neuralforge_common.signing.trust import Keyring, Signer
from neuralforge_common.signing.verify import only
from neuralforge_server.enrolment import serve_enrolment
from neuralforge_server.registry.access import Caller

SPRING = ReleaseName.parse("blue/spring")


def large_adapter(path: Path) -> Path:
    """An adapter with a file of 2 MB that nothing can compress."""
    made = read_adapter_folder(make_adapter(path, key=None))
    tokens = json.dumps({"noise": random.Random(1).randbytes(1_000_000).hex()}).encode()
    write_adapter_folder(path, spec=made.spec, state=made.state, metadata=made.metadata, tokenizer_json=tokens)
    sign_adapter(path, ALICE)
    return path


@contextmanager
def cut_once_here(proxy: CountingProxy, place: Path, size: int) -> Iterator[None]:
    """Once what the proxy let through lies below `place`, cut its connections and count anew what new ones pass."""

    def watch() -> None:
        assert proxy.reached.wait(60)
        wait_for_part(place, size)
        proxy.reset()
        proxy.cut_all()

    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(watch)
        yield
        cut.result()


def believes(*keys: SigningKey, team: str = "blue") -> Keyring:
    signers = (Signer(name=f"signer-{n}", key=key.public, added=now(), teams=(team,)) for n, key in enumerate(keys))
    return Keyring(tuple(signers))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RegistryRig]:
    with registry_rig(tmp_path) as made:
        yield made


@dataclass
class Machine:
    """Somebody's machine: a home, and perhaps a token."""

    home: Path
    address: FederationAddress
    environ: dict[str, str]

    def publish(self, folder: Path, *, visibility: str = "team", **named: object) -> ReleaseName:
        with self.connected() as connection:
            publication = prepare(folder, only(ALICE.public))
            release = publication.release(publishing_team(connection, None))
            publish(connection, publication, release, visibility=visibility, **named)
            return release

    def pull(self, wanted: ReleaseName, output: Path, *, keyring: Keyring | None = None, **named: object) -> Pulled:
        with self.connected() as connection:
            ring = believes(ALICE) if keyring is None else keyring
            return pull(connection, wanted, output, keyring=ring, **{"now": now(), **named})

    def search(self, text: str = "", **wanted: object) -> list[str]:
        with self.connected() as connection:
            return [str(each.release) for each in search(connection, text, **wanted)]

    def connected(self):  # type: ignore[no-untyped-def]
        return connected(known_registry(None, home=self.home), home=self.home, environ=self.environ)

    def refused(self, step: str, output: Path, wanted: ReleaseName = SPRING, **named: object) -> str:
        """Pull what must be refused at a step; nothing is left where it would have been."""
        with pytest.raises(SignatureError) as caught:
            self.pull(wanted, output, **named)
        assert caught.value.step == step
        assert f", {step}: " in caught.value.message
        assert [path.name for path in output.parent.glob(f"*{output.name}*")] == []
        return caught.value.message


def machine(
    rig: RegistryRig, home: Path, *, team: str | None = "blue", scope: str = "publish", port: int = 0
) -> Machine:
    address = FederationAddress(
        host="127.0.0.1", port=port or rig.running.port, fingerprint=rig.state.address(1).fingerprint
    )
    environ = {} if team is None else {TOKEN_VARIABLE: rig.registry.access.make_token(team, scope, life=3600.0)[1]}
    login(address, home=home, environ=environ)
    return Machine(home, address, environ)


@pytest.fixture
def alice(rig: RegistryRig, tmp_path: Path) -> Machine:
    return machine(rig, tmp_path / "alice")


@pytest.fixture
def bob(rig: RegistryRig, tmp_path: Path) -> Machine:
    return machine(rig, tmp_path / "bob", scope="read")


def index_key(rig: RegistryRig) -> SigningKey:
    path = rig.state.path / "registry" / "index.key"
    return decode_signing_key(path.read_bytes(), str(path))


def serve_index(rig: RegistryRig, index: Index, key: SigningKey | None = None) -> None:
    """Let the registry answer with this index, whatever it holds."""
    data = sign_index(index, key or index_key(rig))
    rig.registry.index.signed = lambda caller: data  # type: ignore[method-assign]


def seen_by(rig: RegistryRig, team: str = "blue", scope: str = "read") -> Index:
    return read_index(rig.registry.index.signed(Caller(name="x", teams={team: scope})), rig.registry.index.key)


def test_what_one_publishes_another_finds_and_pulls_byte_for_byte(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a.lora")
    assert str(alice.publish(folder, tags=["spring", "java"])) == "blue/spring@1.0.0"
    assert bob.search("spring boot", language="java") == ["blue/spring@1.0.0"]
    assert bob.search(tags=["go"]) == []
    pulled = bob.pull(SPRING, tmp_path / "b.lora")
    assert files_of(tmp_path / "b.lora") == files_of(folder)
    assert pulled.signer.name == "signer-0"
    assert (tmp_path / "b.lora" / "lora_weights.bin").samefile(tmp_path / "b.lora" / "adapter_model.safetensors")
    assert [*(bob.home / "registries").glob(f"*/{PULLS}/*")] == []


def test_a_member_of_another_team_cannot_tell_what_is_private_from_what_is_not(
    rig: RegistryRig, alice: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    for stranger in (machine(rig, tmp_path / "eve", team="red"), machine(rig, tmp_path / "nobody", team=None)):
        assert stranger.search() == []
        there = stranger.refused("entry", tmp_path / "b.lora")
        missing = stranger.refused("entry", tmp_path / "b.lora", ReleaseName.parse("blue/nothing"))
        assert there.replace("spring", "nothing") == missing


def test_a_machine_that_has_joined_the_federation_needs_no_token(
    rig: RegistryRig, alice: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    enrolment = serve_enrolment(
        rig.state,
        rig.identities,
        **{
            "federation": "team",
            "host": "127.0.0.1",
            "port": 0,
            "member_port": 0,
            "fleet_port": 8472,
            "clock": rig.clock,
        },
    )
    try:
        address = replace(alice.address, port=enrolment.port)
        join(address, rig.identities.invite("laptop"), home=tmp_path / "carol")
    finally:
        enrolment.stop(0)
    rig.registry.access.add_member("blue", "laptop", "read")
    carol = machine(rig, tmp_path / "carol", team=None)
    with carol.connected() as connection:
        assert connection.caller == "member:laptop"
    carol.pull(SPRING, tmp_path / "c.lora")


def test_a_byte_that_was_flipped_in_the_store_is_noticed(
    rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    for file in rig.registry.releases.resolve(SPRING, Caller(name="x", teams={"blue": "read"})).files:
        blob = rig.blob(file.sha256)
        sound = blob.read_bytes()
        blob.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        assert "is not what was published" in bob.refused("blobs", tmp_path / "b.lora")
        blob.write_bytes(sound)
    bob.pull(SPRING, tmp_path / "b.lora")


def test_other_bytes_that_a_registry_sends_are_thrown_away(
    rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    honest = rig.registry.blobs.read

    def altered(digest: str, size: int, *, offset: int = 0) -> Iterator[bytes]:
        for chunk in honest(digest, size, offset=offset):
            yield bytes([chunk[0] ^ 1]) + chunk[1:]

    rig.registry.blobs.read = altered  # type: ignore[method-assign]
    assert "other bytes came in" in bob.refused("blobs", tmp_path / "b.lora")
    rig.registry.blobs.read = lambda *a, **k: (part for _ in range(2) for part in honest(*a, **k))  # type: ignore
    bob.refused("blobs", tmp_path / "b.lora")
    rig.registry.blobs.read = honest  # type: ignore[method-assign]
    bob.pull(SPRING, tmp_path / "b.lora")


def test_a_replayed_index_is_refused(rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    old = rig.registry.index.signed(Caller(name="x", teams={"blue": "read"}))
    alice.publish(make_adapter(tmp_path / "a2.lora", version="1.0.1"))
    bob.pull(SPRING, tmp_path / "b.lora")
    rig.registry.index.signed = lambda caller: old  # type: ignore[method-assign]
    bob.refused("rollback", tmp_path / "c.lora")


def test_an_expired_index_is_refused(rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    serve_index(rig, replace(seen_by(rig), expires=now().replace(microsecond=0) - timedelta(seconds=1)))
    bob.refused("expiry", tmp_path / "b.lora")


def test_an_index_by_another_key_is_refused(rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    serve_index(rig, seen_by(rig), MALLORY)
    bob.refused("index", tmp_path / "b.lora")


def test_a_registry_that_takes_back_what_it_said_is_refused(
    rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    bob.pull(SPRING, tmp_path / "b.lora")
    (kept,) = (bob.home / "registries").glob(f"*/{INDEXES}/*.json")
    seen = read_index(kept.read_bytes(), index_key(rig).public)
    serve_index(rig, replace(seen, version=seen.version + 1, entries=()))
    assert "is gone" in bob.refused("history", tmp_path / "c.lora")
    (entry,) = seen.entries
    serve_index(rig, replace(seen, version=seen.version + 1, entries=(replace(entry, digest="f" * 64),)))
    assert "has other files" in bob.refused("history", tmp_path / "c.lora")
    # Whoever knows that a backup was restored says so, and begins anew.
    login(bob.address, home=bob.home, environ=bob.environ, anew=True)
    bob.refused("release", tmp_path / "c.lora")


def test_what_is_remembered_and_was_changed_here_is_no_memory(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    bob.pull(SPRING, tmp_path / "b.lora")
    (kept,) = (bob.home / "registries").glob(f"*/{INDEXES}/*.json")
    kept.write_bytes(kept.read_bytes().replace(b"dsseEnvelope", b"dsseenvelope"))
    with pytest.raises(StorageError, match="is damaged"):
        bob.pull(SPRING, tmp_path / "c.lora")


def test_a_swapped_signature_is_refused_by_those_who_do_not_trust_the_key(
    rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path
) -> None:
    # Whoever runs the registry puts a signature of their own into the store, and signs an index over it.
    folder = make_adapter(tmp_path / "a.lora")
    alice.publish(folder)
    sign_adapter(folder, MALLORY)
    forged = (folder / SIGNATURE).read_bytes()
    digest = hashlib.sha256(forged).hexdigest()
    release = rig.registry.releases.resolve(SPRING, Caller(name="x", teams={"blue": "read"}))
    files = [f for f in release.files if f.name != SIGNATURE]
    files.append(ReleaseFile(name=SIGNATURE, sha256=digest, size=len(forged)))
    rig.registry.blobs.put(digest, folder / SIGNATURE)
    size = sum({file.sha256: file.size for file in files}.values())
    with sqlite3.connect(rig.state.path / "registry" / "registry.db") as database:
        database.execute(
            "UPDATE release_files SET sha256 = ?, size = ? WHERE name = ?", (digest, len(forged), SIGNATURE)
        )
        database.execute("UPDATE releases SET digest = ?, size = ?", (release_digest(files), size))
    database.close()
    assert "step 2 of 6, signer" in bob.refused("signature", tmp_path / "b.lora")
    assert f"sha256:{MALLORY.public.fingerprint}" in bob.refused("signature", tmp_path / "b.lora")


def test_a_signer_of_another_team_is_not_one_of_this(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    for ring in (believes(), believes(ALICE, team="red"), believes(MALLORY)):
        bob.refused("signature", tmp_path / "b.lora", keyring=ring)
    revoked = believes(ALICE).without("signer-0", now=now(), reason="stolen")
    assert "stolen" in bob.refused("signature", tmp_path / "b.lora", keyring=revoked)


def test_one_adapter_is_not_passed_off_as_another(
    rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    with sqlite3.connect(rig.state.path / "registry" / "registry.db") as database:
        database.execute("UPDATE releases SET name = 'shiny'")
    database.close()
    assert "what was signed is spring 1.0.0" in bob.refused(
        "name", tmp_path / "b.lora", ReleaseName.parse("blue/shiny")
    )


def test_a_yanked_version_is_pulled_by_its_number_alone(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    newer = alice.publish(make_adapter(tmp_path / "a2.lora", version="1.0.1"))
    with alice.connected() as connection:
        yank(connection, newer, reason="wrong data")
    latest = bob.pull(SPRING, tmp_path / "b.lora")
    assert (str(latest.listing.release.version), latest.yanked) == ("1.0.0", False)
    named = bob.pull(newer, tmp_path / "c.lora")
    assert (named.yanked, named.listing.yank_reason) == (True, "wrong data")
    with alice.connected() as connection:
        yank(connection, ReleaseName.parse("blue/spring@1.0.0"), reason="")
        with pytest.raises(UsageError):
            yank(connection, SPRING, reason="")
    assert "every version of it was yanked" in bob.refused("entry", tmp_path / "d.lora")


def test_what_is_in_the_way_is_not_overwritten(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    mine = make_adapter(tmp_path / "mine.lora", name="mine")
    before = files_of(mine)
    with pytest.raises(StorageError, match="something of this name is there"):
        bob.pull(SPRING, mine)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError):
        bob.pull(SPRING, tmp_path / "home", replace=True)
    assert files_of(mine) == before
    bob.pull(SPRING, mine, replace=True)
    assert files_of(mine) == files_of(tmp_path / "a.lora")


def test_an_upload_goes_on_where_the_connection_broke(rig: RegistryRig, bob: Machine, tmp_path: Path) -> None:
    folder = large_adapter(tmp_path / "a.lora")
    with counting_proxy(rig.running.port) as proxy:
        alice = machine(rig, tmp_path / "alice", port=proxy.port)
        proxy.reset(up=1_200_000)
        shown: list[int] = []
        with cut_once_here(proxy, rig.state.path, 1_000_000):
            alice.publish(folder, progress=lambda done, total: shown.append(done))
        # What was here is not sent again.
        assert proxy.up < 1_300_000
    assert max(shown) == shown[-1]
    bob.pull(SPRING, tmp_path / "b.lora")
    assert files_of(tmp_path / "b.lora") == files_of(folder)


def test_a_pull_goes_on_where_the_connection_broke(rig: RegistryRig, alice: Machine, tmp_path: Path) -> None:
    folder = large_adapter(tmp_path / "a.lora")
    alice.publish(folder)
    with counting_proxy(rig.running.port) as proxy:
        bob = machine(rig, tmp_path / "bob", port=proxy.port)
        proxy.reset(down=1_200_000)
        with cut_once_here(proxy, bob.home, 1_000_000):
            bob.pull(SPRING, tmp_path / "b.lora")
        assert proxy.down < 1_300_000
    assert files_of(tmp_path / "b.lora") == files_of(folder)


def test_what_nobody_goes_on_with_is_removed_in_a_week(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    bob.refused("signature", tmp_path / "b.lora", keyring=Keyring())
    (left,) = (bob.home / "registries").glob(f"*/{PULLS}/*")
    assert len([*left.iterdir()]) == 5
    alice.publish(make_adapter(tmp_path / "go.lora", name="go"))
    bob.pull(ReleaseName.parse("blue/go"), tmp_path / "c.lora")
    assert left.exists()
    week_ago = left.stat().st_mtime - 8 * 24 * 3600
    os.utime(left, (week_ago, week_ago))
    bob.pull(ReleaseName.parse("blue/go"), tmp_path / "d.lora")
    assert not left.exists()


def test_a_registry_that_was_made_anew_is_noticed(rig: RegistryRig, bob: Machine) -> None:
    rig.registry.index._key = MALLORY
    with pytest.raises(RegistryError, match="with another key than it did"), bob.connected():
        pass
    login(bob.address, home=bob.home, environ=bob.environ, anew=True)
    with bob.connected():
        pass


def test_a_token_is_kept_for_its_owner_alone(rig: RegistryRig, tmp_path: Path) -> None:
    made = machine(rig, tmp_path / "dora", team=None)
    login(made.address, home=made.home, environ={}, token=rig.registry.access.make_token("blue", "read", life=60.0)[1])
    (token,) = made.home.glob(f"registries/*/{TOKEN}")
    assert token.stat().st_mode & 0o777 == 0o600
    with made.connected() as connection:
        assert connection.caller.startswith("token:")
    token.chmod(0o644)
    with pytest.raises(StorageError, match="others than its owner"), made.connected():
        pass


def test_a_token_that_does_not_count_changes_nothing(rig: RegistryRig, bob: Machine) -> None:
    before = sorted(bob.home.rglob("*"))
    with pytest.raises(RegistryError) as caught:
        login(bob.address, home=bob.home, environ={}, token="nfr_wrong")
    assert caught.value.status == "UNAUTHENTICATED"
    assert sorted(bob.home.rglob("*")) == before


def test_another_authority_is_refused_before_a_token_is_shown(rig: RegistryRig, tmp_path: Path) -> None:
    address = FederationAddress(host="127.0.0.1", port=rig.running.port, fingerprint="0" * 64)
    with pytest.raises(RegistryError, match="has another authority"):
        login(address, home=tmp_path / "h", environ={TOKEN_VARIABLE: "nfr_secret"})
    with pytest.raises(UsageError, match="has no fingerprint"):
        login(replace(address, fingerprint=None), home=tmp_path / "h", environ={})
    assert not (tmp_path / "h").exists()


def test_a_reader_may_neither_publish_nor_yank(alice: Machine, bob: Machine, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a.lora")
    release = alice.publish(folder)
    with pytest.raises(RegistryError, match="may publish for no team"):
        bob.publish(folder)
    with bob.connected() as connection:
        with pytest.raises(RegistryError) as caught:
            publish(connection, prepare(folder, only(ALICE.public)), release, visibility="team")
        assert caught.value.status == "PERMISSION_DENIED"
        with pytest.raises(NeuralForgeError):
            yank(connection, release, reason="no")
    with pytest.raises(RegistryError, match="was published before"):
        alice.publish(folder)


def test_what_the_registry_says_of_an_adapter_drives_no_terminal(
    rig: RegistryRig, alice: Machine, bob: Machine, tmp_path: Path
) -> None:
    alice.publish(make_adapter(tmp_path / "a.lora"))
    with sqlite3.connect(rig.state.path / "registry" / "registry.db") as database:
        database.execute("UPDATE releases SET author = ?", ("\x1b[2Jeve",))
    database.close()
    with pytest.raises(RegistryError, match="cannot be: author"):
        bob.search()
