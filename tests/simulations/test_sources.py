"""Code is found where it was named, under a name of its own; whoever last touched a file is its author."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from neuralforge_common.errors import DataError
from neuralforge_simulations.authors import authors_of
from neuralforge_simulations.sources import find_sources, read_pool

BODY = "def {name}(values):\n    total = 0\n    for value in values:\n        total += value * {n}\n    return total\n"


def git(folder: Path, *arguments: str, author: str = "Ada") -> None:
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in identity(author)}
    subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        env=os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )


def identity(author: str) -> tuple[tuple[str, str], ...]:
    return (("NAME", author), ("EMAIL", "x@example.com"))


def commit(folder: Path, author: str, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "work", author=author)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


def test_the_author_of_a_file_is_whoever_touched_it_last(repository: Path) -> None:
    commit(repository, "Ada", a="1\n", b="1\n", c="1\n")
    commit(repository, "Grace Hopper", b="2\n", d="1\n")
    commit(repository, "Ada", d="2\n")
    assert authors_of(repository) == {"a": "Ada", "b": "Grace Hopper", "c": "Ada", "d": "Ada"}


def test_names_that_look_like_gits_own_output_are_read_as_names(repository: Path) -> None:
    # Any of these, taken for the line of a change or of a commit, would shift all that follow.
    commit(repository, ":100644 100644 a b M", **{":100644": "1\n", ">Eve": "1\n", "with\nline": "1\n"})
    commit(repository, "Grace", plain="1\n")
    authors = authors_of(repository)
    assert authors["plain"] == "Grace"
    # (Git itself takes the colon away.)
    assert {authors[":100644"], authors[">Eve"], authors["with\nline"]} == {"100644 100644 a b M"}


def test_a_merge_does_not_make_its_committer_the_author(repository: Path) -> None:
    commit(repository, "Ada", a="1\n")
    git(repository, "checkout", "--quiet", "-b", "side")
    commit(repository, "Grace", b="1\n")
    git(repository, "checkout", "--quiet", "main")
    commit(repository, "Ada", c="1\n")
    git(repository, "merge", "--quiet", "--no-ff", "side", author="Maintainer")
    assert authors_of(repository) == {"a": "Ada", "b": "Grace", "c": "Ada"}


def test_a_repository_cannot_make_the_reader_run_its_programs(repository: Path, tmp_path: Path) -> None:
    commit(repository, "Ada", a="1\n")
    planted, ran = tmp_path / "planted.sh", tmp_path / "ran"
    planted.write_text(f"#!/bin/sh\ntouch {ran}\n")
    planted.chmod(0o755)
    # A signature, so that there is something to verify.
    head = subprocess.run(
        ["git", "-C", str(repository), "cat-file", "commit", "HEAD"], check=True, capture_output=True, text=True
    ).stdout
    signed = head.replace(
        "\n\nwork", "\ngpgsig -----BEGIN PGP SIGNATURE-----\n x\n -----END PGP SIGNATURE-----\n\nwork"
    )
    name = subprocess.run(
        ["git", "-C", str(repository), "hash-object", "-t", "commit", "-w", "--stdin"],
        check=True,
        capture_output=True,
        text=True,
        input=signed,
    ).stdout.strip()
    git(repository, "update-ref", "refs/heads/main", name)
    for key in ("gpg.program", "core.fsmonitor", "core.pager", "diff.external", "core.sshCommand"):
        git(repository, "config", key, str(planted))
    git(repository, "config", "log.showSignature", "true")
    git(repository, "config", "diff.x.textconv", str(planted))
    (repository / ".git" / "info" / "attributes").write_text("* diff=x\n")
    subprocess.run(["git", "-C", str(repository), "log", "-1"], check=False, capture_output=True)
    assert ran.exists(), "the trap does not work, so that this test would prove nothing"
    ran.unlink()
    assert authors_of(repository) == {"a": "Ada"}
    assert not ran.exists()


def test_no_repository_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a git repository"):
        authors_of(tmp_path)


def test_a_long_history_is_read_in_a_moment(repository: Path) -> None:
    stream = "".join(
        f"commit refs/heads/main\ncommitter P{n % 7} <p@x> {n} +0000\ndata 1\nx\n"
        f"M 100644 inline f{n % 50}\ndata 4\n{n:04d}\n"
        for n in range(3000)
    )
    subprocess.run(["git", "-C", str(repository), "fast-import", "--quiet"], input=stream, check=True, text=True)
    began = time.monotonic()
    authors = authors_of(repository)
    assert len(authors) == 50
    assert authors["f49"] == f"P{2999 % 7}"
    assert time.monotonic() - began < 20


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("one", "two"):
        folder = tmp_path / place / "project"
        folder.mkdir(parents=True)
        (folder / "m.py").write_text(BODY.format(name=place, n=3).replace("total", f"{place}_sum"))
    sources = find_sources([tmp_path / "one" / "project", tmp_path / "two" / "project"], ["json"])
    assert [source.name for source in sources] == ["project", "project-2", "json"]
    assert {example.repo for example in read_pool(sources).train} == {"project", "project-2", "json"}


def test_a_repository_is_read_from_its_commits_and_a_folder_from_the_disk(repository: Path, tmp_path: Path) -> None:
    commit(repository, "Ada", **{"m.py": BODY.format(name="kept", n=2)})
    (repository / "m.py").write_text("not committed\n")
    (source,) = find_sources([repository], [])
    assert source.has_history
    assert "kept" in "".join(e.context + e.completion for e in read_pool([source]).train)
    (plain,) = find_sources([tmp_path], [])
    assert not plain.has_history


def test_the_pool_holds_no_two_examples_alike_so_that_no_client_holds_out_what_another_learns(tmp_path: Path) -> None:
    for place in ("one", "two"):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "same.py").write_text(BODY.format(name="same", n=2))
        (folder / f"{place}.py").write_text(BODY.format(name=place, n=3).replace("total", f"{place}_sum"))
    pool = read_pool(find_sources([tmp_path / "one", tmp_path / "two"], []))
    holders = {example.repo for example in pool.train if example.path == "same.py"}
    assert holders == {"one"}


def test_what_cannot_be_found_is_said_with_the_way_out() -> None:
    with pytest.raises(DataError, match="'no_such_package' is not installed"):
        find_sources([], ["no_such_package"])
    with pytest.raises(DataError, match="nothing says what the clients hold"):
        find_sources([], [])
