"""The fingerprint: the same for the same base however it is held, another one for any other base."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODELS, tiny_model, tiny_spec, with_adapter
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from neuralforge.models.fingerprint import fingerprint
from neuralforge.models.lora import detach_lora

FAMILIES = pytest.mark.parametrize("family", list(MODELS))


def rounded(family: str) -> PreTrainedModel:
    """A model whose values are bfloat16's, as published weights mostly are."""
    return tiny_model(family, dtype=torch.bfloat16).float()


@FAMILIES
def test_it_is_the_same_in_every_number_format(family: str) -> None:
    model = rounded(family)
    first = fingerprint(model)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", first)
    assert fingerprint(model.bfloat16()) == first
    assert fingerprint(model.double()) == first


def test_weights_published_in_fp32_and_loaded_in_bfloat16_are_the_same_base() -> None:
    assert fingerprint(tiny_model("llama")) == fingerprint(tiny_model("llama", dtype=torch.bfloat16))


@FAMILIES
def test_an_adapter_does_not_change_it_on_the_way_in_or_out(family: str) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    wrapped = with_adapter(model, tiny_spec(family))
    assert fingerprint(wrapped) == before
    assert fingerprint(model) == before
    detach_lora(wrapped)
    assert fingerprint(model) == before


@FAMILIES
def test_taking_it_changes_no_weight(family: str) -> None:
    model = tiny_model(family)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert fingerprint(model) == fingerprint(model)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


@FAMILIES
def test_a_step_on_any_one_weight_changes_it(family: str) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    for name, parameter in model.named_parameters():
        plain = parameter.detach().clone()
        with torch.no_grad():
            # What a step of training does: every value moves a little.
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert fingerprint(model) != before, name
        with torch.no_grad():
            parameter.copy_(plain)
    assert fingerprint(model) == before


@FAMILIES
def test_merging_an_adapter_into_the_base_changes_it(family: str) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    merged: Any = with_adapter(model, tiny_spec(family, rank=1)).merge_and_unload()
    assert fingerprint(merged) != before


def test_another_seed_is_another_base() -> None:
    assert len({fingerprint(tiny_model("llama", seed=seed)) for seed in range(4)}) == 4


def test_each_row_and_column_of_a_large_matrix_can_be_seen() -> None:
    """The sample is strided: a stride that divides the row length would see the same few columns for ever."""
    torch.manual_seed(0)
    model = nn.Linear(512, 512, bias=False)
    before = fingerprint(model)
    seen = 0
    for column in range(0, 512, 16):
        with torch.no_grad():
            plain = model.weight[:, column].clone()
            model.weight[:, column] += 1
            seen += fingerprint(model) != before
            model.weight[:, column] = plain
    assert seen == 32


@settings(max_examples=30, deadline=None)
@given(place=st.data())
def test_any_one_value_of_a_small_matrix_counts(place: st.DataObject) -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 32, bias=False)
    before = fingerprint(model)
    row, column = (place.draw(st.integers(0, 31)) for _ in range(2))
    with torch.no_grad():
        model.weight[row, column] += 1
    assert fingerprint(model) != before


def of_a_llama_with(**changes: object) -> str:
    """The tiny Llama's fingerprint after a change of its configuration alone; the weights stay."""
    model = tiny_model("llama")
    for name, value in changes.items():
        setattr(model.config, name, value)
    return fingerprint(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"rms_norm_eps": 1e-5},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 6},
        {"head_dim": 16},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_a_field_that_changes_the_function_changes_it(changes: dict[str, object]) -> None:
    assert of_a_llama_with(**changes) != of_a_llama_with()


def test_the_same_weights_in_another_family_are_another_base() -> None:
    llama, mistral = tiny_model("llama"), MODELS["mistral"][0]()
    mistral.config.tie_word_embeddings = True
    mistral.tie_weights()
    mistral.load_state_dict(llama.state_dict())
    assert [name for name, _ in mistral.named_parameters()] == [name for name, _ in llama.named_parameters()]
    assert fingerprint(mistral.eval()) != fingerprint(llama)


def test_fields_of_other_families_count_too() -> None:
    for family, field, value in (
        ("gemma2", "final_logit_softcapping", 9.0),
        ("gemma2", "sliding_window", 16),
        ("gpt_neox", "use_parallel_residual", False),
        ("gpt_neox", "layer_norm_eps", 1e-3),
        ("t5", "relative_attention_num_buckets", 16),
        ("t5", "decoder_start_token_id", 3),
        ("starcoder2", "norm_epsilon", 1e-3),
    ):
        model = tiny_model(family)
        before = fingerprint(model)
        setattr(model.config, field, value)
        assert fingerprint(model) != before, field


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}},  # an int, in another order
        {"use_cache": False},
        {"bos_token_id": 5},
        {"_name_or_path": "elsewhere"},
        {"max_position_embeddings": 4096},
        {"attention_dropout": 0.1},
        {"a_field_of_tomorrow": 1},
        {"transformers_version": "9.9.9"},
    ],
    ids=str,
)
def test_a_field_that_does_not_change_the_function_does_not_count(changes: dict[str, object]) -> None:
    assert of_a_llama_with(**changes) == of_a_llama_with()


def test_tied_embeddings_count_once_and_untied_ones_are_another_base() -> None:
    tied = tiny_model("llama")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    config = tied.config.__class__.from_dict(tied.config.to_dict() | {"tie_word_embeddings": False})
    untied = LlamaForCausalLM(config)
    untied.load_state_dict(tied.state_dict())
    assert all(torch.equal(value, untied.state_dict()[name]) for name, value in tied.state_dict().items())
    assert fingerprint(untied.eval()) != fingerprint(tied)


@FAMILIES
def test_a_base_that_was_saved_and_loaded_is_the_same(family: str, saved: Callable[[str], Any]) -> None:
    model = MODELS[family][0]()
    again = type(model).from_pretrained(saved(family))
    assert fingerprint(again) == fingerprint(tiny_model(family))


def test_names_count_even_where_values_and_shapes_are_equal() -> None:
    first, second = nn.Module(), nn.Module()
    first.a, second.b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    assert fingerprint(first) != fingerprint(second)
