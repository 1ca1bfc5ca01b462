"""The table of friendly names: complete, well formed, forgiving to a slip of the finger."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from neuralforge.models.catalog import ALIASES, CATALOG, CatalogEntry, find, license_of, resolve
from neuralforge_common.errors import ModelError

GUIDE_CONFIGS = Path(__file__).parent.parent / "common" / "guide_configs"

# The guide's base, and what the issue asks for.
PROMISED = {
    "codet5-220m": "Salesforce/codet5-base",
    "codet5-770m": "Salesforce/codet5-large",
    "codet5p-220m": "Salesforce/codet5p-220m",
    "codet5p-770m": "Salesforce/codet5p-770m",
    "codet5+": "Salesforce/codet5p-770m",
    "stablecode": "stabilityai/stable-code-3b",
    "stable-code-3b": "stabilityai/stable-code-3b",
    "starcoder2-3b": "bigcode/starcoder2-3b",
    "qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B",
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B",
    "qwen2.5-coder-7b": "Qwen/Qwen2.5-Coder-7B",
    "deepseek-coder-1.3b": "deepseek-ai/deepseek-coder-1.3b-base",
    "codellama-7b": "codellama/CodeLlama-7b-hf",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    "nf-tiny": "",
}
ENTRIES = pytest.mark.parametrize("entry", CATALOG.values(), ids=list(CATALOG))
NAMES = st.sampled_from([*CATALOG, *ALIASES])


@pytest.mark.parametrize(("name", "hub_id"), PROMISED.items(), ids=list(PROMISED))
def test_every_promised_name_means_its_hub_id(name: str, hub_id: str) -> None:
    assert resolve(name).hub_id == hub_id


@pytest.mark.parametrize("file", sorted(GUIDE_CONFIGS.glob("*.yaml")), ids=lambda file: str(file.name))
def test_the_guides_own_files_name_bases_that_we_know(file: Path) -> None:
    model = yaml.safe_load(file.read_text(encoding="utf-8")).get("model", {})
    if "base" in model:
        assert resolve(model["base"]).family == "t5"


@ENTRIES
def test_an_entry_has_a_place_a_family_that_writes_text_and_terms(entry: CatalogEntry) -> None:
    assert CATALOG[entry.name] is entry
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", entry.name)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub_id) or (entry.embedded and not entry.hub_id)
    config = CONFIG_MAPPING[entry.family]
    assert config in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if entry.family == "t5" else MODEL_FOR_CAUSAL_LM_MAPPING)
    assert entry.license.strip()
    assert entry.parameters > 1_000_000


@ENTRIES
def test_a_revision_is_a_whole_commit_or_a_pull_request(entry: CatalogEntry) -> None:
    assert entry.revision is None or re.fullmatch(r"[0-9a-f]{40}|refs/pr/[1-9][0-9]*", entry.revision)


@pytest.mark.parametrize("name", ["codet5-220m", "codet5-770m", "codet5p-220m", "codet5p-770m"])
def test_codet5_comes_from_a_pull_request_since_its_own_branch_holds_only_a_pickle(name: str) -> None:
    assert str(resolve(name).revision).startswith("refs/pr/")


def test_a_size_in_a_name_is_the_size_of_the_model() -> None:
    said = {name: re.search(r"-(\d+(?:\.\d+)?)([mb])\b", name) for name in CATALOG}
    sizes = {
        name: float(match[1]) * (1e9 if match[2] == "b" else 1e6)
        for name, match in said.items()
        if match is not None  # nf-tiny does not say
    }
    assert len(sizes) == len(CATALOG) - 1
    assert all(abs(CATALOG[name].parameters / size - 1) < 0.17 for name, size in sizes.items())


def test_no_two_entries_are_the_same_model() -> None:
    places = [(entry.hub_id, entry.revision) for entry in CATALOG.values()]
    assert len(set(places)) == len(places)


def test_an_alias_leads_to_an_entry_and_hides_none() -> None:
    assert set(ALIASES.values()) <= set(CATALOG)
    assert not set(ALIASES) & set(CATALOG)
    assert all(find(alias) is CATALOG[name] for alias, name in ALIASES.items())


@given(name=NAMES, data=st.data())
def test_case_and_spaces_around_do_not_matter(name: str, data: st.DataObject) -> None:
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    written = "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=True))
    assert resolve(f"  {written}\n") is resolve(name)


@given(name=st.sampled_from(list(CATALOG)), data=st.data())
def test_a_name_with_a_letter_missing_is_answered_with_the_nearest_ones(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    written = name[:at] + name[at + 1 :]
    assume(find(written) is None)
    with pytest.raises(ModelError, match="no base model is called") as caught:
        resolve(written)
    assert name in caught.value.hint.partition("? A base is ")[0]


def test_a_name_like_none_is_answered_with_all_of_them() -> None:
    with pytest.raises(ModelError) as caught:
        resolve("gpt-17")
    assert "did you mean" not in caught.value.hint
    assert all(name in caught.value.hint for name in CATALOG)


def test_a_hub_id_of_the_table_has_the_tables_terms_whatever_its_case() -> None:
    assert license_of("qwen/qwen2.5-coder-3b") == "other (Qwen Research)"
    assert license_of("Salesforce/codet5-large") == CATALOG["codet5-770m"].license
    assert license_of("acme/own-model") == license_of("") == ""
