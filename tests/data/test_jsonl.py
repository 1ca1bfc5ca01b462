"""A JSONL file is believed whole or not at all, and the fault is named by its line."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.data.example import Example
from neuralforge.data.jsonl import MAX_LINE_BYTES, read_examples, write_examples
from neuralforge_common.errors import DataError, StorageError

GOOD = b'{"context": "def f():\\n", "completion": "    pass"}\n'
EXAMPLE = Example(context="def f():\n", completion="    pass")


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def make(content: bytes) -> Path:
        path = tmp_path / "examples.jsonl"
        path.write_bytes(content)
        return path

    return make


def fault(path: Path) -> DataError:
    with pytest.raises(DataError) as refused:
        list(read_examples(path))
    return refused.value


# --- What is read -----------------------------------------------------------------------------------------------------


def test_the_guides_lines_are_read(file: Callable[[bytes], Path]) -> None:
    lines = (
        '{"context": "public class User {", "completion": "private String name;", "language": "java"}\n'
        '{"context": "def calculate_", "completion": "total(items):", "language": "python"}\n'
        '{"context": "function render", "completion": "Component(props) {", "language": "javascript"}\n'
    )
    assert list(read_examples(file(lines.encode()))) == [
        Example(context="public class User {", completion="private String name;", language="java"),
        Example(context="def calculate_", completion="total(items):", language="python"),
        Example(context="function render", completion="Component(props) {", language="javascript"),
    ]


def test_origin_is_read_and_other_keys_are_passed_over(file: Callable[[bytes], Path]) -> None:
    row = {"context": "a", "completion": "b", "repo": "r", "path": "p", "commit": "c", "score": 3, "tags": [None]}
    assert list(read_examples(file(json.dumps(row).encode()))) == [
        Example(context="a", completion="b", repo="r", path="p", commit="c")
    ]


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.rstrip(b"\n"),
        b"\xef\xbb\xbf" + GOOD,
        b"\n \t\n" + GOOD + b"\n\n",
        GOOD.replace(b"\n", b"\r\n"),
        b"  " + GOOD,
        b'{"completion": "    pass", "context": "def f():\\u000a"}',
    ],
    ids=["plain", "no last line end", "byte order mark", "blank lines", "carriage returns", "indented", "escapes"],
)
def test_every_way_of_writing_one_line_gives_the_same_example(file: Callable[[bytes], Path], content: bytes) -> None:
    assert list(read_examples(file(content))) == [EXAMPLE]


def test_an_empty_context_is_an_example(file: Callable[[bytes], Path]) -> None:
    assert list(read_examples(file(b'{"context": "", "completion": "x"}'))) == [Example(context="", completion="x")]


# --- Faults -----------------------------------------------------------------------------------------------------------

FAULTS = {
    "no JSON": (b"def f():\n", "not valid JSON: Expecting value at column 1"),
    "single quotes": (b"{'context': 'a'}\n", "not valid JSON: Expecting property name"),
    "two objects": (GOOD.strip() + GOOD, "not valid JSON: Extra data at column"),
    "cut short": (GOOD[:-9], "not valid JSON: .*; the file ends inside this line, so it may have been cut short"),
    "not UTF-8": (b'{"context": "caf\xe9", "completion": "x"}\n', "not UTF-8 text: got the byte 0xe9 at byte 17"),
    "UTF-16": ('{"context": "a", "completion": "b"}\n'.encode("utf-16"), "not UTF-8 text: got the byte 0xff at byte 1"),
    "a list": (b"[1, 2]\n", "got a list, wanted an object"),
    "text": (b'"text"\n', "got text, wanted an object"),
    "null": (b"null\n", "got null, wanted an object"),
    "true": (b"true\n", "got true or false, wanted an object"),
    "a number": (b"1.5\n", "got a number, wanted an object"),
    "an empty object": (b"{}\n", "missing key 'context': got an empty object"),
    "a misspelt key": (
        b'{"context": "a", "completions": "b"}\n',
        "missing key 'completion': got the keys 'context', 'completions'; is 'completions' meant to be 'completion'?",
    ),
    "another misspelt key": (
        b'{"contxt": "a", "completion": "b"}\n',
        "missing key 'context': .*; is 'contxt' meant to be 'context'",
    ),
    "other tools' keys": (
        b'{"prompt": "a", "response": "b"}\n',
        "missing key 'context': got the keys 'prompt', 'response'$",
    ),
    "a key's case": (
        b'{"Context": "a", "completion": "b"}\n',
        "missing key 'context': .*; is 'Context' meant to be 'context'",
    ),
    "null for text": (
        b'{"context": null, "completion": "b"}\n',
        "'context' has the wrong type: got null, wanted text",
    ),
    "a number for text": (b'{"context": "a", "completion": 1}\n', "'completion' has the wrong type: got a number"),
    "a list for a language": (
        b'{"context": "a", "completion": "b", "language": ["py"]}\n',
        "'language' has the wrong type: got a list",
    ),
    "an empty completion": (b'{"context": "a", "completion": ""}\n', "'completion' is empty: got ''"),
    "a blank completion": (b'{"context": "a", "completion": " \\n"}\n', r"'completion' is empty: got ' \\n'"),
    "half a character": (
        b'{"context": "\\ud83d", "completion": "b"}\n',
        r"'context' holds half a character: got '\\ud83d'",
    ),
    "deep nesting": (b"[" * 100_000 + b"\n", "not JSON that can be read: got deeply nested brackets"),
    "deep nesting in a key": (
        b'{"context": "a", "completion": "b", "x": ' + b'{"x": ' * 100_000 + b"\n",
        "not JSON that can be read: got deeply nested brackets",
    ),
    "an endless number": (
        b'{"context": "a", "completion": "b", "x": ' + b"9" * 5000 + b"}\n",
        "not valid JSON: Exceeds",
    ),
    "a long line": (
        b'{"context": "' + b"a" * MAX_LINE_BYTES + b'", "completion": "b"}\n',
        "the line is too long: got over 1,048,576 bytes",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_by_its_line(file: Callable[[bytes], Path], name: str) -> None:
    content, message = FAULTS[name]
    path = file(content)
    assert re.search(f"examples.jsonl:1: {message}", fault(path).message)
    path = file(GOOD + b"\n" + GOOD + content)
    if name not in ("UTF-16",):  # (whose mark only the beginning has)
        assert re.search(f"examples.jsonl:4: {message}", fault(path).message)


@pytest.mark.parametrize(
    ("content", "got"), [(b"", "an empty file"), (b"\n", "blank lines only"), (b" \r\n\t\n\n", "blank lines only")]
)
def test_a_file_without_an_example_says_what_it_holds(file: Callable[[bytes], Path], content: bytes, got: str) -> None:
    refused = fault(file(content))
    assert f"no examples: got {got}, wanted at least one line" in refused.message
    assert '{"context": ' in refused.hint


def test_a_message_stays_short_whatever_the_line_holds(file: Callable[[bytes], Path]) -> None:
    row = {f"key{i}" + "x" * 1000: i for i in range(500)}
    assert len(fault(file(json.dumps(row).encode())).message) < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "no such file"),
        ("folder", "this is a folder"),
        ("loop", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_a_path_that_is_no_file_is_a_clear_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert f"{name}: {message}" in fault(tmp_path / name).message


def test_a_file_cut_anywhere_gives_its_first_examples_or_a_fault(file: Callable[[bytes], Path]) -> None:
    rows = [{"context": f"c{i}é\n", "completion": f"x = {i}"} for i in range(3)]
    whole = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    complete = [Example(**row) for row in rows]
    outcomes = set()
    for end in range(len(whole)):
        try:
            examples = list(read_examples(file(whole[:end])))
        except DataError as error:
            outcomes.add("no examples" if end == 0 else "cut" if "cut short" in error.message else error.message)
        else:
            outcomes.add("some")
            assert whole[:end].count(b"}") == len(examples)
            assert examples == complete[: len(examples)]
    # (cut within the two bytes of an é, it is not UTF-8)
    assert {outcome for outcome in outcomes if "not UTF-8" not in outcome} == {"no examples", "cut", "some"}


@settings(deadline=None)
@given(content=st.binary(max_size=200) | st.text(st.sampled_from('{}[]":,\\n contextcompletion01\ud83d')).map(
    lambda text: text.encode("utf-8", "surrogatepass")))  # fmt: skip
def test_any_bytes_are_examples_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    examples, message = [], ""
    try:
        examples = list(read_examples(path))
    except DataError as error:
        message = error.message
    assert bool(examples) == (not message)
    assert str(path) in message or not message


def test_a_huge_line_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"context": "')
        stream.truncate(4 << 30)  # sparse: no disk holds it
    tracemalloc.start()
    refused = fault(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "huge.jsonl:1: the line is too long" in refused.message
    assert peak < 16 << 20


# --- Writing ----------------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
examples = st.builds(
    Example, context=text, completion=text.filter(str.strip), language=text, repo=text, path=text, commit=text
)


@settings(deadline=None)
@given(written=st.lists(examples, min_size=1, max_size=8))
def test_what_is_written_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, written: list[Example]
) -> None:
    path = tmp_path_factory.getbasetemp() / "identity.jsonl"
    assert write_examples(path, written) == len(written)
    assert list(read_examples(path)) == written
    assert path.read_bytes().count(b"\n") == len(written)


def test_the_longest_line_that_is_written_is_read_back_and_a_longer_one_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    longest = Example(context="", completion="x" * (MAX_LINE_BYTES - len('{"context": "", "completion": ""}')))
    write_examples(path, [longest, EXAMPLE])
    assert list(read_examples(path)) == [longest, EXAMPLE]
    with pytest.raises(DataError, match=r"long.jsonl:2: the example is too long: got 1,048,577 bytes"):
        write_examples(path, [EXAMPLE, Example(context="", completion=longest.completion + "x")])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Example(context="a", completion=" \n"), "'completion' is empty"),
        (Example(context="\udc80", completion="b"), "'context' holds half a character"),
        (Example(context="a", completion="b", path="caf\udce9.py"), "'path' holds half a character"),
    ],
)
def test_what_could_not_be_read_back_is_not_written_and_the_old_file_stays(
    tmp_path: Path, bad: Example, message: str
) -> None:
    path = tmp_path / "examples.jsonl"
    write_examples(path, [EXAMPLE])
    with pytest.raises(DataError, match=f"examples.jsonl:2: {message}"):
        write_examples(path, [EXAMPLE, bad])
    assert list(read_examples(path)) == [EXAMPLE]
    assert [entry.name for entry in tmp_path.iterdir()] == ["examples.jsonl"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"

    def failing() -> Iterator[Example]:
        for number in range(1000):
            yield Example(context="c", completion=f"x = {number}")
            assert not path.exists()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_examples(path, failing())
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_written_over_the_one_that_it_is_read_from(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    written = [Example(context="c" * 5000, completion=f"x = {number}") for number in range(100)]
    write_examples(path, written)
    write_examples(path, (example for example in read_examples(path) if example.completion != "x = 7"))
    assert list(read_examples(path)) == written[:7] + written[8:]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_examples(tmp_path / "file" / "examples.jsonl", [EXAMPLE])
