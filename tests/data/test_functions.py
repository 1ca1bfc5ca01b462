"""The bodies of functions, in each language that has a grammar."""

from __future__ import annotations

import pytest

from neuralforge.data.extract import extract_examples
from neuralforge.data.functions import function_bodies, grammar_languages, has_functions
from neuralforge.data.source import SourceFile

BODY = "  answer = compute(what)"
BRACES = "f({}) {{\n" + BODY + ";\n}}\n"

CODE = {
    "java": f"class A {{\n int {BRACES.format('int what')}}}\n",
    "javascript": f"function {BRACES.format('what')}",
    "typescript": f"export function f(what: number): number {{\n{BODY};\n}}\n",
    "go": f"package a\nfunc f(what int) int {{\n{BODY}\n}}\n",
    "rust": f"fn f(what: i32) -> i32 {{\n{BODY};\n}}\n",
    "c": f"int {BRACES.format('int what')}",
    "c++": f"int A::{BRACES.format('int what')}",
    "c#": f"class A {{\n int {BRACES.format('int what')}}}\n",
    "ruby": f"def f(what)\n{BODY}\nend\n",
    "php": f"<?php\nfunction {BRACES.format('$what')}",
    "shell": "f() {\n  answer=$(compute what)\n}\n",
    "kotlin": f"fun f(what: Int): Int {{\n{BODY}\n}}\n",
    "scala": f"object A {{\n def f(what: Int): Int = {{\n{BODY}\n }}\n}}\n",
    "swift": f"func f(what: Int) -> Int {{\n{BODY}\n}}\n",
}


def test_every_grammar_is_tried_here() -> None:
    assert {*grammar_languages()} == {"python", *CODE}
    assert not has_functions("haskell")
    assert function_bodies("f x = x", "haskell") == []


@pytest.mark.parametrize("language", CODE)
def test_a_body_is_the_lines_between_signature_and_end(language: str) -> None:
    text = CODE[language]
    (body,) = function_bodies(text, language)
    assert "compute" in "\n".join(text.split("\n")[slice(*body)])
    assert body[1] - body[0] == 1


def test_of_nested_functions_the_outer_one_counts_and_one_liners_do_not() -> None:
    text = "function a() {\n  return () => {\n    return 1;\n  };\n}\nfunction b() { return 2; }\n"
    assert function_bodies(text, "javascript") == [(1, 4)]


@pytest.mark.parametrize("language", ["java", "javascript", "c++"])
def test_half_a_file_and_deep_nesting_do_no_harm(language: str) -> None:
    assert isinstance(function_bodies("}}}} class { int f(( {", language), list)
    assert isinstance(function_bodies("f(){" * 20_000, language), list)
    assert isinstance(function_bodies("\ud83d void f() {\n é\n}\n", language), list)


def test_only_what_was_written_is_a_completion_in_the_context_of_the_whole_file() -> None:
    text = CODE["java"].replace("class A {", "class A {\n  private int answer = 41 + firstOfAll();\n")
    file = SourceFile(path="A.java", text=text, language="java")
    whole = list(extract_examples(file))
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if "compute" in line)
    (written,) = extract_examples(file, written=[(at, at + 1)], suffix_share=1)
    assert written.completion.strip() == "answer = compute(what);"
    assert written.context.startswith("class A {")
    assert text == written.context + written.completion + written.suffix
    assert len(whole) > 1
    assert written.kind == "function"
    assert not list(extract_examples(file, written=[]))
