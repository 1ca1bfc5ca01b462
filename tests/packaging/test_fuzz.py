"""What reads or answers strangers, fuzzed for a few seconds each: a refusal is the only exception there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from neuralforge_common.protocol import enrolment_pb2, registry_pb2

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"

READERS = (
    *("json", "metadata", "peft_config", "weights", "bundle", "statement", "jsonl", "folder"),
    *("index", "index_text", "release", "listing", "signing_request"),
)


def methods(file: FileDescriptor) -> tuple[str, ...]:
    """The targets that call the services of a protobuf file."""
    services = file.services_by_name.values()
    return tuple(f"{service.name.lower()}.{method.name}" for service in services for method in service.methods)


CALLS = (*methods(registry_pb2.DESCRIPTOR), "registry.publishing")
JOINING = methods(enrolment_pb2.DESCRIPTOR)


def fuzz(target: str, place: Path, *, seconds: int) -> int:
    """Fuzz a target, which must find nothing and leave nothing; returns how many inputs were tried."""
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    command = [sys.executable, SCRIPT, target, "--seconds", str(seconds), "--findings", place]
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(place)}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list(place.iterdir()) == []
    tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert tried
    return int(tried[1])


@pytest.mark.slow
@pytest.mark.parametrize("target", READERS)
def test_a_reader_refuses_what_it_does_not_know_and_nothing_else_happens(target: str, tmp_path: Path) -> None:
    assert fuzz(target, tmp_path, seconds=2) > 100


@pytest.mark.slow
@pytest.mark.parametrize("target", CALLS)
def test_a_registry_refuses_what_it_does_not_know_and_nothing_else_happens(target: str, tmp_path: Path) -> None:
    # A call goes through TLS and, where something is written, to the disk; the honest ones alone are five.
    assert fuzz(target, tmp_path, seconds=3) > 15


@pytest.mark.slow
@pytest.mark.parametrize("target", JOINING)
def test_nobody_is_given_a_place_or_a_key_who_may_not_have_it(target: str, tmp_path: Path) -> None:
    # Those who are kept out by TLS cost a connection each time.
    assert fuzz(target, tmp_path, seconds=3) > 40


@pytest.mark.slow
def test_every_target_is_fuzzed_here(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    done = subprocess.run([sys.executable, SCRIPT, "everything"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    offered = re.search(r"choose from (.*)\)", done.stderr)
    assert offered
    assert sorted(re.findall(r"[\w.]+", offered[1])) == sorted([*READERS, *CALLS, *JOINING, "all"])
