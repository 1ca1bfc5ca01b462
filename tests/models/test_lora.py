"""LoRA on a base: drawn from a seed, read and written without loss, taken off without a trace."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tiny import MODELS, tiny_model, tiny_spec, with_adapter
from torch import nn

from neuralforge.models.lora import attach_lora, block_count, detach_lora, read_state, top_layers, write_state
from neuralforge_common.adapter import AdapterState, validate_state
from neuralforge_common.errors import AdapterError, ModelError

FAMILIES = pytest.mark.parametrize("family", list(MODELS))


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 21).reshape(2, 10)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **more).logits
    return found


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def other_numbers(state: AdapterState, seed: int) -> AdapterState:
    generator = np.random.default_rng(seed)
    return AdapterState({name: generator.standard_normal(array.shape) for name, array in state.items()})


@FAMILIES
def test_a_fresh_adapter_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    before = logits(model)
    wrapped = attach_lora(model, tiny_spec(family), seed=1)
    assert torch.equal(logits(wrapped), before)
    state = read_state(wrapped)
    assert all(array.any() == (".lora_A." in name) for name, array in state.items()), "A is drawn, B is zero"


@FAMILIES
def test_the_state_is_that_of_the_spec(family: str) -> None:
    spec = tiny_spec(family)
    validate_state(read_state(attach_lora(tiny_model(family), spec, seed=1)), spec)


def test_a_seed_gives_the_same_adapter_every_time_and_another_seed_another_one() -> None:
    first, again, other = (
        read_state(attach_lora(tiny_model("llama"), tiny_spec("llama"), seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert all(not np.array_equal(first[name], other[name]) for name in first if ".lora_A." in name)


def test_the_base_and_the_generators_state_do_not_reach_the_adapter() -> None:
    torch.manual_seed(1)
    first = read_state(attach_lora(tiny_model("llama", seed=3), tiny_spec("llama"), seed=9))
    torch.manual_seed(2)
    torch.randn(17)
    assert read_state(attach_lora(tiny_model("llama", seed=4), tiny_spec("llama"), seed=9)) == first


def test_attaching_leaves_the_callers_randomness_alone() -> None:
    model = tiny_model("llama")
    torch.manual_seed(123)
    random.seed(123)
    np.random.seed(123)
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    attach_lora(model, tiny_spec("llama", dropout=0.1), seed=7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_adapter_is_fp32_and_alone_is_trained_whatever_the_base_is(dtype: torch.dtype) -> None:
    model = attach_lora(tiny_model("llama", dtype=dtype), tiny_spec("llama"), seed=1)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        assert parameter.dtype == (torch.float32 if ".lora_" in name else dtype)


def test_alpha_over_rank_scales_what_is_added() -> None:
    """W = W₀ + (alpha / rank) · B · A, on one matrix by hand."""
    spec = tiny_spec("llama", rank=4, alpha=6.0, target_modules=("o_proj",), layers=(2,))
    model = tiny_model("llama")
    plain = model.model.layers[2].self_attn.o_proj.weight.clone()
    wrapped = with_adapter(model, spec)
    state = read_state(wrapped)
    assert len(state) == 2
    b, a = (torch.from_numpy(state[name].copy()) for name in sorted(state, reverse=True))
    expected = logits(wrapped)
    detach_lora(wrapped)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.copy_(plain + 1.5 * b @ a)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-5)


@FAMILIES
def test_what_is_written_is_what_is_read(family: str) -> None:
    model = attach_lora(tiny_model(family), tiny_spec(family), seed=1)
    written = other_numbers(read_state(model), seed=5)
    write_state(model, written)
    assert read_state(model) == written


SMALL = attach_lora(tiny_model("llama"), tiny_spec("llama", rank=1, target_modules=("q_proj",), layers=(0,)), seed=1)


@settings(max_examples=50)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False) | st.sampled_from([-0.0, float("inf"), 1e-45]), min_size=96, max_size=96
    )
)
def test_every_bit_of_every_number_comes_back(values: list[float]) -> None:
    shapes = {name: array.shape for name, array in read_state(SMALL).items()}
    assert sorted(shapes.values()) == [(1, 48), (48, 1)]
    halves = np.float32(values).reshape(2, 48)
    state = AdapterState({name: half.reshape(shapes[name]) for name, half in zip(sorted(shapes), halves, strict=True)})
    write_state(SMALL, state)
    assert read_state(SMALL) == state


def test_a_state_that_was_read_does_not_follow_the_model() -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    state = read_state(model)
    digest = state.digest()
    write_state(model, other_numbers(state, seed=8))
    assert state.digest() == digest


def without_one(state: AdapterState) -> AdapterState:
    first = next(iter(state))
    return AdapterState({name: array for name, array in state.items() if name != first})


def with_a_stranger(state: AdapterState) -> AdapterState:
    return AdapterState({**state, "base_model.model.lm_head.lora_A.weight": np.zeros((4, 48))})


def renamed(state: AdapterState) -> AdapterState:
    return AdapterState({name.replace("layers.0", "layers.7"): array for name, array in state.items()})


def a_column_short(state: AdapterState) -> AdapterState:
    return AdapterState({name: array[:, :-1] for name, array in state.items()})


def transposed(state: AdapterState) -> AdapterState:
    return AdapterState({name: array.T for name, array in state.items()})


def a_single_number(state: AdapterState) -> AdapterState:
    # A shape that would broadcast over the whole matrix without a word.
    return AdapterState({name: np.ones((1, 1)) for name in state})


@pytest.mark.parametrize(
    "tamper", [without_one, with_a_stranger, renamed, a_column_short, transposed, a_single_number, lambda state: {}]
)
def test_a_state_of_other_names_or_shapes_is_refused(tamper: Callable[[AdapterState], AdapterState]) -> None:
    model = attach_lora(tiny_model("llama"), tiny_spec("llama"), seed=1)
    with pytest.raises(AdapterError, match=r"do not fit this model|shape"):
        write_state(model, tamper(read_state(model)))


def test_a_refused_state_leaves_the_adapter_as_it_was() -> None:
    model = with_adapter(tiny_model("llama"), tiny_spec("llama"))
    before = read_state(model)
    changed = dict(other_numbers(before, seed=2))
    last = list(changed)[-1]
    changed[last] = changed[last][:, :-1]
    with pytest.raises(AdapterError, match="shape"):
        write_state(model, AdapterState(changed))
    assert read_state(model).digest() == before.digest()


def test_a_state_of_another_rank_is_refused() -> None:
    small = read_state(attach_lora(tiny_model("llama"), tiny_spec("llama", rank=2), seed=1))
    model = attach_lora(tiny_model("llama"), tiny_spec("llama", rank=4), seed=1)
    with pytest.raises(AdapterError, match=r"shape \(2, 48\) in the adapter, \(4, 48\) in the model"):
        write_state(model, small)


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detaching_gives_the_base_back_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    modules = {name: type(module) for name, module in model.named_modules()}
    weights, before = bits(model), logits(model)
    wrapped = with_adapter(model, tiny_spec(family))
    assert not torch.equal(logits(wrapped), before), "the adapter must do something"
    detach_lora(wrapped)
    assert {name: type(module) for name, module in model.named_modules()} == modules
    after = bits(model)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(logits(model), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_second_adapter_is_refused_until_the_first_is_off() -> None:
    model = tiny_model("llama")
    wrapped: PeftModel = attach_lora(model, tiny_spec("llama"), seed=1)
    for carrying in (model, wrapped):
        with pytest.raises(ModelError, match="carries an adapter already"):
            attach_lora(carrying, tiny_spec("llama"), seed=2)  # type: ignore[arg-type]
    detach_lora(wrapped)
    assert read_state(attach_lora(model, tiny_spec("llama"), seed=1)) == read_state(
        attach_lora(tiny_model("llama"), tiny_spec("llama"), seed=1)
    )


def test_attaching_prints_and_warns_nothing(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    for family in MODELS:
        attach_lora(tiny_model(family), tiny_spec(family), seed=1)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_only_the_layers_of_the_spec_are_adapted() -> None:
    state = read_state(attach_lora(tiny_model("llama"), tiny_spec("llama", layers=(1, 2)), seed=1))
    assert {name.split(".")[4] for name in state} == {"1", "2"}


@pytest.mark.parametrize(("count", "wanted"), [(None, None), (1, (2,)), (2, (1, 2)), (3, None), (99, None)])
def test_the_top_layers_are_the_last_ones(count: int | None, wanted: tuple[int, ...] | None) -> None:
    assert top_layers(tiny_model("llama"), count, is_encoder_decoder=False) == wanted


def test_top_layers_need_a_decoder_with_numbered_layers() -> None:
    with pytest.raises(ModelError, match="top_layers needs a decoder-only base"):
        top_layers(tiny_model("t5"), 1, is_encoder_decoder=True)
    with pytest.raises(ModelError, match="top_layers needs a decoder-only base"):
        top_layers(nn.Linear(2, 2), 1, is_encoder_decoder=False)
    assert top_layers(tiny_model("t5"), None, is_encoder_decoder=True) is None


def test_layers_are_counted_with_and_without_an_adapter() -> None:
    model = tiny_model("llama")
    assert block_count(model) == 3
    assert block_count(attach_lora(model, tiny_spec("llama"), seed=1)) == 3
    assert block_count(nn.Linear(2, 2)) == 0
