"""What a word for a base means, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralforge.models import catalog
from neuralforge.models.origin import locate
from neuralforge_common.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_friendly_name_is_its_hub_id_at_the_tables_revision() -> None:
    origin = locate("StarCoder2-3B", revision=None)
    entry = catalog.CATALOG["starcoder2-3b"]
    assert (origin.place, origin.is_local, origin.name) == (entry.hub_id, False, "starcoder2-3b")
    assert (origin.revision, origin.license) == (entry.revision, entry.license)


def test_a_given_revision_wins_over_the_tables() -> None:
    assert locate("starcoder2-3b", revision=COMMIT).revision == COMMIT


def test_any_hub_id_is_taken_and_its_terms_are_known_where_the_table_knows_them() -> None:
    unknown = locate("acme/own-model", revision="main")
    assert (unknown.place, unknown.is_local, unknown.revision, unknown.license) == ("acme/own-model", False, "main", "")
    assert locate("codellama/CodeLlama-7b-hf", revision=None).license == "llama2"


def test_a_folder_of_a_friendly_name_cannot_stand_in_for_it(here: Path) -> None:
    (here / "starcoder2-3b").mkdir()
    assert not locate("starcoder2-3b", revision=None).is_local
    for written in ("./starcoder2-3b", Path("starcoder2-3b"), here / "starcoder2-3b"):
        origin = locate(written, revision=None)
        assert (origin.is_local, origin.name, origin.revision) == (True, "starcoder2-3b", None)


def test_a_folder_is_named_after_itself_however_it_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "my-base").mkdir()
    assert locate("my-base/", revision=None).name == "my-base"
    monkeypatch.chdir(here / "my-base")
    assert locate(".", revision=None).name == "my-base"


@pytest.mark.parametrize("written", ["./nowhere", "../nowhere", "/no/such/base", "~/no-such-base", "nowhere.gguf"])
def test_a_path_that_leads_nowhere_is_said_to_lead_nowhere(here: Path, written: str) -> None:
    with pytest.raises(ModelError, match="no such folder or file"):
        locate(written, revision=None)


def test_a_path_object_is_never_a_name(here: Path) -> None:
    with pytest.raises(ModelError, match="no such folder or file"):
        locate(Path("nf-tiny"), revision=None)


@pytest.mark.parametrize("written", ["", "  ", "codet6", "no base", "a/b/c", "acme/own model"])
def test_a_word_that_is_nothing_is_refused(here: Path, written: str) -> None:
    with pytest.raises(ModelError):
        locate(written, revision=None)


def test_what_lies_on_this_machine_has_no_revision(here: Path) -> None:
    (here / "my-base").mkdir()
    with pytest.raises(ModelError, match=r"on this machine: it has no revision 'main'"):
        locate("my-base", revision="main")
    with pytest.raises(ModelError, match="part of this installation"):
        locate("smollm2-135m", revision=COMMIT)


def test_a_file_that_is_no_gguf_is_refused(here: Path) -> None:
    (here / "notes.txt").write_text("GGUX", encoding="utf-8")
    with pytest.raises(ModelError, match="not a GGUF file"):
        locate("notes.txt", revision=None)
