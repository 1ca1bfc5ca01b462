"""Texts compared, and code that parses or does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.data.example import Example
from neuralforge.data.grammars import GRAMMARS
from neuralforge.evaluation.syntax import syntax_valid
from neuralforge.evaluation.text import edit_similarity, exact_match, levenshtein, line_match

TEXTS = st.text(alphabet="abc\n ", max_size=24)


def by_the_table(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(TEXTS, TEXTS)
def test_the_distance_is_that_of_the_table(a: str, b: str) -> None:
    assert levenshtein(a, b) == by_the_table(a, b)


@given(TEXTS, TEXTS)
def test_similarity_is_symmetric_and_one_only_for_the_same_text(a: str, b: str) -> None:
    similarity = edit_similarity(a, b)
    assert 0 <= similarity <= 1
    assert similarity == edit_similarity(b, a)
    assert (similarity == 1) == exact_match(a, b)


def test_space_at_ends_of_lines_and_of_the_text_is_no_difference() -> None:
    assert exact_match("    return x  \n\n", "    return x")
    assert not exact_match("  return x", "    return x")
    assert line_match("return x\nmore", "\nreturn x")
    assert not line_match("return y", "return x")


def test_texts_of_any_length_are_compared_in_bounded_time() -> None:
    assert edit_similarity("a" * 1_000_000, "a" * 900_000) == 1.0


CODE = {
    "python": ("def f(x):\n", "    return (x + 1)\n", "    return (x + 1\n"),
    "java": ("class A { int f(int x) {\n", "return (x + 1); } }", "return (x + ; } }"),
    "javascript": ("function f(x) {\n", "return (x + 1); }", "return (x + ; }"),
    "typescript": ("function f(x: number): number {\n", "return (x + 1); }", "return (x + ; }"),
    "go": ("package a\nfunc f(x int) int {\n", "return (x + 1)\n}\n", "return (x + \n}\n"),
    "rust": ("fn f(x: i32) -> i32 {\n", "(x + 1) }", "(x + ; }"),
    "c": ("int f(int x) {\n", "return (x + 1); }", "return (x + ; }"),
    "c++": ("int f(int x) {\n", "return (x + 1); }", "return (x + ; }"),
    "c#": ("class A { int F(int x) {\n", "return (x + 1); } }", "return (x + ; } }"),
    "ruby": ("def f(x)\n", "(x + 1)\nend\n", "(x + \nend\n"),
    "php": ("<?php function f($x) {\n", "return ($x + 1); }", "return ($x + ; }"),
    "shell": ("f() {\n", 'echo "$1"\n}\n', 'echo "$1\n}\n'),
    "kotlin": ("fun f(x: Int): Int {\n", "return (x + 1)\n}\n", "return (x + \n}\n"),
    "scala": ("object A { def f(x: Int): Int = {\n", "(x + 1) } }", "(x + } }"),
    "swift": ("func f(x: Int) -> Int {\n", "return (x + 1) }", "return (x + }"),
}


@pytest.mark.parametrize("language", GRAMMARS)
def test_what_does_not_parse_is_told_in_every_language_with_a_grammar(language: str) -> None:
    context, wanted, broken = CODE[language]
    example = Example(context=context, completion=wanted, language=language)
    assert syntax_valid(example, wanted) is True
    assert syntax_valid(example, broken) is False


def test_what_a_person_left_open_is_not_held_against_a_completion() -> None:
    # A window that ends inside a function: no completion could make this file whole.
    example = Example(context="class A { int f() { int x = 1;\n", completion="x = x + 1;\n", language="java")
    assert syntax_valid(example, "x = 2;\n") is True
    assert syntax_valid(example, "x = ) 2 ( ;\n") is False


def test_the_text_behind_the_cursor_counts() -> None:
    example = Example(context="def f(x):\n    y = (", completion="x + 1", suffix=")\n    return y\n", language="python")
    assert syntax_valid(example, "2 * x") is True
    assert syntax_valid(example, "2 * x)") is False


def test_a_writer_that_was_stopped_is_judged_up_to_its_last_whole_line() -> None:
    example = Example(context="def f(x):\n", completion="    y = x\n    return y\n", language="python")
    assert syntax_valid(example, "    y = x\n    return (y +", cut=True) is True
    assert syntax_valid(example, "    y = x\n    return (y +") is False


def test_python_is_held_to_pythons_own_parser() -> None:
    # Its grammar for tree-sitter takes this for code.
    example = Example(context="def f(x):\n", completion="    return x\n", language="python")
    assert syntax_valid(example, "    f(a=1, 2)\n") is False


@pytest.mark.parametrize("text", ["(" * 100_000, "x = 1\0\n", "    return '\ud800'\n"])
def test_hostile_text_is_a_verdict_and_no_crash(text: str) -> None:
    example = Example(context="def f(x):\n", completion="    return x\n", language="python")
    assert syntax_valid(example, text) is False


@pytest.mark.parametrize("language", ["haskell", ""])
def test_a_language_without_a_grammar_is_not_judged(language: str) -> None:
    assert syntax_valid(Example(context="", completion="x", language=language), "x") is None


def test_a_text_that_is_too_long_is_not_parsed() -> None:
    assert syntax_valid(Example(context="x\n" * 200_000, completion="x", language="python"), "x") is None
