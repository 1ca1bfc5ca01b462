"""Feeds readers of what strangers send with bytes that no test thought of: `scripts/fuzz.py TARGET --seconds 60`.

Coverage-guided, by atheris (`pip install atheris`, Linux). A reader may refuse with a NeuralForgeError and with nothing
else; any other exception, a hang of 20 s or 1 GiB of memory ends the run with a status that is not 0 and leaves the
input as a file. The seeds are one small adapter's own files, made anew each time.

`registry.METHOD` calls a method of a real registry on loopback; what must hold then stands in `fuzzing/registry.py`.
`enrolment.METHOD` and `membership.METHOD` do so with a real federation's two services, by `fuzzing/enrolment.py`.
`all` runs every target for so many seconds, one after the other; with --seconds 600 it is a matter of hours.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import atheris

with atheris.instrument_imports(include=["neuralforge_common", "neuralforge"]):
    from neuralforge.data.jsonl import decode_example
    from neuralforge.registry.listing import listing
    from neuralforge_common.certificates import create_request, read_request
    from neuralforge_common.codec import decode_tensors
    from neuralforge_common.folder import PEFT_CONFIG, PEFT_WEIGHTS, read_adapter_folder
    from neuralforge_common.metadata import decode_metadata
    from neuralforge_common.peft_config import decode_peft_config
    from neuralforge_common.protocol import registry_pb2 as messages
    from neuralforge_common.registry.index import INDEX_TYPE, Index, IndexEntry, check_current, read_index, sign_index
    from neuralforge_common.registry.release import ReleaseFile, ReleaseName, check_tags, release_digest
    from neuralforge_common.signing.envelope import decode_bundle, encode_bundle, seal
    from neuralforge_common.signing.statement import PAYLOAD_TYPE, decode_statement
    from neuralforge_common.strict_json import parse_json_object

from cryptography.hazmat.primitives.asymmetric import ec
from fuzzing.adapters import KEY, small_adapter
from google.protobuf.message import DecodeError

from neuralforge_common.errors import NeuralForgeError
from neuralforge_common.folder import METADATA, SIGNATURE

_PARTS = (PEFT_CONFIG, PEFT_WEIGHTS, METADATA)
_METHODS = ("Describe", "BeginPublish", "Upload", "FinishPublish", "Search", "Resolve", "Download", "Yank", "Index")
_REGISTRY = tuple(f"registry.{name}" for name in (*_METHODS, "publishing"))
_ENROLMENT = ("enrolment.Authority", "enrolment.Join", "membership.Describe", "membership.RotateKey")


def main() -> None:
    """Fuzz one target; libFuzzer ends the process."""
    targets = [*sorted(_DECODERS), "folder", *_REGISTRY, *_ENROLMENT]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*targets, "all"])
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long, each target (60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the mutations (1)")
    parser.add_argument("--findings", type=Path, default=Path(), metavar="DIR", help="where a finding is left (.)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="one input, such as a finding, and nothing else")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.place is not None:
        _fuzz(args)
    # libFuzzer ends its process where it stands: whoever cleans up after it is another one.
    status = 0
    for target in targets if args.target == "all" else [args.target]:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
            options = ["--seconds", str(args.seconds), "--seed", str(args.seed), "--findings", str(args.findings)]
            options += ["--replay", str(args.replay)] if args.replay else []
            # Of every handshake that fails gRPC would write a line.
            quiet = os.environ | {"GRPC_VERBOSITY": "NONE"}
            done = subprocess.run([sys.executable, __file__, target, *options, "--place", made], env=quiet)
        status = status or done.returncode
    sys.exit(status)


def _fuzz(args: argparse.Namespace) -> NoReturn:
    mutate: dict[str, Any] = {}
    if args.target in (*_REGISTRY, *_ENROLMENT):
        harness = _harness(args.target, args.place, quiet=args.replay is None)
        one: Callable[[bytes], object] = harness.one
        seeds, mutate = harness.seeds(), {"custom_mutator": harness.mutate}
    else:
        adapter = small_adapter(args.place / "small.lora")
        one = _may_refuse(_folder_reader(adapter) if args.target == "folder" else _DECODERS[args.target])
        seeds = _seeds(args.target, adapter)
    corpus = args.place / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    options = [f"-max_total_time={args.seconds}", f"-seed={args.seed}", "-timeout=20", "-rss_limit_mb=1024"]
    options += ["-max_len=8192", f"-artifact_prefix={args.findings}/", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(args.replay or corpus)], one, **mutate)
    atheris.Fuzz()
    sys.exit(0)


def _harness(target: str, place: Path, *, quiet: bool) -> Any:
    """What calls the servers, which are imported only where one is called."""
    with atheris.instrument_imports(include=["neuralforge_common", "neuralforge_server"]):
        from fuzzing import enrolment, registry
    if target in _ENROLMENT:
        return enrolment.Harness(target, place, quiet=quiet)
    return registry.Harness(target, place, small_adapter(place / "small.lora"), quiet=quiet)


def _may_refuse(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def one(data: bytes) -> None:
        try:
            read(data)
        except NeuralForgeError:
            return

    return one


def _seeds(target: str, adapter: Path) -> list[bytes]:
    files = {name: (adapter / name).read_bytes() for name in (*_PARTS, SIGNATURE)}
    bundle = decode_bundle(files[SIGNATURE], payload_type=PAYLOAD_TYPE, what=SIGNATURE)
    example = b'{"context": "def f():\\n", "completion": "    return 1\\n", "language": "python", "path": "a.py"}'
    return {
        "json": [files[METADATA], b'{"a": [1, -2.5e3, true, null, "\\u00e9"]}'],
        "metadata": [files[METADATA]],
        "peft_config": [files[PEFT_CONFIG]],
        "weights": [files[PEFT_WEIGHTS]],
        "bundle": [files[SIGNATURE]],
        "statement": [bundle.payload],
        "signing_request": [create_request(ec.derive_private_key(8472, ec.SECP384R1()))],
        "index": [sign_index(_INDEX, KEY)],
        "index_text": [decode_bundle(sign_index(_INDEX, KEY), payload_type=INDEX_TYPE, what="seed").payload],
        "release": [b"blue/spring@1.2.0-rc.1+build\0java spring\0" + f"model.sig {'f' * 64} 9\0".encode()],
        "listing": [_LISTED.SerializeToString()],
        "jsonl": [example, b'{"prompt": "a", "completion": "b"}'],
        # The first byte says which of the files the others replace.
        "folder": [bytes([number]) + files[name] for number, name in enumerate(_PARTS)],
    }[target]


def _folder_reader(adapter: Path) -> Callable[[bytes], object]:
    """Reads the adapter's folder with one of its files replaced."""
    whole = {name: (adapter / name).read_bytes() for name in _PARTS}

    def read(data: bytes) -> None:
        if not data:
            return
        name = _PARTS[data[0] % len(_PARTS)]
        (adapter / name).unlink()
        (adapter / name).write_bytes(data[1:])
        try:
            read_adapter_folder(adapter)
        finally:
            (adapter / name).write_bytes(whole[name])

    return read


def _signed_index(payload: bytes) -> None:
    """Reads what the registry's own key has signed, and asks it what a client asks."""
    index = read_index(encode_bundle(seal(KEY, INDEX_TYPE, payload)), KEY.public)
    index.latest("blue", "spring"), index.find("blue", "spring", "1.0.0")
    check_current(index, (_INDEX,), now=datetime(2026, 1, 1, tzinfo=UTC))


def _release(data: bytes) -> None:
    """A name, tags and files, each behind a NUL."""
    name, *others = data.decode("utf-8", "replace").split("\0")
    parsed = ReleaseName.parse(name)
    if ReleaseName.parse(str(parsed)) != parsed:
        raise AssertionError(f"{name!r} reads otherwise when it was written")
    if parsed.version is not None and not parsed.version <= parsed.version:
        raise AssertionError(f"{name!r} is newer than itself")
    check_tags(others[0].split() if others else ())
    words = [line.split(" ") for line in others[1:]]
    files = [ReleaseFile(name=w[0], sha256=w[1], size=len(w[2])) for w in words if len(w) == 3]
    release_digest(files)


def _listing(data: bytes) -> None:
    try:
        message = messages.Release.FromString(data)
    except DecodeError:  # gRPC's to refuse
        return
    listing(message).to_facts()


_ENTRY = IndexEntry(team="blue", name="spring", version="1.0.0", digest="f" * 64, size=9, yanked=False)
_INDEX = Index(registry="team", version=7, expires=datetime(2027, 1, 1, tzinfo=UTC), view="x", entries=(_ENTRY,))
_LISTED = messages.Release(
    team="blue",
    name="spring",
    version="1.0.0",
    visibility=messages.TEAM,
    tags=["spring"],
    files=[messages.File(name="model.sig", sha256="f" * 64, size=9)],
    published=1.7e9,
    description="two\nlines",
)

_DECODERS: dict[str, Callable[[bytes], object]] = {
    "json": lambda data: parse_json_object(data, what="fuzz", limit=1 << 20),
    "metadata": decode_metadata,
    "peft_config": decode_peft_config,
    "weights": lambda data: decode_tensors(io.BytesIO(data), len(data), what="fuzz"),
    "bundle": lambda data: decode_bundle(data, payload_type=PAYLOAD_TYPE, what="fuzz"),
    "statement": decode_statement,
    "signing_request": read_request,
    "index": lambda data: read_index(data, KEY.public),
    "index_text": _signed_index,
    "release": _release,
    "listing": _listing,
    "jsonl": lambda data: decode_example(data, "fuzz:1", complete=False),
}


if __name__ == "__main__":
    main()
