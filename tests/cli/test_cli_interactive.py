"""`train --interactive`: asks at a terminal for what nobody has said, and for nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Terminals = Callable[..., Any]
Rows = Callable[[str], dict[str, list[str]]]

PLACE = "Learn from which repository, folder or .jsonl file?"
BASE, NAME, EPOCHS = "Which base model?", "A name for the adapter?", "How many epochs?"
EXAMPLES = "".join(f'{{"context": "a = {n}\\nb", "completion": " = {n * n * n}"}}\n' for n in range(9))


def answer(session: Any, answers: dict[str, str]) -> None:
    for question, text in answers.items():
        session.wait_for(question)
        session.send(f"{text}\n")


def test_without_a_terminal_it_is_refused_in_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("train", "--interactive", "--dry-run", cwd=tmp_path)
    assert message == "--interactive needs a terminal to ask at"


def test_return_takes_every_default(terminal: Terminals, rows: Rows, team_code: Path) -> None:
    session = terminal("train", "--interactive", "--dry-run", cwd=team_code)
    answer(session, {PLACE: "", BASE: "", NAME: "", EPOCHS: ""})
    assert session.ended() == 0
    table = rows(session.shown)
    assert table["dataset.sources"][0] == "['.']"
    assert [table[key][0] for key in ("model.base", "model.adapter_name", "training.epochs")] == [
        *("smollm2-135m", "my-adapter", "3")
    ]
    assert "the adapter would go to my-adapter.lora" in session.shown


def test_answers_count_and_the_kind_of_place_is_seen(terminal: Terminals, rows: Rows, repository: Path) -> None:
    session = terminal("train", "--interactive", "--dry-run", cwd=repository.parent)
    answer(session, {PLACE: "repository", BASE: "nf-tiny", NAME: "ours", EPOCHS: "7"})
    assert session.ended() == 0
    table = rows(session.shown)
    assert table["dataset.from_git"] == ["repository", "command line"]
    assert table["dataset.sources"] == ["[]", "default"]
    assert table["model.base"] == ["nf-tiny", "command line"]
    assert table["training.epochs"] == ["7", "command line"]
    assert "the adapter would go to ours.lora" in session.shown


def test_a_file_is_seen_below_the_home_folder_too(terminal: Terminals, rows: Rows, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "d.jsonl").write_text(EXAMPLES)
    session = terminal("train", "--interactive", "--dry-run", cwd=tmp_path, HOME=str(home))
    answer(session, {PLACE: "~/d.jsonl", BASE: "", NAME: "", EPOCHS: ""})
    assert session.ended() == 0
    assert rows(session.shown)["dataset.train_file"] == [str(home / "d.jsonl"), "command line"]


def test_what_is_given_is_not_asked(terminal: Terminals, rows: Rows, team_code: Path, tmp_path: Path) -> None:
    shutil.copyfile(team_code / "csv.py", tmp_path / "code.py")
    (tmp_path / "c.yaml").write_text("model:\n  base: codet5-770m\ndataset:\n  sources: [code.py]\n")
    options = ("--config", "c.yaml", "--name", "mine")
    session = terminal("train", *options, "--interactive", "--dry-run", cwd=tmp_path, NF_TRAINING_EPOCHS="4")
    assert session.ended() == 0
    assert not any(question in session.shown for question in (PLACE, BASE, NAME, EPOCHS))
    table = rows(session.shown)
    assert table["model.base"] == ["codet5-770m", "c.yaml:2"]
    assert table["training.epochs"] == ["4", "NF_TRAINING_EPOCHS"]


def test_a_wrong_answer_is_told_like_a_wrong_option(terminal: Terminals, team_code: Path) -> None:
    session = terminal("train", "--interactive", "--dry-run", cwd=team_code)
    answer(session, {PLACE: "", BASE: "", NAME: "../x", EPOCHS: "many"})
    assert session.ended() == 1
    assert "error: command line: model.adapter_name: wanted a name of letters" in session.shown
    assert "command line: training.epochs: wanted a whole number ≥ 1, got 'many'" in session.shown
    assert "Traceback" not in session.shown


def test_a_faulty_file_is_told_before_anything_is_asked(terminal: Terminals, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lora:\n  aplha: 3\n")
    session = terminal("train", "--config", "c.yaml", "--interactive", "--dry-run", cwd=tmp_path)
    assert session.ended() == 1
    assert session.shown == "error: c.yaml:2: lora.aplha: unknown key, did you mean 'alpha'?\n"


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_whoever_leaves_at_a_question_leaves_nothing_behind(terminal: Terminals, tmp_path: Path, key: str) -> None:
    session = terminal("train", "--interactive", cwd=tmp_path)
    session.wait_for(PLACE)
    session.wait_for("(.)")
    session.wait_for(": ")
    session.wait_until_asleep()
    session.send(key)
    assert session.ended() == 130
    assert session.shown.splitlines()[-1] == "interrupted"
    assert "Traceback" not in session.shown
    assert [*tmp_path.iterdir()] == []
