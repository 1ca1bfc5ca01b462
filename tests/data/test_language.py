"""A file's language by its name, and the many names of a language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.language import LANGUAGES, canonical_language, canonical_languages, language_of
from neuralforge_common.errors import DataError


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a.py", "python"),
        ("typed/stubs.pyi", "python"),
        ("Main.java", "java"),
        ("app.js", "javascript"),
        ("view.jsx", "javascript"),
        ("app.ts", "typescript"),
        ("view.tsx", "typescript"),
        ("lib.rs", "rust"),
        ("main.go", "go"),
        ("kernel.cu", "c++"),
        ("vector.hpp", "c++"),
        ("both.h", "c++"),
        ("main.c", "c"),
        ("Program.cs", "c#"),
        ("build.gradle", "groovy"),
        ("install.sh", "shell"),
        ("style.scss", "css"),
        ("main.tf", "terraform"),
        ("deep/er/Dockerfile", "dockerfile"),
        ("Makefile", "makefile"),
        ("CMakeLists.txt", "cmake"),
        ("api.proto", "protobuf"),
    ],
)
def test_a_name_tells_its_language(path: str, language: str) -> None:
    assert language_of(path) == language
    assert language in LANGUAGES


@pytest.mark.parametrize(
    "path",
    ["data.json", "notes.md", "poetry.lock", "a.yaml", "logo.svg", "book.ipynb", "build.gyp", "a.txt", "py", "", "a/"],
)
def test_data_prose_and_unknown_names_are_no_language(path: str) -> None:
    assert language_of(path) == ""


def test_only_the_last_part_of_a_path_counts() -> None:
    assert language_of("python.py/readme.md") == ""
    assert language_of("notes.md/run.py") == "python"


@pytest.mark.parametrize(
    ("typed", "language"),
    [("py", "python"), ("JS", "javascript"), (" ts ", "typescript"), ("C++", "c++"), ("golang", "go"), ("sh", "shell")],
)
def test_short_names_mean_the_long_ones_in_any_case(typed: str, language: str) -> None:
    assert canonical_language(typed) == language


@given(st.sampled_from(LANGUAGES))
def test_a_canonical_name_is_its_own(name: str) -> None:
    assert canonical_language(name) == canonical_language(name.upper()) == name


def test_an_unknown_language_is_refused_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(DataError, match="'pyhton' is not known") as refused:
        canonical_language("pyhton")
    assert "did you mean 'python'?" in refused.value.hint
    assert all(name in refused.value.hint for name in LANGUAGES)


def test_nothing_typed_means_every_language() -> None:
    assert canonical_languages(["", "  "]) == frozenset()
    assert canonical_languages(["py", "python", "js"]) == {"python", "javascript"}
