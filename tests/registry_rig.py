"""Registries on loopback: real state folders, real TLS, real signed adapters, and clients of the bare protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from enrolment_rig import Clock, now

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.certificates import certificate_pem, issue_node_certificate, openssh_public_key, private_pem
from neuralforge_common.folder import AdapterMetadata, Evaluation, Scores, write_adapter_folder
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.protocol import registry_pb2_grpc as services
from neuralforge_common.signing.keyring_file import change_keyring
from neuralforge_common.signing.keys import SigningKey, generate_key
from neuralforge_common.signing.sign import sign_adapter
from neuralforge_common.signing.trust import Signer
from neuralforge_server.identity import Identities
from neuralforge_server.registry.access import Scope
from neuralforge_server.registry.place import Registry, open_registry
from neuralforge_server.registry.published import Quota
from neuralforge_server.registry.serve import RunningRegistry, serve_registry
from neuralforge_server.registry.streams import Streams
from neuralforge_server.state_folder import ServerState, create_state_folder

ALICE, MALLORY = generate_key("p256"), generate_key("p256")
BETTER = Evaluation(base=Scores(perplexity=9.0), adapter=Scores(perplexity=6.0), samples=40)


def make_adapter(path: Path, *, key: SigningKey | None = ALICE, seed: int = 0, **fields: object) -> Path:
    """A small adapter, evaluated and signed unless told otherwise."""
    spec = AdapterSpec(
        base="nf-tiny", rank=2, alpha=4, target_modules=("q_proj",), base_fingerprint="sha256:" + "a" * 64
    )
    random, module = np.random.default_rng(seed), "base_model.model.model.layers.0.self_attn.q_proj"
    state = AdapterState(
        {
            f"{module}.lora_A.weight": random.standard_normal((2, 16)).astype(np.float32),
            f"{module}.lora_B.weight": random.standard_normal((16, 2)).astype(np.float32),
        }
    )
    metadata = replace(AdapterMetadata(name="spring", evaluation=BETTER, description="Spring Boot"), **fields)
    write_adapter_folder(path, spec=spec, state=state, metadata=metadata)
    if key is not None:
        sign_adapter(path, key)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@dataclass
class Person:
    """A client of the bare protocol."""

    stub: services.RegistryStub
    metadata: tuple[tuple[str, str], ...] = ()

    def call(self, method: str, request: object) -> object:
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=30)

    def begin(
        self,
        files: dict[str, bytes],
        *,
        team: str = "blue",
        visibility: int = messages.TEAM,
        tags: tuple[str, ...] = (),
        languages: tuple[str, ...] = (),
        **claims: str,
    ) -> messages.BeginPublishReply:
        told = json.loads(files["metadata.json"])
        return self.call(
            "BeginPublish",
            messages.BeginPublishRequest(
                team=team,
                name=claims.get("name", told["name"]),
                version=claims.get("version", told["version"]),
                visibility=visibility,
                tags=tags,
                languages=languages,
                files=[
                    messages.File(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                    for name, data in files.items()
                ],
            ),
        )

    def upload(self, upload: str, data: bytes, *, offset: int = 0, part: int = 4096) -> int:
        def parts() -> Iterator[messages.UploadPart]:
            digest = hashlib.sha256(data).hexdigest()
            yield messages.UploadPart(start=messages.UploadStart(upload=upload, sha256=digest, offset=offset))
            for start in range(offset, len(data), part):
                yield messages.UploadPart(data=data[start : start + part])

        return self.stub.Upload(parts(), metadata=self.metadata, timeout=30).bytes

    def finish(self, upload: str) -> messages.FinishPublishReply:
        return self.call("FinishPublish", messages.FinishPublishRequest(upload=upload))

    def publish(self, folder: Path, **claims: object) -> messages.FinishPublishReply:
        files = files_of(folder)
        begun = self.begin(files, **claims)
        held = {each.sha256: each.bytes for each in begun.held}
        for data in {hashlib.sha256(data).hexdigest(): data for data in files.values()}.values():
            there = held[hashlib.sha256(data).hexdigest()]
            if there < len(data):
                self.upload(begun.upload, data, offset=there)
        return self.finish(begun.upload)

    def resolve(self, name: str = "spring", version: str = "", *, team: str = "blue") -> messages.Release:
        return self.call("Resolve", messages.ResolveRequest(team=team, name=name, version=version))

    def download(self, release: messages.Release, file: str, *, offset: int = 0) -> bytes:
        request = messages.DownloadRequest(
            team=release.team, name=release.name, version=release.version, file=file, offset=offset
        )
        return b"".join(part.data for part in self.stub.Download(request, metadata=self.metadata, timeout=30))

    def search(self, **wanted: object) -> list[str]:
        reply = self.call("Search", messages.SearchRequest(**wanted))
        return [f"{each.team}/{each.name}@{each.version}" for each in reply.releases]

    def index(self) -> bytes:
        parts = self.stub.Index(messages.IndexRequest(), metadata=self.metadata, timeout=30)
        return b"".join(part.data for part in parts)


def refusal(call: object, *arguments: object, **named: object) -> grpc.RpcError:
    """The error that a call ends with."""
    try:
        call(*arguments, **named)
    except grpc.RpcError as error:
        return error
    raise AssertionError("it was not refused")


def code(call: object, *arguments: object, **named: object) -> str:
    return refusal(call, *arguments, **named).code().name


@dataclass
class RegistryRig:
    """A registry that answers, with the teams blue (signer alice) and red."""

    state: ServerState
    identities: Identities
    registry: Registry
    running: RunningRegistry
    clock: Clock
    stack: ExitStack = field(repr=False)

    def member(self, name: str, team: str | None = None, scope: Scope = "publish") -> Person:
        """A node of the federation, with its certificate."""
        key, serial = ec.generate_private_key(ec.SECP384R1()), x509.random_serial_number()
        self.identities.join(self.identities.invite(name), openssh_public_key(key.public_key()), serial)
        certificate = issue_node_certificate(self.state.authority, key.public_key(), name, serial, now())
        if team is not None:
            self.registry.access.add_member(team, name, scope)
        pair = private_pem(key), certificate_pem(certificate)
        return Person(self._stub(self.running.member_port, *pair))

    def token(self, team: str, scope: Scope = "publish", life: float = 3600) -> Person:
        _, text = self.registry.access.make_token(team, scope, life=life)
        return self.bearer(text)

    def bearer(self, text: str) -> Person:
        return Person(self._stub(self.running.port), (("authorization", f"Bearer {text}"),))

    def stranger(self) -> Person:
        return Person(self._stub(self.running.port))

    def blob(self, digest: str) -> Path:
        return self.state.path / "registry" / "blobs" / digest[:2] / digest

    def _stub(self, port: int, key: bytes | None = None, certificate: bytes | None = None) -> services.RegistryStub:
        credentials = grpc.ssl_channel_credentials(self.state.authority_pem, key, certificate)
        return services.RegistryStub(self.stack.enter_context(grpc.secure_channel(f"localhost:{port}", credentials)))


@contextmanager
def registry_rig(
    place: Path, *, quota: Quota | None = None, database: str | None = None, streams: Streams | None = None
) -> Iterator[RegistryRig]:
    folder, clock = place / "nf-server", Clock()
    state = create_state_folder(folder, hosts=("localhost", "127.0.0.1"), config="", now=now())
    with ExitStack() as stack:
        identities = Identities(state.identities_path, clock=clock)
        stack.callback(identities.close)
        registry = stack.enter_context(open_registry(folder, name="team", database=database, quota=quota, clock=clock))
        for team in ("blue", "red"):
            registry.access.add_team(team)
        trust(registry, "alice", ALICE, "blue", "red")
        running = serve_registry(
            registry,
            state,
            identities,
            **{"host": "127.0.0.1", "port": 0, "member_port": 0, "clock": clock, "streams": streams},
        )
        stack.callback(running.stop, 0)
        yield RegistryRig(state, identities, registry, running, clock, stack.enter_context(ExitStack()))


def trust(registry: Registry, name: str, key: SigningKey, *teams: str) -> None:
    signer = Signer(name=name, key=key.public, added=now(), teams=teams)
    change_keyring(registry.keyring, lambda ring: ring.with_signer(signer))
