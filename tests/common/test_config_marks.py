"""YAML from anywhere: read as text with line numbers, bounded, nothing constructed, every fault of form on one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge_common.config.marks import MAX_FILE_BYTES, MarkedValue, parse_marked_text, read_marked_file

ConfigFaults = Callable[..., tuple[str, ...]]


def test_every_value_remembers_the_line_of_its_key_and_stays_the_text_that_was_written() -> None:
    text = "# first\nlora:\n  rank: 010\n\n  target_modules:\n    - q_proj\n    - off\ntraining: {fp16: yes, seed: ~}\n"
    marked = parse_marked_text(text, "c.yaml")
    assert marked.faults == ()
    assert [(section.name, section.line, section.entries) for section in marked.sections] == [
        (
            "lora",
            2,
            {
                "rank": MarkedValue(value="010", line=3),
                "target_modules": MarkedValue(value=["q_proj", "off"], line=5),
            },
        ),
        ("training", 8, {"fp16": MarkedValue(value="yes", line=8), "seed": MarkedValue(value=None, line=8)}),
    ]


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ("lora:\n  rank: 3\n  rank: 4\n", ("c.yaml:3: lora.rank: given twice, first in line 2",)),
        ("lora:\n  rank: 3\n\nlora:\n  rank: 4\n", ("c.yaml:4: lora: given twice, first in line 1",)),
        ("lora: {rank: 1, rank: 2, rank: 3}\n", ("c.yaml:1: lora.rank: given twice, first in line 1",)),
    ],
)
def test_a_key_that_is_given_twice_is_a_fault(
    config_faults: ConfigFaults, content: str, faults: tuple[str, ...]
) -> None:
    assert config_faults(content) == faults


def test_aliases_are_refused_where_they_stand(config_faults: ConfigFaults) -> None:
    content = "lora: &all\n  rank: 3\ntraining: *all\n"
    assert config_faults(content) == ("c.yaml:3: aliases are not allowed here, write the value out",)


def test_a_file_that_would_unfold_into_billions_is_refused_at_once(config_faults: ConfigFaults) -> None:
    levels = "\n".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    content = f"lora:\n  l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n{levels}\n"
    assert config_faults(content) == ("c.yaml:3: aliases are not allowed here, write the value out",)


@pytest.mark.parametrize(
    "content",
    [
        "lora: !!python/object/apply:os.system ['touch made']\n",
        "lora:\n  rank: !!python/object/apply:os.system ['touch made']\n",
        "lora:\n  target_modules:\n    - !!python/name:os.system ''\n",
        "!!python/object/new:os.system {lora: {rank: 3}}\n",
        "lora:\n  rank: !custom 3\n",
        "lora: !!set {rank}\n",
        "lora:\n  rank: !!binary aGk=\n",
    ],
)
def test_a_tag_is_refused_and_never_acted_on(config_faults: ConfigFaults, content: str) -> None:
    faults = config_faults(content)
    assert any("the tag '" in fault and fault.endswith("is not allowed") for fault in faults)
    assert sorted(path.name for path in Path().iterdir()) == ["c.yaml"]


def test_the_ordinary_tags_of_yaml_are_allowed(config_faults: ConfigFaults) -> None:
    assert (
        config_faults("lora: !!map\n  rank: !!int 8\n  dropout: !!float 0.1\n  target_modules: !!seq [!!str q]\n") == ()
    )


def test_a_merge_key_is_an_unknown_key_like_any_other(config_faults: ConfigFaults) -> None:
    (fault,) = config_faults("lora:\n  <<: {rank: 3}\n")
    assert fault.startswith("c.yaml:2: lora.<<: unknown key, ")


def test_a_list_or_a_mapping_as_a_key_is_a_fault(config_faults: ConfigFaults) -> None:
    assert config_faults("lora:\n  ? [a, b]\n  : 3\n? {a: b}\n: 4\n") == (
        "c.yaml:2: lora.a list: wanted a plain name as the key",
        "c.yaml:4: a mapping: wanted a plain name as the key",
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("- lora\n- training\n", "c.yaml:1: wanted sections such as 'model:', got a list"),
        ("\n\nlora\n", "c.yaml:3: wanted sections such as 'model:', got a single value"),
        ("lora:\n  - rank: 8\n", "c.yaml:1: lora: wanted a mapping of keys, got a list"),
        ("model: smollm2-135m\n", "c.yaml:1: model: wanted a mapping of keys, got 'smollm2-135m'"),
        ("lora: 8\n", "c.yaml:1: lora: wanted a mapping of keys, got 8"),
        ("lora: []\n", "c.yaml:1: lora: wanted a mapping of keys, got an empty list"),
    ],
)
def test_what_should_be_a_mapping_and_is_not_is_a_fault(config_faults: ConfigFaults, content: str, fault: str) -> None:
    assert config_faults(content) == (fault,)


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("lora:\n\trank: 8\n", "c.yaml:2: not valid YAML: "),
        ("lora:\n  rank: 8\n alpha: 3\n", "c.yaml:3: not valid YAML: expected <block end>, but found"),
        ("lora: {rank: 8\n", "c.yaml:2: not valid YAML: "),
        ("lora:\n  rank: 'eight\n", "c.yaml:3: not valid YAML: "),
        ("lora:\n  rank: 8\n---\nlora:\n  rank: 4\n", "c.yaml:3: not valid YAML: expected a single document"),
        ("lora:\n  rank: %8\n", "c.yaml:2: not valid YAML: "),
        ("lora:\n  rank: 8\nmodel:\n  base: a\x07b\n", "c.yaml:4: the character U+0007 is not allowed in YAML"),
        ("%YAML 9.9\n---\nlora:\n", "c.yaml:1: not valid YAML: "),
    ],
)
def test_broken_yaml_is_one_fault_with_its_line(config_faults: ConfigFaults, content: str, start: str) -> None:
    (fault,) = config_faults(content)
    assert fault.startswith(start)
    assert "\n" not in fault


def test_what_is_not_utf_8_is_named_with_its_line_and_byte(config_faults: ConfigFaults) -> None:
    assert config_faults(b"lora:\n  rank: 8\nmodel:\n  base: caf\xe9\n") == ("c.yaml:4: not UTF-8 text (byte 0xe9)",)


def test_a_byte_order_mark_is_passed_over(config_faults: ConfigFaults) -> None:
    assert config_faults(b"\xef\xbb\xbflora:\n  aplha: 8\n") == (
        "c.yaml:2: lora.aplha: unknown key, did you mean 'alpha'?",
    )


def test_a_file_of_the_greatest_size_is_read_and_one_byte_more_is_not(config_faults: ConfigFaults) -> None:
    content = "lora:\n  rank: 8\n#"
    assert config_faults(content.ljust(MAX_FILE_BYTES, "x")) == ()
    assert config_faults(content.ljust(MAX_FILE_BYTES + 1, "x")) == ("c.yaml: larger than 1,048,576 bytes",)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    (fault,) = read_marked_file(Path("/dev/zero")).faults
    assert str(fault) == "/dev/zero: larger than 1,048,576 bytes"


@pytest.mark.parametrize(
    "content",
    ["[" * 50_000, "{a: " * 20_000, "lora:\n  rank: " + "[" * 1500 + "]" * 1500, "- " * 30_000, "? " * 30_000],
    ids=["lists", "mappings", "closed lists", "items", "keys"],
)
def test_deep_nesting_is_a_fault_and_no_crash(config_faults: ConfigFaults, content: str) -> None:
    assert config_faults(content) == ("c.yaml: nested too deeply",)
