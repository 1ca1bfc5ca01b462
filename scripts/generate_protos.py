"""Writes the code that protos/ describe; with --check it only says whether what is committed is that code."""

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
PACKAGES = ROOT / "common"


def main() -> int:
    """Generate or compare; returns 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a file is out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as place:
        made = Path(place)
        generate(made)
        files = {path.relative_to(made): path.read_bytes() for path in sorted(made.rglob("*")) if path.is_file()}
    # What is there and would no longer be made is out of date, too.
    there = {path.relative_to(PACKAGES) for path in PACKAGES.rglob("*_pb2*") if path.suffix in (".py", ".pyi")}
    outdated = sorted(there - files.keys()) + [path for path, data in files.items() if _read(PACKAGES / path) != data]
    if check:
        for path in outdated:
            print(f"error: common/{path} is not what protos/ describe\n  hint: python scripts/generate_protos.py")
        return 1 if outdated else 0
    for path in outdated:
        if path in files:
            (PACKAGES / path).parent.mkdir(parents=True, exist_ok=True)
            (PACKAGES / path).write_bytes(files[path])
        else:
            (PACKAGES / path).unlink()
        print(f"{'wrote' if path in files else 'removed'} common/{path}")
    return 0


def generate(place: Path) -> None:
    """Compile every .proto into `place`."""
    sources = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    well_known = resources.files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={place}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *outputs, *sources])
    if status:
        raise SystemExit(status)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
