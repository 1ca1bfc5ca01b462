"""A repository made by an enemy neither runs a program nor keeps the reader waiting.

Each trap is first shown to work: an ordinary git command sets it off. Then the reader must not.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from git_objects import FILES, Git, Repository, loose, program, read, running_git

from neuralforge.data.history import open_history
from neuralforge_common.errors import DataError

# --- Programs planted in the configuration ----------------------------------------------------------------------------


def _config(*pairs: tuple[str, str]) -> Callable[[Git, Path, Path], None]:
    def plant(git: Git, folder: Path, script: Path) -> None:
        for key, value in pairs:
            git(folder, "config", key, value.format(script=script))

    return plant


def _hooks(git: Git, folder: Path, script: Path) -> None:
    shutil.rmtree(folder / ".git" / "hooks", ignore_errors=True)
    (folder / ".git" / "hooks").mkdir()
    names = ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc", "pre-commit", "update")
    for name in (*names, "fsmonitor-watchman", "query-watchman", "sendemail-validate"):
        shutil.copy(script, folder / ".git" / "hooks" / name)


def _hooks_elsewhere(git: Git, folder: Path, script: Path) -> None:
    _hooks(git, folder, script)
    (folder / ".git" / "hooks").rename(folder / "elsewhere")
    git(folder, "config", "core.hooksPath", folder / "elsewhere")


def _attributes(line: str, *pairs: tuple[str, str]) -> Callable[[Git, Path, Path], None]:
    def plant(git: Git, folder: Path, script: Path) -> None:
        _config(*pairs)(git, folder, script)
        (folder / ".git" / "info").mkdir(exist_ok=True)
        (folder / ".git" / "info" / "attributes").write_text(line)

    return plant


def _included(git: Git, folder: Path, script: Path) -> None:
    git(folder, "config", "--file", folder / ".git" / "more", "core.fsmonitor", script)
    git(folder, "config", "include.path", "more")
    git(folder, "config", "includeIf.gitdir:/.path", "more")


def _per_worktree(git: Git, folder: Path, script: Path) -> None:
    git(folder, "config", "core.repositoryFormatVersion", "1")
    git(folder, "config", "extensions.worktreeConfig", "true")
    git(folder, "config", "--worktree", "core.fsmonitor", script)


def _promisor(url: str, *pairs: tuple[str, str]) -> Callable[[Git, Path, Path], None]:
    """A partial clone that lacks a file, and would ask a program for it."""

    def plant(git: Git, folder: Path, script: Path) -> None:
        _config(
            ("core.repositoryFormatVersion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.url", url),
            ("remote.origin.promisor", "true"),
            ("remote.origin.partialCloneFilter", "blob:none"),
            *pairs,
        )(git, folder, script)
        loose(folder, git(folder, "rev-parse", "HEAD:a.py").decode()).unlink()

    return plant


_ALWAYS = ("protocol.allow", "always")
_FILTER = (("filter.evil.clean", "{script}"), ("filter.evil.smudge", "{script}"))

TRAPS: dict[str, tuple[Callable[[Git, Path, Path], None], tuple[str, ...]]] = {
    "file system monitor": (_config(("core.fsmonitor", "{script}")), ("status",)),
    "file system monitor, included": (_included, ("status",)),
    "file system monitor of the work tree": (_per_worktree, ("status",)),
    "filter": (_attributes("* filter=evil\n", *_FILTER), ("checkout-index", "-f", "a.py")),
    "filter process": (
        _attributes("* filter=evil\n", ("filter.evil.process", "{script}"), ("filter.evil.required", "true")),
        ("checkout-index", "-f", "a.py"),
    ),
    "diff driver": (_attributes("* diff=evil\n", ("diff.evil.command", "{script}")), ("diff", "HEAD", "--", "src")),
    "text converter": (
        _attributes("* diff=evil\n", ("diff.evil.textconv", "{script}")),
        ("cat-file", "--textconv", "HEAD:a.py"),
    ),
    "diff program": (_config(("diff.external", "{script}")), ("diff", "HEAD", "--", "src")),
    "merge driver": (
        _attributes("* merge=evil\n", ("merge.evil.driver", "{script}")),
        ("merge-recursive", "HEAD~1", "--", "HEAD", "side"),
    ),
    "hooks": (_hooks, ("checkout", "-q", "-b", "other")),
    "hooks elsewhere": (_hooks_elsewhere, ("checkout", "-q", "-b", "other")),
    "alias": (_config(("alias.x", "!{script}")), ("x",)),
    "editor": (_config(("core.editor", "{script}")), ("commit", "--allow-empty")),
    "signature program, of the log": (
        _config(("gpg.program", "{script}"), ("log.showSignature", "true")),
        ("log", "-1", "signed"),
    ),
    "signature program": (_config(("gpg.program", "{script}")), ("commit-tree", "-S", "HEAD^{tree}")),
    "partial clone, upload-pack": (
        _promisor("file://{script}/..", ("remote.origin.uploadpack", "{script}"), _ALWAYS),
        ("cat-file", "-p", "HEAD:a.py"),
    ),
    "partial clone, ext": (
        _promisor("ext::{script} %S", ("protocol.ext.allow", "always"), _ALWAYS),
        ("cat-file", "-p", "HEAD:a.py"),
    ),
    "partial clone, ssh": (
        _promisor("ssh://host.example/x", ("core.sshCommand", "{script}"), _ALWAYS),
        ("cat-file", "-p", "HEAD:a.py"),
    ),
    "partial clone, proxy": (
        _promisor("git://host.example/x", ("core.gitProxy", "{script}"), _ALWAYS),
        ("cat-file", "-p", "HEAD:a.py"),
    ),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("trap", TRAPS)
def test_no_planted_program_runs(repository: Repository, git: Git, tmp_path: Path, trap: str) -> None:
    folder = repository(FILES)
    git(folder, "checkout", "-q", "-b", "side")
    (folder / "a.py").write_text("a = 'side'\n")
    git(folder, "commit", "-q", "-a", "-m", "side")
    git(folder, "checkout", "-q", "main")
    (folder / "a.py").write_text("a = 'main'\n")
    git(folder, "commit", "-q", "-a", "-m", "main")
    (folder / "src" / "b.py").write_text("b = 'changed'\n")
    _signed(git, folder)
    script, canary = program(tmp_path)
    plant, ordinary = TRAPS[trap]
    plant(git, folder, script)
    git(folder, *ordinary, check=False)
    assert canary.exists(), "the trap does not work"
    canary.unlink()
    git(folder, "symbolic-ref", "HEAD", "refs/heads/main", check=False)
    canary.unlink(missing_ok=True)

    paths, skipped = read(folder)
    assert not canary.exists()
    missing = "partial clone" in trap
    assert paths == ([] if missing else ["a.py"]) + ["src/b.py", "src/deep/c.js"]
    assert skipped.get("not in this partial clone", 0) == missing

    paths, skipped = read(folder, revision="signed", since="2020-01-01")
    assert not canary.exists()
    assert paths == ([] if missing else ["a.py"])
    assert skipped["not changed since then"] == 2

    written = history_of(folder, revision="signed")
    assert not canary.exists()
    assert len(written) == (3 if missing else 4), "a.py twice"


def history_of(folder: Path, **options: object) -> list[str]:
    """The paths of everything that was ever written, newest first."""
    history = open_history(folder, **options)  # type: ignore[arg-type]
    return [written.file.path for read in history.read() for written in read.written]


def _signed(git: Git, folder: Path) -> None:
    """A branch `signed`: main's tree in a signed commit, upon one of 2017 with the tree that main began with."""
    name = None
    for revision, moment in (("HEAD~1", 1500000000), ("HEAD", 1700000000)):
        lines = [f"tree {git(folder, 'rev-parse', f'{revision}^{{tree}}').decode()}"]
        lines += [f"parent {name}"] if name else []
        lines += [f"{who} d <d@example.com> {moment} +0000" for who in ("author", "committer")]
        lines += [
            "gpgsig -----BEGIN PGP SIGNATURE-----",
            " ",
            " abcd",
            " -----END PGP SIGNATURE-----",
            "",
            "signed",
            "",
        ]
        name = git(folder, "hash-object", "-t", "commit", "-w", "--stdin", data="\n".join(lines).encode()).decode()
    git(folder, "branch", "signed", str(name))


@pytest.mark.parametrize("what", ["HEAD^{tree}", "HEAD:src", "HEAD^{commit}"])
def test_a_partial_clone_without_its_folders_is_an_error_and_runs_nothing(
    repository: Repository, git: Git, tmp_path: Path, what: str
) -> None:
    folder = repository(FILES)
    script, canary = program(tmp_path)
    missing = git(folder, "rev-parse", what).decode()
    _promisor("ext::{script} %S", ("protocol.ext.allow", "always"), _ALWAYS)(git, folder, script)
    loose(folder, missing).unlink()
    with pytest.raises(DataError):
        read(folder)
    assert not canary.exists()
    git(folder, "cat-file", "-p", missing, check=False)
    assert canary.exists(), "the trap does not work"


# --- Nothing waits for ever -------------------------------------------------------------------------------------------


def _object(revision: str) -> Callable[[Git, Path], Path]:
    return lambda git, folder: loose(folder, git(folder, "rev-parse", revision).decode())


PIPES: dict[str, Callable[[Git, Path], Path]] = {
    "a file's object": _object("HEAD:src/b.py"),
    "a folder's object": _object("HEAD:src"),
    "the commit's object": _object("HEAD"),
    "HEAD": lambda git, folder: folder / ".git" / "HEAD",
    "the branch": lambda git, folder: folder / ".git" / "refs" / "heads" / "main",
    "the configuration": lambda git, folder: folder / ".git" / "config",
    "the alternates": lambda git, folder: folder / ".git" / "objects" / "info" / "alternates",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", PIPES)
def test_a_pipe_in_the_place_of_a_file_ends_in_an_error_and_leaves_no_process(
    repository: Repository, git: Git, place: str
) -> None:
    folder = repository(FILES)
    file = PIPES[place](git, folder)
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(file)
    started = time.monotonic()
    for reader in (read, history_of):
        with pytest.raises(DataError, match=r"git gave no answer for 0\.5 seconds and was stopped"):
            reader(folder, silence=0.5)
    assert time.monotonic() - started < 20
    assert not running_git()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["index", "info/attributes", "info/exclude"])
def test_what_the_reader_has_no_use_for_may_be_a_pipe(repository: Repository, place: str) -> None:
    folder = repository(FILES)
    (folder / ".git" / place).unlink(missing_ok=True)
    os.mkfifo(folder / ".git" / place)
    (folder / ".gitattributes").unlink(missing_ok=True)
    os.mkfifo(folder / ".gitattributes")
    assert read(folder, silence=5)[0] == history_of(folder, silence=5) == ["a.py", "src/b.py", "src/deep/c.js"]


@pytest.mark.timeout(60)
def test_a_configuration_that_includes_a_pipe_ends_in_an_error(repository: Repository, git: Git) -> None:
    folder = repository(FILES)
    git(folder, "config", "include.path", "more")
    os.mkfifo(folder / ".git" / "more")
    with pytest.raises(DataError, match="gave no answer"):
        read(folder, silence=0.5)
    assert not running_git()
