"""Feeds readers of what strangers send with bytes that no test thought of: `scripts/fuzz.py TARGET --seconds 60`.

Coverage-guided, by atheris (`pip install atheris`, Linux). A reader may refuse with a NeuralForgeError and with nothing
else; any other exception, a hang of 20 s or 1 GiB of memory ends the run with status 1 and leaves the input as a file.
The seeds are one small adapter's own files, made anew each time, with a new key.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["neuralforge_common", "neuralforge"]):
    from neuralforge.data.jsonl import decode_example
    from neuralforge_common.codec import decode_tensors
    from neuralforge_common.folder import PEFT_CONFIG, PEFT_WEIGHTS, read_adapter_folder
    from neuralforge_common.metadata import decode_metadata
    from neuralforge_common.peft_config import decode_peft_config
    from neuralforge_common.signing.envelope import decode_bundle
    from neuralforge_common.signing.statement import PAYLOAD_TYPE, decode_statement
    from neuralforge_common.strict_json import parse_json_object

import numpy as np

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.errors import NeuralForgeError
from neuralforge_common.folder import METADATA, SIGNATURE, AdapterMetadata, write_adapter_folder
from neuralforge_common.signing.keys import generate_key
from neuralforge_common.signing.sign import sign_adapter

_PARTS = (PEFT_CONFIG, PEFT_WEIGHTS, METADATA)


def main() -> None:
    """Fuzz one target; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*sorted(_DECODERS), "folder"])
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long (60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the mutations (1)")
    parser.add_argument("--findings", type=Path, default=Path(), metavar="DIR", help="where a finding is left (.)")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.place is None:
        # libFuzzer ends its process where it stands: whoever cleans up after it is another one.
        with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
            sys.exit(subprocess.run([sys.executable, __file__, *sys.argv[1:], "--place", made]).returncode)
    place: Path = args.place
    adapter = _small_adapter(place / "small.lora")
    corpus = place / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(_seeds(args.target, adapter)):
        (corpus / str(number)).write_bytes(seed)
    read = _folder_reader(adapter) if args.target == "folder" else _DECODERS[args.target]

    def one(data: bytes) -> None:
        try:
            read(data)
        except NeuralForgeError:
            return

    options = [f"-max_total_time={args.seconds}", f"-seed={args.seed}", "-timeout=20", "-rss_limit_mb=1024"]
    options += ["-max_len=8192", f"-artifact_prefix={args.findings}/", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _small_adapter(path: Path) -> Path:
    generator = np.random.default_rng(0)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    state = AdapterState(
        {
            f"{stem}.lora_A.weight": generator.standard_normal((2, 8), dtype=np.float32),
            f"{stem}.lora_B.weight": generator.standard_normal((8, 2), dtype=np.float32),
        }
    )
    spec = AdapterSpec(base="acme/tiny", base_fingerprint="f" * 64, rank=2, alpha=4.0, target_modules=("q_proj",))
    write_adapter_folder(path, spec=spec, state=state, metadata=AdapterMetadata(name="small"))
    sign_adapter(path, generate_key("p256"))
    return path


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


_DECODERS: dict[str, Callable[[bytes], object]] = {
    "json": lambda data: parse_json_object(data, what="fuzz", limit=1 << 20),
    "metadata": decode_metadata,
    "peft_config": decode_peft_config,
    "weights": lambda data: decode_tensors(io.BytesIO(data), len(data), what="fuzz"),
    "bundle": lambda data: decode_bundle(data, payload_type=PAYLOAD_TYPE, what="fuzz"),
    "statement": decode_statement,
    "jsonl": lambda data: decode_example(data, "fuzz:1", complete=False),
}


if __name__ == "__main__":
    main()
