"""Faults put into functions: they parse, they differ, and the line that is learnt is the one a person wrote."""

from __future__ import annotations

import ast
import inspect
import textwrap
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from neuralforge.data.example import Example
from neuralforge.tasks import BugDetection, Documentation
from neuralforge.tasks.function import Function, functions_in, parse_other
from neuralforge.tasks.mutation import mutants

PYTHON = '''def pick(items, limit, keep):
    """Take what is wanted of the items."""
    found = []
    for place in range(1, len(items)):
        if keep and place < limit:
            found.append(scale(items[place], limit))
        if items[place] == limit:
            return found
    return found + [limit - 1]
'''
JAVA = """class A {
    /**
     * Adds two numbers of a list together.
     */
    @Override
    public int add(int first, int second) {
        if (first < 0 && second == 1) {
            return call(first, second);
        }
        return first + second;
    }

    void other() {}
}
"""
SCRIPT = """// A file.
/** Says whether a list holds an item. */
export function has(list, item) {
  for (let i = 0; i < list.length; i++) {
    if (list[i] === item) {
      return true;
    }
  }
  return check(list, item);
}

"""
GO = """// Add gives the sum of two numbers.
func Add(a int, b int) int {
	if a > b {
		return Sub(a, b)
	}
	return a + b
}

"""
RUST = """/// Gives the sum of two numbers.
#[inline]
fn add(a: u32, b: u32) -> u32 {
    if a > b {
        return sub(a, b);
    }
    a + b
}

"""
C = """/** Gives the larger of two numbers. */
int larger(int a, int b) {
    if (a > b) {
        return a;
    }
    return use(a, b);
}

"""
CODE = {"python": PYTHON, "java": JAVA, "javascript": SCRIPT, "typescript": SCRIPT, "go": GO, "rust": RUST, "c": C}
KINDS = {"off_by_one", "swapped_operator", "negated_condition", "wrong_variable", "missing_return", "swapped_arguments"}


def function_of(language: str) -> Function:
    (function, *_) = functions_in(Example(context="", completion=CODE[language], language=language))
    return function


@pytest.mark.parametrize("language", CODE)
def test_a_mutant_parses_and_differs_in_one_line(language: str) -> None:
    function = function_of(language)
    found = mutants(function, 1000, seed=0)
    assert len(found) >= 8
    assert len({mutant.text for mutant in found}) == len(found)
    original = function.text.splitlines(keepends=True)
    for mutant in found:
        lines = mutant.text.splitlines(keepends=True)
        changed = [number for number, pair in enumerate(zip(lines, original, strict=True)) if pair[0] != pair[1]]
        assert changed == [mutant.line]
        assert mutant.fixed == original[mutant.line]
        if language == "python":
            assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(function.text))
        else:
            assert parse_other(mutant.text, language) is not None


def test_every_kind_of_fault_is_put_into_python_and_one_of_each_comes_first() -> None:
    function = function_of("python")
    assert {mutant.kind for mutant in mutants(function, 1000, seed=0)} == KINDS
    assert {mutant.kind for mutant in mutants(function, len(KINDS), seed=0)} == KINDS


@pytest.mark.parametrize(
    ("line", "kind", "faulty"),
    [
        ("return a + b", "swapped_operator", "return a - b"),
        ("return a and b", "swapped_operator", "return a or b"),
        ("return a < b", "off_by_one", "return a <= b"),
        ("return a[0]", "off_by_one", "return a[1]"),
        ("return a is not b", "negated_condition", "return a is b"),
        ("return 1 if not a else b", "negated_condition", "return 1 if a else b"),
        ("return 1 if a.x else b", "negated_condition", "return 1 if not a.x else b"),
        ("return a.b", "wrong_variable", "return b.b"),
        ("return a", "missing_return", "a"),
        ("return f(a, 'ü', b)", "swapped_arguments", "return f('ü', a, b)"),
    ],
)
def test_a_fault_is_the_one_that_its_name_says(line: str, kind: str, faulty: str) -> None:
    function = Function(text=f"def g(a, b):\n    {line}\n", above="", language="python")
    found = {(mutant.kind, mutant.text.splitlines()[1].strip()) for mutant in mutants(function, 1000, seed=0)}
    assert (kind, faulty) in found


def test_the_same_seed_gives_the_same_faults_and_another_gives_others() -> None:
    function = function_of("python")
    mutants.cache_clear()
    first = mutants(function, 2, seed=5)
    mutants.cache_clear()
    assert mutants(function, 2, seed=5) == first
    assert len({mutants(function, 2, seed=seed) for seed in range(6)}) > 1


def modules() -> Iterator[Example]:
    for module in (ast, inspect, textwrap, pytest):
        lines = inspect.getsource(module).splitlines(keepends=True)
        # Windows as a dataset cuts them: they begin and end anywhere.
        for first in range(0, len(lines), 60):
            yield Example(context="".join(lines[first : first + 50]), completion="\n", language="python", path="a.py")


def test_real_code_gives_faults_of_every_kind_and_nothing_that_does_not_parse() -> None:
    kinds: Counter[str] = Counter()
    for example in modules():
        for function in functions_in(example):
            assert isinstance(ast.parse(function.text).body[0], ast.FunctionDef | ast.AsyncFunctionDef)
            for mutant in mutants(function, 3, seed=1):
                ast.parse(mutant.text)
                kinds[mutant.kind] += 1
    assert set(kinds) == KINDS
    assert min(kinds.values()) >= 5


def test_the_bug_is_shown_and_the_line_as_it_was_is_asked_for() -> None:
    example = Example(context="package a\n\n", completion=GO, language="go", path="a.go", license="MIT")
    one, two = BugDetection().examples(example)
    assert one.context != two.context
    for made in (one, two):
        assert made.context.startswith("// Task: one line of this function is wrong.\nfunc Add(a int, b int) int {\n")
        assert made.context.endswith("}\n// That line, fixed:\n")
        assert made.completion in GO
        assert made.completion not in made.context or made.completion.strip() == "}"
        assert (made.path, made.license, made.language) == ("a.go", "MIT", "go")


@pytest.mark.parametrize(
    ("language", "documentation"),
    [
        ("python", '"""Take what is wanted of the items."""\n'),
        ("java", "/**\n * Adds two numbers of a list together.\n */\n"),
        ("javascript", "/** Says whether a list holds an item. */\n"),
        ("go", "// Add gives the sum of two numbers.\n"),
        ("rust", "/// Gives the sum of two numbers.\n"),
        ("c", "/** Gives the larger of two numbers. */\n"),
    ],
)
def test_documentation_is_asked_for_without_being_shown(language: str, documentation: str) -> None:
    (made,) = Documentation().examples(Example(context="", completion=CODE[language], language=language))
    assert made.completion == documentation
    assert documentation.strip() not in made.context
    mark = "#" if language == "python" else "//"
    assert made.context.startswith(f"{mark} Task: document this function.\n")
    assert made.context.endswith(f"{mark} Documentation:\n")


def test_a_docstring_of_several_lines_loses_the_functions_indentation_alone() -> None:
    code = (
        'class A:\n    def f(self):\n        """Do one thing.\n\n'
        '          Then more:\n        end.\n        """\n        return 1\n'
    )
    (made,) = Documentation().examples(Example(context=code, completion="x = 1\n", language="python"))
    assert made.completion == '"""Do one thing.\n\n  Then more:\nend.\n"""\n'
    assert "def f(self):\n    return 1\n" in made.context


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("def f(a):\n    '''One word'''\n    return a\n", "python"),
        ("def f(a):\n    '''Nothing but words in here.'''\n", "python"),
        ("// an ordinary comment of many words\nfunction f(a) {\n  return a;\n}\n\n", "javascript"),
        ("some prose that is no code (at all\n", "python"),
        ("def f(a:\n  return\n", "python"),
        ("int f( {{{ ;\n", "c"),
        ("(define (f x) x)\n", "scheme"),
        ("", ""),
    ],
)
def test_nothing_is_made_of_what_holds_nothing(code: str, language: str) -> None:
    example = Example(context="", completion=code, language=language)
    assert list(Documentation().examples(example)) == []
    assert language == "python" or language == "javascript" or list(BugDetection().examples(example)) == []


def test_lines_are_counted_as_the_parser_counts_them() -> None:
    code = "def f(a, b):\n    x = 'a\x0cb\u2028'\n    return a + b\n"
    for mutant in mutants(Function(text=code, above="", language="python"), 100, seed=0):
        assert mutant.fixed in code
        assert mutant.fixed not in mutant.text
    assert list(functions_in(Example(context="", completion=code.replace("    x", "\r    x"), language="python"))) == []


def test_a_nest_of_functions_and_a_long_line_of_them_take_no_time() -> None:
    nest = "".join(" " * depth + "def f(a):\n" for depth in range(1000)) + " " * 1000 + "return a\n"
    started = time.process_time()
    assert list(functions_in(Example(context="", completion=nest, language="python"))) == []
    flat = "def f(a):\n    return a\n\n" * 5_000
    assert len(list(functions_in(Example(context="", completion=flat, language="python")))) == 5_000
    assert time.process_time() - started < 5
