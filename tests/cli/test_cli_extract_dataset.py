"""`extract-dataset`, as a person runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]

JAVA = """\
package team;

public class Account {{
    private long balance;

    public void deposit{n}(long amount) {{
        if (amount <= 0) {{
            throw new IllegalArgumentException("deposit {n} of " + amount);
        }}
        this.balance += amount * {n};
    }}
}}
"""


def examples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def grown(repository: Path, make_git: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The team's repository, and on top of it Java in some commits, an e-mail address, and what a bot did."""
    folder = tmp_path_factory.mktemp("grown") / "team-code"
    make_git("clone", "--quiet", str(repository), str(folder), cwd=folder.parent)
    (folder / "LICENSE").write_text((Path(__file__).parents[2] / "LICENSE").read_text())
    for number in range(3):
        (folder / f"Account{number}.java").write_text(JAVA.format(n=number))
        make_git("add", ".", cwd=folder)
        make_git("commit", "--quiet", "-m", f"{number}", "--author=Ann <ann@example.org>", cwd=folder)
    (folder / "mail.py").write_text("def contact():\n    return 'please write to jane.doe@corp-mail.com'\n")
    make_git("add", ".", cwd=folder)
    make_git("commit", "--quiet", "-m", "mail", cwd=folder)
    (folder / "bot.py").write_text("def pinned():\n    return ['requests==2.0.1', 'numpy==1.26']\n")
    make_git("add", ".", cwd=folder)
    make_git("commit", "--quiet", "-m", "bump", "--author=renovate[bot] <bot@renovateapp.com>", cwd=folder)
    return folder


def test_the_guides_command_writes_what_each_commit_brought(cli: Cli, grown: Path, tmp_path: Path) -> None:
    done = cli(
        *("extract-dataset", "--git-repo", grown, "--output", "dataset.jsonl", "--languages", "java,python,js"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "passed over: 1 × by a bot" in done.stdout
    found = examples(tmp_path / "dataset.jsonl")
    body = next(one for one in found if one["path"] == "Account2.java" and one["kind"] == "function")
    assert body["completion"].startswith("        if (amount <= 0) {")
    assert (body["license"], body["language"]) == ("Apache-2.0", "java")
    assert body["repo"] == "team-code"
    assert len(body["commit"]) == 40
    assert body["time"].endswith("Z")
    assert not any("author" in one for one in found)
    assert any(one.get("suffix") for one in found)
    assert any(not one.get("suffix") for one in found)
    everything = (tmp_path / "dataset.jsonl").read_text()
    assert "jane.doe" not in everything
    assert "REDACTED:email" in everything
    assert "2.0.1" not in everything
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.jsonl"], "no journal is left"
    again = cli(
        *("extract-dataset", "--git-repo", grown, "--output", "again.jsonl", "--languages", "java,python,js"),
        *("--jobs", 1),
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "dataset.jsonl").read_bytes()


def test_one_author_and_no_file_on_both_sides(cli: Cli, grown: Path, tmp_path: Path) -> None:
    command = ("extract-dataset", "--git-repo", grown, "--keep-author", "--fim-share", 0)
    done = cli(*command, "--output", "t.jsonl", "--eval-output", "e.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, held_out = (examples(tmp_path / name) for name in ("t.jsonl", "e.jsonl"))
    assert not {one["path"] for one in train} & {one["path"] for one in held_out}
    assert not any(one.get("suffix") for one in train)
    everybody = {one["author"] for one in train + held_out}
    done = cli(*command, "--author", "ann@example.org", "--output", "ann.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ann = examples(tmp_path / "ann.jsonl")
    assert {one["language"] for one in ann} == {"java"}
    assert len({one["author"] for one in ann} & everybody) == 1
    assert len(everybody) == 2


@pytest.mark.slow
def test_a_dataset_of_a_history_can_be_learnt_from(cli: Cli, grown: Path, tmp_path: Path) -> None:
    assert cli("extract-dataset", "--git-repo", grown, "--output", "d.jsonl", cwd=tmp_path).returncode == 0
    done = cli(
        *("train", "--dataset", "d.jsonl", "--base", "nf-tiny", "--max-steps", 2, "--rank", 2, "--max-samples", 12),
        *("--max-eval-samples", 2, "--max-length", 64),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-adapter.lora" / "metadata.json").is_file()


def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_bytes(cli: Cli, grown: Path, tmp_path: Path) -> None:
    from neuralforge.data.cutting import Cutting
    from neuralforge.data.extraction import fill_journal, journal_key
    from neuralforge.data.history import open_history
    from neuralforge.data.journal import Journal
    from neuralforge.data.license import license_of_repository

    done = cli("extract-dataset", "--git-repo", grown, "--output", "whole.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    history = open_history(grown)
    cutting = Cutting(license=license_of_repository(grown))
    key = journal_key(history, cutting, repr(((), [], "")))
    path = tmp_path / "part.jsonl.partial"
    journal = Journal(path, key, resume=False)
    fill_journal(history, journal, cutting, executor=None)
    journal.close()
    # What a kill leaves behind: some commits whole, one in part.
    first_mark = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first_mark + b'{"context": "half", "completion": "of a comm')
    done = cli("extract-dataset", "--git-repo", grown, "--output", "part.jsonl", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert path.stat().st_mode & 0o077 == 0 if path.exists() else True


@pytest.fixture(scope="module")
def large(make_git: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules that Python brings along, in one commit that is cut in parts, and a second that repeats some of them."""
    folder = tmp_path_factory.mktemp("large") / "large"
    folder.mkdir()
    make_git("init", "--quiet", cwd=folder)
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(library.glob("[a-h]*.py"))
    assert sum(module.stat().st_size for module in modules) > 1 << 20
    for module in modules:
        shutil.copyfile(module, folder / module.name)
    make_git("add", ".", cwd=folder)
    make_git("commit", "--quiet", "-m", "all", cwd=folder)
    for module in modules[:6]:
        text = module.read_text(encoding="utf-8")
        (folder / f"again_{module.name}").write_text(text.replace("self", "this"), encoding="utf-8")
    make_git("add", ".", cwd=folder)
    make_git("commit", "--quiet", "-m", "again", cwd=folder)
    return folder


def test_several_processes_write_the_bytes_of_one(cli: Cli, large: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        names = ("--output", f"{jobs}.jsonl", "--eval-output", f"{jobs}.eval.jsonl", "--max-samples", 900)
        done = cli("extract-dataset", "--git-repo", large, *names, "--jobs", jobs, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "near duplicate" in done.stdout
    for name in ("jsonl", "eval.jsonl"):
        assert (tmp_path / f"1.{name}").read_bytes() == (tmp_path / f"3.{name}").read_bytes()
    assert len(examples(tmp_path / "1.jsonl")) == 900
    assert len(list(tmp_path.iterdir())) == 4


def test_a_journal_with_commits_in_it_is_gone_on_with(cli: Cli, large: Path, tmp_path: Path) -> None:
    from neuralforge.data.cutting import Cutting
    from neuralforge.data.extraction import fill_journal, journal_key
    from neuralforge.data.history import open_history
    from neuralforge.data.journal import Journal

    names = ("--eval-output", "e.jsonl", "--output")
    assert cli("extract-dataset", "--git-repo", large, *names, "d.jsonl", cwd=tmp_path).returncode == 0
    whole = [(tmp_path / name).read_bytes() for name in ("d.jsonl", "e.jsonl")]
    history = open_history(large)
    key = journal_key(history, Cutting(), repr(((), [], "")))
    path = tmp_path / "d.jsonl.partial"

    def stop(done: int, kept: int) -> None:
        raise KeyboardInterrupt

    journal = Journal(path, key, resume=False)
    with pytest.raises(KeyboardInterrupt):
        fill_journal(history, journal, Cutting(), executor=None, progress=stop)
    journal.settle(commits=1)
    assert (journal.commits, journal.kept) == (1, len(list(journal.lines())))
    journal.add("large", "unsettled.py", "python", b'{"context": "", "completion": "x"}\n')
    journal.close()
    done = cli("extract-dataset", "--git-repo", large, *names, "d.jsonl", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / name).read_bytes() for name in ("d.jsonl", "e.jsonl")] == whole


def test_what_became_of_a_file_or_an_example_is_explained_and_nothing_is_written(
    cli: Cli, refused: Callable[..., str], grown: Path, large: Path, make_git: Callable[..., None], tmp_path: Path
) -> None:
    def explain(what: str, *options: object, repository: Path = grown) -> str:
        done = cli("extract-dataset", "--git-repo", repository, "--explain", what, *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert re.fullmatch(r"bot\.py in \w{12}: left out: commit by a bot\n", explain("bot.py"))
    head, *found = explain("Account1.java").splitlines()
    assert re.fullmatch(r"Account1\.java in \w{12}: read", head)
    assert any(re.fullmatch(r"\w{16} of Account1\.java in \w{12}: kept", line) for line in found)
    assert explain("mail.py", "--languages", "java").endswith(": left out: other language than asked for\n")
    assert "over --max-samples" in explain("Account1.java", "--max-samples", 1)
    assert "jane.doe" not in explain("mail.py")

    again = explain("again_abc.py", repository=large)
    repeats = re.findall(r"^(\w{16}) of again_abc.py in \w{12}: left out: (\w+) duplicate \((\w{16})\)$", again, re.M)
    told = explain("abc.py", repository=large)
    repeats += re.findall(r"^(\w{16}) of abc.py in \w{12}: left out: (\w+) duplicate \((\w{16})\)$", told, re.M)
    assert repeats
    identifier, how, twin = repeats[0]
    assert f": left out: {how} duplicate ({twin})\n" in explain(identifier, repository=large)
    assert explain(twin, repository=large).endswith(": kept\n")

    assert [*tmp_path.iterdir()] == []
    command = ("extract-dataset", "--git-repo", grown)
    assert refused(*command, "--explain", "nobody.py", cwd=tmp_path) == "nothing is known of nobody.py"
    for options in ((), ("--explain", "bot.py", "--resume")):
        assert cli(*command, *options, cwd=tmp_path).returncode == 2


def test_what_cannot_be_read_is_one_line(
    cli: Cli, grown: Path, tmp_path: Path, refused: Callable[..., str], make_git: Callable[..., None]
) -> None:
    command = ("extract-dataset", "--output", "d.jsonl")
    assert "no such folder" in refused(*command, "--git-repo", "nowhere", cwd=tmp_path)
    (tmp_path / "plain").mkdir()
    assert "not a git repository" in refused(*command, "--git-repo", "plain", cwd=tmp_path)
    assert "none of use" in refused(*command, "--git-repo", grown, "--author", "nobody", cwd=tmp_path)
    assert "no commits since" in refused(*command, "--git-repo", grown, "--since", "2026-11-01", cwd=tmp_path)
    assert "language 'jva' is not known" in refused(*command, "--git-repo", grown, "--languages", "jva", cwd=tmp_path)
    (tmp_path / "d.jsonl.partial").write_text('{"mark": {"journal": 1, "key": "another"}}\n')
    assert "belongs to another extraction" in refused(*command, "--git-repo", grown, "--resume", cwd=tmp_path)
    assert not (tmp_path / "d.jsonl").exists()
    done = cli(*command, "--git-repo", grown, "--eval-output", "./d.jsonl", cwd=tmp_path)
    assert done.returncode == 2
