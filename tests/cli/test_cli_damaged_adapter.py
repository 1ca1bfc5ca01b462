"""An adapter that is damaged, hostile or none at all: named with its place, before a base is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]

WEIGHTS = ("adapter_model.safetensors", "lora_weights.bin")


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    """An adapter that a test may damage."""
    return Path(shutil.copytree(adapter, tmp_path / "copied.lora"))


def test_weights_whose_two_names_differ_are_refused(refused: Refused, copied: Path, tmp_path: Path) -> None:
    data = bytearray((copied / WEIGHTS[1]).read_bytes())
    data[-5] ^= 0x10
    (copied / WEIGHTS[1]).write_bytes(data)
    message = refused("benchmark", "--adapter", copied, cwd=tmp_path)
    assert message == f"{copied}: {WEIGHTS[0]} and {WEIGHTS[1]} differ: they are two names of the same weights"


def cut(folder: Path) -> str:
    for name in WEIGHTS:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1000])
    return "adapter_model.safetensors holds 324"


def emptied(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("")
    return "adapter_config.json: not valid JSON"


def without_config(folder: Path) -> str:
    (folder / "adapter_config.json").unlink()
    return "not an adapter folder: adapter_config.json is missing"


def without_weights(folder: Path) -> str:
    for name in WEIGHTS:
        (folder / name).unlink()
    return "the weights are missing"


def pickled(folder: Path) -> str:
    for name in WEIGHTS:
        (folder / name).write_bytes(b"\x80\x02}q\x00.")
    return "is a pickle, which can run any program when it is opened: it is never read"


def linked(folder: Path) -> str:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/passwd")
    return "adapter_config.json is a link"


def of_another_rank(folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    return "metadata.json and adapter_config.json disagree on rank: 4 and 5"


@pytest.mark.parametrize("damage", [cut, emptied, without_config, without_weights, pickled, linked, of_another_rank])
def test_a_damaged_adapter_is_refused_with_its_place_and_what_is_wrong(
    refused: Refused, copied: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    expected = damage(copied)
    message = refused("benchmark", "--adapter", copied, cwd=tmp_path)
    assert message.startswith(f"{copied}: ")
    assert expected in message


def test_a_folder_of_something_else_is_refused(refused: Refused, team_code: Path, tmp_path: Path) -> None:
    message = refused("benchmark", "--adapter", team_code, cwd=tmp_path)
    assert message == f"{team_code}: not an adapter folder: adapter_config.json is missing"
