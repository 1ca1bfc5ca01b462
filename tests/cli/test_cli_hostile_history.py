"""`extract-dataset` on a repository with every trap at once: nothing runs or hangs, honest code comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from git_objects import commit_tree, program

Cli = Callable[..., subprocess.CompletedProcess[str]]

HONEST = """\
def {name}(balance, rate):
    if rate < 0:
        raise ValueError(f"{name}: a rate below nothing: {{rate}}")
    return balance * rate / 100
"""
GIANT = (2 << 30) + 1
HOOKS = ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman")


def git(folder: Path, *arguments: object, data: bytes = b"") -> bytes:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", *who, "-C", str(folder), *map(str, arguments)]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout.strip()


def hostile(folder: Path) -> tuple[Path, Path]:
    """A repository, and the canary that whatever it starts leaves behind."""
    repository = folder / "hostile"
    git(folder, "init", "--quiet", "-b", "main", repository)
    giant = folder / "giant"
    with giant.open("wb") as file:
        file.truncate(GIANT)  # of zeros: some MB when packed
    contents = {
        b"honest.py": HONEST.format(name="interest").encode(),
        b"new\nline.py": HONEST.format(name="toll").encode(),
        b"latin-\xe9.py": HONEST.format(name="tax").encode(),
        b".gitattributes": b"*.py filter=evil diff=evil merge=evil\n",
    }
    names = {path: git(repository, "hash-object", "-w", "--stdin", data=text) for path, text in contents.items()}
    names[b"giant.py"] = git(repository, "-c", "core.compression=1", "hash-object", "-w", "--no-filters", giant)
    giant.unlink()
    link = git(repository, "hash-object", "-w", "--stdin", data=b"/etc/passwd")
    commit_tree(
        git,
        repository,
        *(("100644", "blob", name.decode(), path) for path, name in names.items()),
        ("120000", "blob", link.decode(), b"link.py"),
        ("160000", "commit", "1" * 40, b"module.py"),
    )
    (repository / "honest.py").write_bytes(contents[b"honest.py"])
    script, canary = program(folder)
    for key in ("core.fsmonitor", "filter.evil.smudge", "filter.evil.clean", "diff.evil.textconv", "diff.external"):
        git(repository, "config", key, script)
    hooks = repository / ".git" / "hooks"
    shutil.rmtree(hooks, ignore_errors=True)
    hooks.mkdir()
    for name in HOOKS:
        shutil.copy(script, hooks / name)
    return repository, canary


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_trap_at_once_runs_nothing_hangs_nothing_and_honest_code_comes_out(cli: Cli, tmp_path: Path) -> None:
    repository, canary = hostile(tmp_path)
    subprocess.run(["git", "-C", str(repository), "status"], capture_output=True)
    assert canary.exists(), "the traps do not work"
    canary.unlink()
    (tmp_path / "out").mkdir()
    command = ("extract-dataset", "--git-repo", repository, "--output", "d.jsonl")
    done = cli(*command, cwd=tmp_path / "out", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert not canary.exists()
    found = [json.loads(line) for line in (tmp_path / "out" / "d.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {one["path"] for one in found} == {"honest.py", "new\nline.py", "latin-\\xe9.py"}
    assert "over 1 MiB 1" in done.stdout
    assert "link 1" in done.stdout
    assert "root:" not in (tmp_path / "out" / "d.jsonl").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.jsonl"]
