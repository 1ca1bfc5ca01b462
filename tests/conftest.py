"""What all tests share: no network, and the command line run as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from house_style import house_style
from hypothesis import settings

# At a desk every run tries other examples; what decides whether a change lands tries the same ones each time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Before anything imports the hub's library, which reads this once.
os.environ["HF_HUB_OFFLINE"] = "1"

Cli = Callable[..., subprocess.CompletedProcess[str]]

# Where other work goes on beside the tests, two threads that wait for each other take ten times as long as one.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

TEAM_MODULES = ("argparse.py", "configparser.py", "csv.py", "dataclasses.py", "heapq.py", "shelve.py", "textwrap.py")


@pytest.fixture(scope="session")
def program() -> Path:
    """The installed command, `neuralforge`."""
    return Path(sys.executable).with_name("neuralforge")


@pytest.fixture(scope="session")
def cli(program: Path) -> Cli:
    """Run `neuralforge …` in a process of its own; nothing is checked but that it ends."""

    def run(
        *arguments: object, cwd: Path, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(program), *map(str, arguments)],
            cwd=cwd,
            env=ONE_THREAD | os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture(scope="session")
def team_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real Python code by several hands, in the style of a house: see `house_style`."""
    folder = tmp_path_factory.mktemp("team") / "project"
    folder.mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in TEAM_MODULES:
        (folder / name).write_text(house_style((library / name).read_text("utf-8")), "utf-8")
    return folder


@pytest.fixture(scope="session")
def adapter(cli: Cli, team_code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that the command line has trained on `team_code`, nf-tiny below it. Read it, do not change it."""
    place = tmp_path_factory.mktemp("trained")
    done = cli(
        *("train", "--source", team_code, "--base", "nf-tiny", "--name", "team", "--max-length", 128),
        *("--max-steps", 40, "--batch-size", 4, "--rank", 4, "--output", place),
        cwd=place,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return place / "team.lora"
