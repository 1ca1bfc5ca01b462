"""Which linear layers are adapted, by every family's own names."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import MODELS, tiny_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from neuralforge.models.targets import resolve_targets
from neuralforge_common.errors import ModelError

FAMILIES = pytest.mark.parametrize("family", list(MODELS))
DECODERS = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "starcoder2", "gemma2"])


def gpt2() -> GPT2LMHeadModel:
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50))


def adapted(model: nn.Module, names: tuple[str, ...]) -> set[str]:
    """What PEFT would adapt: a path that is the name or ends in it, from a dot on."""
    return {path for path, _ in model.named_modules() if any(path == n or path.endswith(f".{n}") for n in names)}


@FAMILIES
@pytest.mark.parametrize("asked", ["auto", "all-linear", ["auto"]])
def test_auto_is_every_linear_layer_inside_the_blocks(family: str, asked: str | list[str]) -> None:
    targets = resolve_targets(tiny_model(family), asked)
    assert targets.names == MODELS[family][1]
    assert not targets.notice


@FAMILIES
def test_the_head_is_never_adapted(family: str) -> None:
    model = tiny_model(family)
    touched = adapted(model, resolve_targets(model, "auto").names)
    head = model.get_output_embeddings()
    assert touched
    assert all(model.get_submodule(path) is not head for path in touched)
    for name in ("lm_head", "embed_out", "shared", "embed_tokens", "embed_in"):
        with pytest.raises(ModelError, match="no linear layer called"):
            resolve_targets(model, name)


class NumberedHeads(LlamaForCausalLM):
    """A model with one head for each of several tokens ahead; the first is the one that writes."""

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.heads[0]
        return head


def test_a_head_with_a_number_in_its_path_is_a_head_still() -> None:
    model = NumberedHeads(tiny_model("llama").config)
    model.heads = nn.ModuleList([nn.Linear(48, 97)])
    assert resolve_targets(model, "auto").names == MODELS["llama"][1]
    with pytest.raises(ModelError, match="no linear layer called"):
        resolve_targets(model, "heads.0")


@FAMILIES
def test_auto_leaves_no_linear_layer_but_the_head_out(family: str) -> None:
    model = tiny_model(family)
    head = model.get_output_embeddings()
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    assert adapted(model, resolve_targets(model, "auto").names) == linear


@DECODERS
@pytest.mark.parametrize("asked", ["q_proj,v_proj", " q_proj , v_proj ", ["q_proj", "v_proj"], ("q_proj", "v_proj")])
def test_the_guides_names_are_taken_as_they_are_where_they_exist(family: str, asked: str | list[str]) -> None:
    targets = resolve_targets(tiny_model(family), asked)
    assert targets.names == ("q_proj", "v_proj")
    assert not targets.notice


def test_the_guides_names_are_q_and_v_in_t5_and_a_line_says_so() -> None:
    targets = resolve_targets(tiny_model("t5"), ["q_proj", "v_proj"])
    assert targets.names == ("q", "v")
    assert targets.notice == "target modules of t5: q_proj is q, v_proj is v"


def test_the_guides_names_are_one_matrix_in_gpt_neox_and_a_line_says_so() -> None:
    targets = resolve_targets(tiny_model("gpt_neox"), "q_proj,v_proj")
    assert targets.names == ("query_key_value",)
    assert targets.notice == "target modules of gpt_neox: q_proj is query_key_value, v_proj is query_key_value"


@pytest.mark.parametrize(
    ("family", "asked", "wanted"),
    [
        ("t5", "q_proj,k_proj,v_proj,o_proj", ("q", "k", "v", "o")),
        ("t5", "up_proj,down_proj", ("wi", "wo")),
        ("gpt_neox", "o_proj", ("attention.dense",)),
        ("gpt_neox", "up_proj,down_proj", ("dense_h_to_4h", "dense_4h_to_h")),
        ("starcoder2", "up_proj,down_proj", ("c_fc", "mlp.c_proj")),
        ("llama", "q,v", ("q_proj", "v_proj")),
        ("llama", "wi_0,wi_1,wo", ("gate_proj", "up_proj", "down_proj")),
        ("llama", "q_proj,q", ("q_proj",)),
    ],
)
def test_a_role_is_found_under_the_familys_own_name(family: str, asked: str, wanted: tuple[str, ...]) -> None:
    targets = resolve_targets(tiny_model(family), asked)
    assert targets.names == wanted
    assert targets.notice


def test_gpt2s_two_c_proj_are_told_apart() -> None:
    model = gpt2()
    assert resolve_targets(model, "auto").names == ("c_attn", "c_fc", "c_proj")
    touched = adapted(model, resolve_targets(model, "q_proj,o_proj").names)
    assert touched == {f"transformer.h.{n}.attn.{part}" for n in (0, 1) for part in ("c_attn", "c_proj")}


def test_one_layers_module_can_be_named_by_its_path() -> None:
    model = tiny_model("llama")
    assert resolve_targets(model, "layers.1.mlp.up_proj").names == ("layers.1.mlp.up_proj",)
    assert adapted(model, ("layers.1.mlp.up_proj",)) == {"model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize(
    "asked", [".*proj", "(a+)+$", r".*\.q_proj", "q_proj|v_proj", "q_*", "^q_proj$", "model..q", ".q_proj", "q proj"]
)
def test_a_pattern_is_refused_as_one(asked: str) -> None:
    with pytest.raises(ModelError, match="patterns are not taken"):
        resolve_targets(tiny_model("llama"), [asked])


@pytest.mark.parametrize("asked", ["queries", "roj", "q_pro", "proj", "mlp", "layers", "1", "experts.w1"])
def test_a_name_that_is_nowhere_is_refused_with_those_that_are(asked: str) -> None:
    with pytest.raises(ModelError, match=f"llama has no linear layer called '{re.escape(asked)}'") as caught:
        resolve_targets(tiny_model("llama"), asked)
    assert all(name in caught.value.hint for name in MODELS["llama"][1])


@pytest.mark.parametrize("asked", ["", [], [""], "q_proj,", "auto,q_proj"])
def test_nothing_and_a_mixture_with_auto_are_refused(asked: str | list[str]) -> None:
    with pytest.raises(ModelError):
        resolve_targets(tiny_model("llama"), asked)


def test_a_model_without_blocks_has_nothing_to_adapt() -> None:
    with pytest.raises(ModelError, match="nothing to adapt"):
        resolve_targets(nn.Sequential(nn.Embedding(4, 2)), "auto")


LLAMA = tiny_model("llama")


@given(asked=st.lists(st.sampled_from(MODELS["llama"][1]), min_size=1))
def test_names_that_exist_come_back_once_each_in_the_order_asked(asked: list[str]) -> None:
    assert resolve_targets(LLAMA, asked).names == tuple(dict.fromkeys(asked))


@given(asked=st.text(max_size=12))
def test_any_word_is_either_a_set_of_linear_layers_or_a_clear_refusal(asked: str) -> None:
    try:
        targets = resolve_targets(LLAMA, asked)
    except ModelError as refused:
        assert refused.hint  # noqa: PT017
    else:
        assert adapted(LLAMA, targets.names) <= adapted(LLAMA, MODELS["llama"][1])
