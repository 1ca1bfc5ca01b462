"""kill -9 at random moments of publishing: a registry never shows a part of a version, and an upload goes on after it.

    python scripts/kill_registry.py             fifty kills, two or three minutes
    python scripts/kill_registry.py --quick     five

A real `nf-server registry start` runs on loopback; a client publishes version after version of a signed adapter of
a megabyte. At a moment that is random but for the seed the registry is killed and started again. After every kill each
version that the registry shows is pulled whole and is what was published, no other is shown, and the version whose
upload was killed is published in the end by going on with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.folder import AdapterMetadata, Evaluation, Scores, write_adapter_folder
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.protocol import registry_pb2_grpc as services
from neuralforge_common.signing.keys import SigningKey, generate_key
from neuralforge_common.signing.sign import sign_adapter

PATIENCE = 60.0
PART = 64 * 1024
ADDRESS = re.compile(r"registry \S+ at nf://[^:]+:(\d+)#")


@dataclass
class Server:
    """The registry as a process, started again and again in the same folder."""

    place: Path
    process: subprocess.Popen[str] | None = field(default=None)
    port: int = 0

    def command(self, *arguments: str) -> list[str]:
        """An `nf-server registry …` of this place."""
        return [sys.executable, "-m", "neuralforge_server.cli.main", "registry", *arguments, "--directory", "state"]

    def start(self) -> None:
        """Starts it on a free port, and returns when it answers."""
        self.process = subprocess.Popen(
            self.command("start", "--listen", "127.0.0.1", "--port", "0", "--member-port", "0"),
            cwd=self.place,
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stdout or ():
            if found := ADDRESS.search(line):
                self.port = int(found[1])
                return
        raise SystemExit(f"error: the registry did not start (exit {self.process.wait()})")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def stub(self, token: str) -> Iterator[tuple[services.RegistryStub, tuple[tuple[str, str], ...]]]:
        """The service, as the holder of a token calls it."""
        roots = (self.place / "state" / "ca.pem").read_bytes()
        with grpc.secure_channel(f"localhost:{self.port}", grpc.ssl_channel_credentials(roots)) as channel:
            yield services.RegistryStub(channel), (("authorization", f"Bearer {token}"),)


def main() -> int:
    """Kill and check; returns 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="five kills of a small adapter")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kills, width = (5, 2048) if args.quick else (args.kills, 16_384)
    with tempfile.TemporaryDirectory() as place:
        outcomes = run(Path(place), kills=kills, width=width, dice=random.Random(args.seed))  # noqa: S311
    print(json.dumps({"kills": kills, **outcomes}))
    return 0


def run(place: Path, *, kills: int, width: int, dice: random.Random) -> dict[str, int]:
    """So many kills; returns how often the killed version was there already, had begun, or not."""
    server, key, outcomes = Server(place), generate_key("p256"), Counter({"there": 0, "part": 0, "nothing": 0})
    server.start()
    (place / "me.pub").write_bytes(key.public.pem)
    _done(server, "team", "add", "blue", "--signer", "me.pub")
    token = _done(server, "token", "--team", "blue", "--scope", "publish").split()[-1]
    published: dict[str, dict[str, str]] = {}
    # How long publishing takes when nobody is killed: the moments are from that.
    for version in ("0.0.0", "0.0.1"):
        folder = _adapter(place, version, key, width)
        began = time.monotonic()
        _publish(server, token, folder)
        usual = time.monotonic() - began
        published[version] = _digests(folder)
    try:
        for number in range(1, kills + 1):
            version = f"0.1.{number}"
            folder = _adapter(place, version, key, width)
            thread = threading.Thread(target=_try_to_publish, args=(server, token, folder))
            thread.start()
            time.sleep(dice.uniform(0, usual))
            server.kill()
            thread.join(PATIENCE)
            server.start()
            shown = _shown(server, token)
            if not published.keys() <= shown <= published.keys() | {version}:
                raise SystemExit(f"error: after kill {number} the registry shows {sorted(shown)}")
            if version in shown:
                outcomes["there"] += 1
            else:
                held = _publish(server, token, folder)
                outcomes["part" if held else "nothing"] += 1
            published[version] = _digests(folder)
            for each in (version, dice.choice(sorted(published))):
                if _pulled(server, token, each) != published[each]:
                    raise SystemExit(f"error: after kill {number} {each} is not what was published")
    finally:
        server.kill()
    return dict(outcomes)


def _done(server: Server, *arguments: str) -> str:
    return subprocess.run(
        server.command(*arguments), cwd=server.place, check=True, capture_output=True, text=True, env=os.environ
    ).stdout


def _adapter(place: Path, version: str, key: SigningKey, width: int) -> Path:
    spec = AdapterSpec(base="nf-tiny", rank=8, alpha=16, target_modules=("q_proj",))
    random_numbers, module = (
        np.random.default_rng(int(version.rpartition(".")[2])),
        "base_model.model.model.layers.0.self_attn.q_proj",
    )
    state = AdapterState(
        {
            f"{module}.lora_A.weight": random_numbers.standard_normal((8, width)).astype(np.float32),
            f"{module}.lora_B.weight": random_numbers.standard_normal((width, 8)).astype(np.float32),
        }
    )
    scores = Evaluation(base=Scores(perplexity=9.0), adapter=Scores(perplexity=6.0), samples=40)
    path = place / f"{version}.lora"
    write_adapter_folder(
        path, spec=spec, state=state, metadata=AdapterMetadata(name="spring", version=version, evaluation=scores)
    )
    sign_adapter(path, key)
    return path


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _try_to_publish(server: Server, token: str, folder: Path) -> None:
    try:
        _publish(server, token, folder)
    except grpc.RpcError:
        return  # it was killed


def _publish(server: Server, token: str, folder: Path) -> int:
    """Publishes, going on with what is there; returns how many bytes were."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    with server.stub(token) as (stub, metadata):
        begun = stub.BeginPublish(
            messages.BeginPublishRequest(
                team="blue",
                name="spring",
                version=folder.stem,
                visibility=messages.TEAM,
                files=[
                    messages.File(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                    for name, data in files.items()
                ],
            ),
            metadata=metadata,
            timeout=PATIENCE,
        )
        blobs = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        for held in begun.held:
            if held.bytes < len(blobs[held.sha256]):
                parts = _parts(begun.upload, held.sha256, blobs[held.sha256], held.bytes)
                stub.Upload(parts, metadata=metadata, timeout=PATIENCE)
        stub.FinishPublish(messages.FinishPublishRequest(upload=begun.upload), metadata=metadata, timeout=PATIENCE)
    return sum(held.bytes for held in begun.held)


def _parts(upload: str, digest: str, data: bytes, offset: int) -> Iterator[messages.UploadPart]:
    yield messages.UploadPart(start=messages.UploadStart(upload=upload, sha256=digest, offset=offset))
    for start in range(offset, len(data), PART):
        yield messages.UploadPart(data=data[start : start + PART])


def _shown(server: Server, token: str) -> set[str]:
    from neuralforge_common.registry.index import read_index
    from neuralforge_common.signing.keys import decode_public_key

    with server.stub(token) as (stub, metadata):
        key = decode_public_key(stub.Describe(messages.DescribeRequest(), metadata=metadata).index_key_pem, "the key")
        data = b"".join(part.data for part in stub.Index(messages.IndexRequest(), metadata=metadata))
    return {entry.version for entry in read_index(data, key).entries}


def _pulled(server: Server, token: str, version: str) -> dict[str, str]:
    digests = {}
    with server.stub(token) as (stub, metadata):
        name = {"team": "blue", "name": "spring", "version": version}
        release = stub.Resolve(messages.ResolveRequest(**name), metadata=metadata, timeout=PATIENCE)
        for file in release.files:
            parts = stub.Download(messages.DownloadRequest(**name, file=file.name), metadata=metadata, timeout=PATIENCE)
            digests[file.name] = hashlib.sha256(b"".join(part.data for part in parts)).hexdigest()
    return digests


if __name__ == "__main__":
    sys.exit(main())
