"""Every example is a piece of its file, to the character, and no line is learnt twice."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.data.example import Example
from neuralforge.data.extract import MAX_COMPLETION, MAX_CONTEXT, extract_examples
from neuralforge.data.source import SourceFile

ALL = 1 << 30  # a context that is never cut is the whole text before the completion: it tells where that stands

MODULES = ("argparse", "ast", "bisect", "cgi", "csv", "dis", "enum", "heapq", "inspect", "json/decoder", "typing")


def cut(text: str, language: str = "python", **room: int) -> list[Example]:
    return list(extract_examples(SourceFile(path="a", text=textwrap.dedent(text), language=language), **room))


def check_laws(text: str, language: str, max_context: int, max_completion: int) -> None:
    file = SourceFile(path="a", text=text, language=language)
    whole = list(extract_examples(file, max_context=ALL, max_completion=max_completion))
    spans = []
    for example in whole:
        begin = len(example.context)
        end = begin + len(example.completion)
        # A piece of the file, made of whole lines.
        assert text[:end] == example.context + example.completion
        assert text[begin - 1 : begin] == "\n"
        assert text[end : end + 1] in ("", "\n")
        assert example.completion.strip()
        assert example.context.strip(), "there is nothing to go by"
        assert len(example.completion) <= max_completion
        spans.append((begin, end))
    # In order, with at least a line end between two: no line belongs to both.
    assert all(end < begin for (_, end), (begin, _) in pairwise(spans))
    # A shorter context begins at the first line start that the room allows, or anywhere if no line starts in it.
    short = list(extract_examples(file, max_context=max_context, max_completion=max_completion))
    assert [example.completion for example in short] == [example.completion for example in whole]
    for example, complete in zip(short, whole, strict=True):
        end = len(complete.context)
        begins = range(max(0, end - max_context), end)
        begin = next((at for at in begins if at == 0 or text[at - 1] == "\n"), begins[0])
        assert example.context == text[begin:end]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("language", ["python", "javascript"])
def test_examples_of_real_code_are_pieces_of_it_that_share_no_line(library: Path, module: str, language: str) -> None:
    text = (library / f"{module}.py").read_text()
    check_laws(text, language, MAX_CONTEXT, MAX_COMPLETION)
    assert len(cut(text, language)) > 5


lines = st.sampled_from(
    [
        *("", "", "    ", "x = 1", "    return compute(x, y, z)", "def f(a, b):", "class A:", '    """Doc."""'),
        *("    def g(self):", "        self.value = self.compute(a) + b", "    # a comment", "}", ") -> int:"),
        *("\tif (x) {", "@decorated", "é𝔸\u2028ﬀ", "async def h(): return 1", "\x0c", "if x:", "else:", "    pass"),
        *("'''", "a" * 700, "f(", "    1,", ")", "x = 1; \\"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(lines, max_size=40).map("\n".join),
    st.sampled_from(["python", "java", ""]),
    st.integers(1, 400),
    st.integers(1, 700),
)
def test_examples_of_any_lines_are_pieces_of_them_that_share_no_line(
    text: str, language: str, max_context: int, max_completion: int
) -> None:
    check_laws(text, language, max_context, max_completion)


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\r\0"), max_size=300), st.integers(1, 50), st.integers(1, 50))
def test_examples_of_any_text_are_pieces_of_it_that_share_no_line(text: str, context: int, completion: int) -> None:
    check_laws(text, "python", context, completion)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_examples_of_half_a_file_are_pieces_of_it(data: st.DataObject) -> None:
    text = inspect.getsource(textwrap)
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    check_laws(text[begin:end], "python", 300, 200)


@pytest.mark.parametrize("module", ["argparse", "heapq", "csv"])
def test_nearly_all_of_a_real_module_is_completed_by_some_example(library: Path, module: str) -> None:
    text = (library / f"{module}.py").read_text()
    learnt = sum(len(example.completion) for example in cut(text))
    assert learnt > 0.8 * len(text)


def test_an_example_says_where_it_comes_from() -> None:
    file = SourceFile(path="src/a.py", text="x = 1\n" * 40, language="python", repo="team", commit="f" * 40)
    example = next(extract_examples(file))
    assert (example.path, example.language, example.repo, example.commit) == ("src/a.py", "python", "team", "f" * 40)


# --- Python: the bodies of functions ----------------------------------------------------------------------------------


def test_the_body_of_a_function_is_what_follows_its_signature_and_docstring() -> None:
    text = '''
        def area(radius):
            """Area of a circle."""
            # Archimedes
            squared = radius * radius
            return 3.14159 * squared


        class Circle:
            async def draw(
                self, canvas
            ) -> None:
                # anti-aliased
                await canvas.circle(self.radius)
                await canvas.flush()
        '''
    examples = cut(text)
    bodies = [examples[0], examples[-1]]
    assert [example.completion for example in bodies] == [
        "    # Archimedes\n    squared = radius * radius\n    return 3.14159 * squared",
        "        # anti-aliased\n        await canvas.circle(self.radius)\n        await canvas.flush()",
    ]
    assert bodies[0].context.endswith('"""Area of a circle."""\n')
    assert bodies[1].context.endswith(") -> None:\n")
    (between,) = examples[1:-1]
    assert between.completion == "class Circle:\n    async def draw(\n        self, canvas\n    ) -> None:"


def test_a_function_inside_a_function_belongs_to_its_body() -> None:
    text = """
        def outer(values):
            def inner(value):
                return value * 2 + 1
            return [inner(value) for value in values]
        """
    (example,) = cut(text)
    assert example.completion == textwrap.indent(textwrap.dedent(text).strip().split("\n", 1)[1], "")


@pytest.mark.parametrize(
    "holder",
    ["if DEBUG:", "class A:", "try:", "for _ in X:", "with a as b:", "while True:", "match x:\n    case 1:"],
)
def test_functions_are_found_wherever_a_module_can_hold_them(holder: str) -> None:
    depth = "    " * (holder.count("\n") + 1)
    body = f"{depth}    first = value + 12345\n{depth}    return first * 67890"
    text = f"import os\n{holder}\n{depth}def f(value):\n{body}\n"
    text += "except E:\n    pass\n" if holder == "try:" else ""
    assert body in [example.completion for example in cut(text)]


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\ndef f(): return some_function(1, 2, 3)\n",  # all in one line
        'x = 1\ndef f(a):\n    """Doc."""; return some_function(a)\n',  # behind the docstring
        "x = 1\ndef f(\n    a): return some_function(a, a, a)\n",  # behind the end of the signature
        'x = 1\ndef f(a):\n    """Nothing but a docstring of some length."""\n',
    ],
)
def test_a_body_that_does_not_begin_its_line_is_left_to_windows(text: str) -> None:
    ast.parse(text)
    for example in cut(text):
        assert example.context == "x = 1\n"


@pytest.mark.parametrize("body", ["pass", "return self.x", "...", "raise E"])
def test_a_body_with_nothing_to_foretell_is_no_example_of_its_own(body: str) -> None:
    assert cut(f"class A:\n    def f(self):\n        {body}\n") == []


def test_the_body_of_a_decorated_inner_function_begins_at_its_decorator() -> None:
    (example,) = cut(
        "def outer():\n    @functools.wraps(f)\n    def inner():\n        return 12345\n    return inner\n"
    )
    assert example.completion.startswith("    @functools.wraps(f)\n")


def test_a_long_body_is_cut_at_a_pause_and_goes_on_as_windows() -> None:
    blocks = ["".join(f"    value_{n}_{i} = compute({n}, {i})\n" for i in range(6)) for n in range(12)]
    text = "def f():\n" + "\n".join(blocks)
    completions = [example.completion for example in cut(text)]
    assert len(completions) >= 4
    assert all(completion.splitlines()[-1].endswith(", 5)") for completion in completions), "cut inside a block"
    assert "".join(completions).replace("\n", "") == "".join(blocks).replace("\n", "")


def test_bodies_are_found_in_characters_not_bytes() -> None:
    text = 'é = "𝔸𝔸"\ndef größe(ä): \n    """ﬀ"""\n    ergebnis = ä + "é𝔸"\n    return ergebnis\n'
    (example,) = cut(text)
    assert example.completion == '    ergebnis = ä + "é𝔸"\n    return ergebnis'


def test_a_language_with_a_grammar_gives_the_bodies_of_its_functions() -> None:
    completions = [example.completion for example in cut(JAVA, "java")]
    assert completions[-1] == '        String greeting = "Hello, " + name;\n        return greeting + "!";'
    assert completions == [example.completion for example in cut(JAVA.replace("\n}\n", "\n"), "java")], "half a file"


# --- Windows: every other language, and what Python cannot parse ------------------------------------------------------

JAVA = """\
package team;

public class User {
    private String name;
    private String address;

    public String greeting() {
        String greeting = "Hello, " + name;
        return greeting + "!";
    }
}
"""


def test_windows_end_at_a_blank_line_or_where_a_block_ends() -> None:
    completions = [example.completion for example in cut(JAVA, "groovy", max_completion=140)]
    assert completions == [
        "public class User {\n    private String name;\n    private String address;",
        '    public String greeting() {\n        String greeting = "Hello, " + name;\n'
        '        return greeting + "!";\n    }\n}',
    ]
    # With less room, it is the end of the block.
    text = "package team;\n" + "\n".join(f"void f{i}() {{\n    call({i});\n}}" for i in range(9))
    completions = [example.completion for example in cut(text, "groovy", max_completion=100)]
    assert len(completions) > 2
    assert all(completion.startswith("void") and completion.endswith("\n}") for completion in completions)


def test_the_first_line_that_says_something_is_never_a_completion() -> None:
    examples = cut("\n\n" + JAVA, "java")
    assert examples[0].context.startswith("\n\npackage team;\n")


@pytest.mark.parametrize("language", ["go", "", "sql"])
def test_a_language_without_a_parser_gives_windows(language: str) -> None:
    text = "header line\n" + "".join(f"statement number {i};\n" for i in range(100))
    examples = cut(text, language)
    assert len(examples) > 3
    assert all(len(example.completion) > MAX_COMPLETION // 2 for example in examples[:-1])


@pytest.mark.parametrize(
    "broken",
    ["print 'python 2'\n", "def f(:\n", "x = (\n", "\tx\n  y\n", "x = 1\n" + "(" * 300 + "\n", "x = '\\ud800'\n\0\n"],
    ids=["python 2", "signature", "open bracket", "indentation", "nested brackets", "NUL"],
)
def test_python_that_cannot_be_parsed_gives_windows(broken: str) -> None:
    text = broken + "".join(f"some_value_{i} = compute({i})\n" for i in range(40))
    check_laws(text, "python", 500, 300)
    assert len(cut(text, max_completion=300)) > 2


def test_brackets_or_blocks_nested_to_break_parsers_give_windows() -> None:
    tail = "".join(f"some_value_{i} = compute({i})\n" for i in range(40))
    for trap in ("-" * 4000 + "1\n", "x" + ".y" * 2000 + "\n", "[" * 4000 + "\n", "1" + "+1" * 2000 + "\n"):
        text = tail * 8 + trap + tail
        assert len(cut(text)) > 2


def test_old_escapes_in_somebodys_string_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert cut('def f():\n    first = "\\d\\w"\n    return first is 1 and first\n')
    assert not recwarn.list


@pytest.mark.parametrize("text", ["", "\n\n", "x = 1", "x = 1\n", "    \n\t\n"])
def test_a_file_that_says_next_to_nothing_gives_no_example(text: str) -> None:
    assert cut(text) == []


def test_a_line_longer_than_the_room_is_nobodys_completion() -> None:
    longest = "y = " + "1 + " * 200 + "1\n"
    text = "x = 1\n" * 30 + longest + "z = 1\n" * 30
    completions = [example.completion for example in cut(text, "go")]
    assert all("y = " not in completion for completion in completions)
    assert any("z = 1" in completion for completion in completions)
