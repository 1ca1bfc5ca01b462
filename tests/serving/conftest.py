"""What the tests of the editor's servers share: a base in this process, adapters on it, a server in another."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from launching import hears_ctrl_c

from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.served import ServedModel
from neuralforge.serving.writer import Writer
from neuralforge_common.adapter import AdapterState
from neuralforge_common.folder import read_adapter_folder, write_adapter_folder

# It ends within a statement: behind a whole one an adapter may rightly say that nothing follows.
CODE = '''import argparse
from pathlib import Path


class Reader:
    """Reads a file line by line."""

    def __init__(self, path, encoding="utf-8"):
        self.path = path
        self.encoding = encoding

    def lines(self):
        with open(self.path, encoding=self.encoding) as file:
            for line in file:
                yield line.rstrip()


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    args = '''


@pytest.fixture(scope="session")
def code() -> str:
    """The beginning of a file that somebody writes."""
    return CODE


@pytest.fixture(scope="session")
def tiny_base() -> BaseModel:
    """nf-tiny in fp32. Adapters come and go; the base stays as it is."""
    return load_base_model("nf-tiny", device="cpu", dtype="float32")


@pytest.fixture
def writer(tiny_base: BaseModel) -> Writer:
    return Writer(tiny_base, max_context=512)


@pytest.fixture
def served(adapter: Path) -> ServedModel:
    """The team's adapter on an nf-tiny of its own."""
    model = ServedModel(load_base_model("nf-tiny", device="cpu", dtype="float32"))
    model.load(adapter)
    return model


@pytest.fixture(scope="session")
def whole() -> Callable[[Iterator[Piece | Finish]], tuple[str, list[Piece], Finish]]:
    """Text, pieces and end of a completion."""

    def collect(items: Iterator[Piece | Finish]) -> tuple[str, list[Piece], Finish]:
        *pieces, finish = items
        assert isinstance(finish, Finish)
        assert all(isinstance(piece, Piece) for piece in pieces)
        return "".join(piece.text for piece in pieces), pieces, finish  # type: ignore[union-attr, return-value]

    return collect


@pytest.fixture(scope="session")
def complete(whole: Callable[..., tuple[str, list[Piece], Finish]]) -> Callable[..., str]:
    """The text that a model or a writer gives for a prompt."""

    def run(writes: ServedModel | Writer, prompt: str, /, **changes: object) -> str:
        request = CompletionRequest(prompt=prompt, **changes)  # type: ignore[arg-type]
        return whole(writes.write(request, lambda: False))[0]

    return run


def variant(adapter: Path, place: Path, *, name: str, scale: float = 1.0, rank: int | None = None) -> Path:
    """The same adapter with B scaled, and with a larger rank whose new components are zero."""
    folder = read_adapter_folder(adapter)
    rank = rank or folder.spec.rank

    def grown(key: str, array: np.ndarray) -> np.ndarray:
        missing = rank - folder.spec.rank
        if ".lora_A." in key:
            return np.pad(array, ((0, missing), (0, 0)))
        return np.pad(array, ((0, 0), (0, missing))) * scale

    spec = dataclasses.replace(folder.spec, rank=rank, alpha=folder.spec.alpha * rank / folder.spec.rank)
    state = AdapterState({key: grown(key, array) for key, array in folder.state.items()})
    write_adapter_folder(place, spec=spec, state=state, metadata=dataclasses.replace(folder.metadata, name=name))
    return place


@pytest.fixture(scope="session")
def variants(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters on the same base: `loud` writes something else, `wide` the same with another rank."""
    place = tmp_path_factory.mktemp("variants")
    return {
        "loud": variant(adapter, place / "loud.lora", name="loud", scale=-6.0),
        "wide": variant(adapter, place / "wide.lora", name="wide", rank=7),
    }


@dataclasses.dataclass
class Running:
    """A server in a process of its own, its address, and the home that it uses."""

    process: subprocess.Popen[str]
    url: str
    home: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Exit status and the rest of what was printed."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@pytest.fixture(scope="session")
def start(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Run `neuralforge …` until it says where it serves; what still runs is stopped in the end."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: object, home: Path | None = None) -> Running:
            home = home or tmp_path_factory.mktemp("home") / "nf"
            process = subprocess.Popen(
                hears_ctrl_c([str(program), *map(str, arguments)]),
                env={"OMP_NUM_THREADS": "1"} | os.environ | {"NEURALFORGE_HOME": str(home)},
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_kill, process)
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r" at (http://\S+:\d+); Ctrl-C stops$", line)
            assert found, f"the server did not start: {line!r}"
            return Running(process=process, url=found[1], home=home)

        yield run


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def server(start: Callable[..., Running], adapter: Path) -> Running:
    """The guide's command, with the team's adapter. Do not load others into it."""
    return start("--adapter", adapter, "--port", 0)


def growing(text: str, begin: int, step: int = 1) -> Sequence[str]:
    """What stands before the cursor at each keystroke."""
    return [text[:size] for size in range(begin, len(text) + 1, step)]
