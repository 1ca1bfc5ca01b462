"""What the tests of the command line share: refusals of one line, tables read back, repositories, a terminal."""

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import takes_terminal

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]

GIT = {
    **{"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
    **{"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z"},
    **{"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"},
}


@pytest.fixture(scope="session")
def refused(cli: Cli) -> Refused:
    """Run what must fail: exit 1, one line on standard error and perhaps a hint, no traceback; returns the line."""

    def run(*arguments: object, cwd: Path, **environment: Any) -> str:
        done = cli(*arguments, cwd=cwd, **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        line, *hints = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert [hint[:8] for hint in hints] in ([], ["  hint: "])
        return line.removeprefix("error: ")

    return run


@pytest.fixture(scope="session")
def rows() -> Callable[[str], dict[str, list[str]]]:
    """The first cell of each line of the tables in an output -> its other cells."""

    def read(output: str) -> dict[str, list[str]]:
        lines = re.findall(r"^[│┃](.*)[│┃]$", output, re.MULTILINE)
        cells = [[cell.strip() for cell in re.split("[│┃]", line)] for line in lines]
        return {first: rest for first, *rest in cells}

    return read


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, team_code: Path) -> Path:
    """A git repository with the team's code in one commit. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("git") / "repository"
    shutil.copytree(team_code, folder)
    git("init", "--quiet", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "--quiet", "--message", "all", cwd=folder)
    return folder


def git(*arguments: str, cwd: Path) -> None:
    subprocess.run(["git", *arguments], cwd=cwd, env=os.environ | GIT, check=True, capture_output=True)


@pytest.fixture(scope="session")
def make_git() -> Callable[..., None]:
    """Run a git command as a person without any configuration."""
    return git


@pytest.fixture(scope="session")
def examples(cli: Cli, team_code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the team's examples, `train.jsonl` and, from other files, `eval.jsonl`."""
    folder = tmp_path_factory.mktemp("examples")
    done = cli(
        *("create-dataset", "--source", team_code, "--max-samples", 16),
        *("--output", folder / "train.jsonl", "--eval-output", folder / "eval.jsonl"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    few = (folder / "eval.jsonl").read_text().splitlines(keepends=True)[:4]
    (folder / "eval.jsonl").write_text("".join(few))
    return folder


@pytest.fixture(scope="session")
def nf_tiny() -> Path:
    """The folder of the base that comes with the package."""
    return Path(str(resources.files("neuralforge.models").joinpath("nf_tiny")))


@pytest.fixture(scope="session")
def altered_base(nf_tiny: Path) -> Callable[..., Path]:
    """Copy nf-tiny to a place, changing what a function makes of its weights."""

    def make(place: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        from safetensors.torch import load_file, save_file

        shutil.copytree(nf_tiny, place)
        save_file(change(load_file(place / "model.safetensors")), place / "model.safetensors", {"format": "pt"})
        return place

    return make


class Terminal:
    """A program that runs at a terminal, and what it has shown so far."""

    def __init__(self, command: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            takes_terminal(command),
            cwd=cwd,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"} | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def wait_for(self, text: str, timeout: float = 60) -> str:
        """Read until `text` is shown; returns what was shown before it and takes both away."""
        end = time.monotonic() + timeout
        while text not in self.shown:
            if not self._read(end):
                raise AssertionError(f"{text!r} never came, this did: {self.shown!r}")
        before, _, self.shown = self.shown.partition(text)
        return before

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def wait_until_asleep(self, timeout: float = 60) -> None:
        """Wait until the program waits for a key: a signal that meets Python between a prompt and its read() is only
        looked at once a key has come, and nobody presses one that fast."""
        end = time.monotonic() + timeout
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            if time.monotonic() > end:
                raise AssertionError("the program never waited for a key")
            time.sleep(0.01)

    def ended(self, timeout: float = 60) -> int:
        """Read to the end; returns the exit status."""
        end = time.monotonic() + timeout
        while self._read(end):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def close(self) -> None:
        """Stop what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self, end: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            raise AssertionError(f"nothing more came after {self.shown!r}")
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # how Linux says that the other side has closed
            return False
        self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)


@pytest.fixture
def terminal(program: Path) -> Iterator[Callable[..., Terminal]]:
    """Run `neuralforge …` at a terminal of its own."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: object, cwd: Path, **environment: str) -> Terminal:
            opened = Terminal([str(program), *map(str, arguments)], cwd, environment)
            stack.callback(opened.close)
            return opened

        yield run
