"""The model card: valid front matter whatever a person writes, and nothing that the metadata does not know."""

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.card import model_card
from neuralforge_common.metadata import AdapterMetadata, Evaluation, Scores

FULL = AdapterMetadata(
    name="spring-boot-expert",
    base_model="codet5-770m",
    description="Optimized for Spring Boot microservices",
    license="Apache-2.0",
    training_samples=5000,
    dataset_digest="d" * 64,
    evaluation=Evaluation(
        base=Scores(perplexity=9.17, accuracy=0.578), adapter=Scores(perplexity=5.72, accuracy=0.645), samples=200
    ),
)

GUIDES_HEADINGS = ["What it does", "Best for", "Training data"]


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    document = yaml.safe_load(matter)
    assert isinstance(document, dict)
    return document


def test_the_card_has_the_hubs_front_matter(make_spec: Callable[..., AdapterSpec]) -> None:
    assert front_matter(model_card(FULL, make_spec())) == {
        "base_model": "acme/tiny-llama",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "tags": ["lora", "code", "code-completion", "neuralforge"],
        "pipeline_tag": "text-generation",
    }


def test_the_card_has_the_guides_headings_and_says_what_is_known(make_spec: Callable[..., AdapterSpec]) -> None:
    card = model_card(FULL, make_spec())
    assert re.findall(r"^## (.*)$", card, re.M) == [*GUIDES_HEADINGS, "Evaluation", "How to load"]
    for fact in (
        "# spring-boot-expert",
        FULL.description,
        "5,000 samples",
        "| 9.17 | 5.72 |",
        "| 57.8% | 64.5% |",
        "200",
    ):
        assert fact in card


def test_a_card_of_an_adapter_that_nobody_measured_says_so(make_spec: Callable[..., AdapterSpec]) -> None:
    card = model_card(AdapterMetadata(name="x"), make_spec(base="", base_revision=None, base_fingerprint=""))
    assert "Not evaluated." in card
    assert "Not recorded" in card
    assert "Perplexity" not in card
    assert "samples" not in card
    assert "license" not in front_matter(card)
    assert "base_model" not in front_matter(card)


@pytest.mark.parametrize("base", ["smollm2-135m", "/home/someone/models/base", "./base", "~/base"])
def test_what_is_no_hub_id_stays_out_of_the_front_matter(make_spec: Callable[..., AdapterSpec], base: str) -> None:
    assert "base_model" not in front_matter(model_card(AdapterMetadata(name="x"), make_spec(base=base)))


HOSTILE = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
    | st.sampled_from("'\"`:#-{}[]&*!|>%@\\ $(;"),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(
    license=HOSTILE,
    name=HOSTILE.filter(str.strip),
    author=HOSTILE,
    base=HOSTILE,
    description=st.text("-\n #a:", max_size=30),
)
def test_no_text_of_a_user_breaks_out_of_its_place(
    make_spec: Callable[..., AdapterSpec], license: str, name: str, author: str, base: str, description: str
) -> None:
    metadata = AdapterMetadata(name=name, license=license, author=author, description=description)
    spec = make_spec(base=base, base_revision=base or None)
    card = model_card(metadata, spec)
    matter = front_matter(card)
    assert matter.keys() <= {"base_model", "base_model_relation", "library_name", "license", "tags", "pipeline_tag"}
    assert matter.get("license", "") == license.lower()
    # The snippet is one program of four statements that loads just that base, revision and folder.
    (snippet,) = re.findall(r"```python\n(.*?)\n```", card, re.S)
    statements = ast.parse(snippet).body
    assert len(statements) == 4
    constants = [node.value for node in ast.walk(ast.Module(statements, [])) if isinstance(node, ast.Constant)]
    expected = [f"./{name}.lora", base or "the base model", *([base] if base else [])]
    assert sorted(constants) == sorted(expected)
