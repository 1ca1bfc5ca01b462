"""Laws of every kind of configuration: each key has words, a variable of its own, and a default that loads again."""

from pathlib import Path
from typing import Any

import pytest
from config_documents import faults_of

from neuralforge_common.config.document import Document
from neuralforge_common.config.policy import POLICY
from neuralforge_common.config.resolve import flatten, resolve, to_yaml
from neuralforge_common.config.rules import TRAIN
from neuralforge_server.config_rules import SERVER
from neuralforge_simulations.scenario_config import SCENARIO

DOCUMENTS: dict[str, Document[Any]] = {"train": TRAIN, "policy": POLICY, "server": SERVER, "scenario": SCENARIO}
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())


@EVERY_DOCUMENT
def test_the_defaults_written_out_load_as_the_defaults(document: Document[Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(to_yaml(document.root()))
    resolved = resolve(document, tmp_path / "c.yaml", {}, {})
    assert resolved.config == document.root()
    assert {origin.kind for origin in resolved.origins.values()} == {"file"}
    assert tuple(flatten(resolved.config)) == tuple(resolved.origins) == document.keys


@EVERY_DOCUMENT
def test_every_key_says_what_it_wants(document: Document[Any], tmp_path: Path) -> None:
    lines, expected = [], []
    for section, kind in document.sections.items():
        lines.append(f"{section}:")
        for name in kind.model_fields:
            lines.append(f"  {name}: {{a: b}}")
            key = f"{section}.{name}"
            expected.append(f"c.yaml:{len(lines)}: {key}: wanted {document.wanted(key)}, got a mapping")
    assert faults_of(document, tmp_path, "\n".join(lines)) == tuple(expected)
    assert "another value" not in " ".join(expected)


@EVERY_DOCUMENT
def test_every_field_of_a_document_is_a_section_with_words_about_it(document: Document[Any]) -> None:
    assert document.sections.keys() == document.root.model_fields.keys()
    assert all((kind.__doc__ or "").startswith(f"`{name}:` ") for name, kind in document.sections.items())


@EVERY_DOCUMENT
def test_alternatives_and_flags_name_known_keys(document: Document[Any]) -> None:
    named = {*document.alternatives, *document.command_line_only}
    named |= {key for others in document.alternatives.values() for key in others}
    assert named <= {*document.keys}


@EVERY_DOCUMENT
def test_the_variables_of_other_documents_are_not_read(document: Document[Any]) -> None:
    others = [other for other in DOCUMENTS.values() if other is not document and other.prefix]
    environ = {other.variable_of(key): "?" for other in others for key in other.keys}
    assert resolve(document, None, {}, environ).config == document.root()


@pytest.mark.parametrize("document", [TRAIN, SERVER, SCENARIO], ids=["train", "server", "scenario"])
def test_a_number_in_the_environment_is_the_number_of_the_file(document: Document[Any]) -> None:
    numbers = {
        key: value
        for key, value in flatten(document.root()).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    environ = {document.variable_of(key): str(value) for key, value in numbers.items()}
    resolved = resolve(document, None, {}, environ)
    assert resolved.config == document.root()
    assert {key for key, origin in resolved.origins.items() if origin.kind == "environment"} == numbers.keys()
