"""`extract-dataset` killed without a word, at several moments, ends with the bytes of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
KILLS = 6


@pytest.fixture
def library(make_git: Callable[..., None], tmp_path: Path) -> Path:
    """A commit for each of many modules that Python brings along."""
    folder = tmp_path / "library"
    folder.mkdir()
    make_git("init", "--quiet", cwd=folder)
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-r]*.py")):
        shutil.copyfile(module, folder / module.name)
        make_git("add", ".", cwd=folder)
        make_git("commit", "--quiet", "-m", module.name, cwd=folder)
    return folder


@pytest.mark.slow
def test_however_often_it_is_killed_it_goes_on_and_ends_with_the_same_bytes(
    cli: Cli, program: Path, library: Path, tmp_path: Path
) -> None:
    names = ("whole.jsonl", "whole.eval.jsonl")
    command = ("extract-dataset", "--git-repo", library)
    done = cli(*command, "--output", names[0], "--eval-output", names[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = [(tmp_path / name).read_bytes() for name in names]

    output, held_out, journal = (tmp_path / name for name in ("d.jsonl", "e.jsonl", "d.jsonl.partial"))
    again = [str(program), *map(str, command), "--output", str(output), "--eval-output", str(held_out), "--resume"]
    killed = 0
    for kill in range(KILLS):
        before = journal.stat().st_size if journal.exists() else 0
        running = subprocess.Popen(again, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Each time a little further than the last, and at another moment behind a mark.
        while running.poll() is None and (not journal.exists() or journal.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(0.02 * kill)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            killed += 1
            assert not output.exists()
        running.wait()
    assert killed, "it was never interrupted"
    done = cli(*command, "--output", output, "--eval-output", held_out, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [output.read_bytes(), held_out.read_bytes()] == wanted
    assert not journal.exists()
