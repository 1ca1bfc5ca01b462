"""What an adapter's facts and numbers may be."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.adapter import (
    AdapterSpec,
    AdapterState,
    is_targeted,
    untouched_targets,
    validate_state,
    verify_base,
)
from neuralforge_common.errors import AdapterError

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def test_scaling_is_alpha_over_rank(make_spec: Callable[..., AdapterSpec]) -> None:
    assert make_spec(rank=8, alpha=16).scaling == 2.0


def test_the_order_and_repetition_of_targets_and_layers_mean_nothing(make_spec: Callable[..., AdapterSpec]) -> None:
    assert make_spec(target_modules=["v", "q", "v"], layers=[3, 1, 3]) == make_spec(
        target_modules=("q", "v"), layers=(1, 3)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", 257),
        ("rank", True),
        ("rank", 8.0),
        ("alpha", 0),
        ("alpha", -1.0),
        ("alpha", math.nan),
        ("alpha", math.inf),
        ("alpha", 10**400),
        ("alpha", "16"),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
        ("target_modules", ()),
        ("target_modules", "q_proj"),
        ("target_modules", ("q_proj|.*",)),
        ("target_modules", ("all-linear",)),
        ("target_modules", ("",)),
        ("target_modules", ("a..b",)),
        ("target_modules", ("q_proj\n",)),
        ("target_modules", ("x" * 257,)),
        ("task", "CAUSAL_LM"),
        ("layers", ()),
        ("layers", (-1,)),
        ("layers", (10_000,)),
        ("layers", (True,)),
        ("layers", 3),
        ("base", "two\nlines"),
        ("base", "\x1b[31mred"),
        ("base_revision", "x" * 2000),
        ("fan_in_fan_out", 1),
    ],
)
def test_a_spec_refuses_what_no_adapter_can_have(
    make_spec: Callable[..., AdapterSpec], field: str, value: object
) -> None:
    with pytest.raises(AdapterError, match=field):
        make_spec(**{field: value})


def test_a_state_cannot_be_changed_and_is_no_view_of_what_it_was_made_from() -> None:
    source = np.ones((2, 3), dtype=np.float32)
    state = AdapterState({A: source})
    source[:] = 5
    assert state[A].sum() == 6
    with pytest.raises(ValueError, match="read-only"):
        state[A][0, 0] = 1


def test_equal_states_have_equal_digests_whatever_the_order_of_their_names(
    make_state: Callable[..., AdapterState],
) -> None:
    state = make_state()
    reversed_state = AdapterState(dict(reversed(list(state.items()))))
    assert state == reversed_state
    assert state.digest() == reversed_state.digest()
    assert hash(state) == hash(reversed_state)


@given(st.integers(0, 3), st.integers(0, 15), st.integers(0, 31))
def test_a_single_flipped_bit_changes_equality_and_digest(row: int, column: int, bit: int) -> None:
    array = np.arange(64, dtype=np.float32).reshape(4, 16)
    flipped = array.copy()
    flipped.view(np.uint32)[row, column] ^= np.uint32(1 << bit)
    before, after = AdapterState({A: array}), AdapterState({A: flipped})
    assert before != after
    assert before.digest() != after.digest()


def test_the_digest_tells_shapes_and_names_apart() -> None:
    array = np.zeros((2, 6), dtype=np.float32)
    states = [AdapterState({A: array}), AdapterState({B: array}), AdapterState({A: array.reshape(3, 4)})]
    assert len({state.digest() for state in states}) == 3
    assert len(set(states)) == 3


def test_a_state_survives_copying_and_processes(make_state: Callable[..., AdapterState]) -> None:
    state = make_state()
    assert copy.deepcopy(state) == state
    assert pickle.loads(pickle.dumps(state)) == state  # noqa: S301  # our own bytes: what multiprocessing does


def test_the_state_of_a_spec_is_valid(
    make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState]
) -> None:
    validate_state(make_state(), make_spec())


def broken(state: AdapterState, change: str) -> dict[str, np.ndarray]:
    arrays = {name: array.copy() for name, array in state.items()}
    match change:
        case "foreign name":
            arrays["base_model.model.lm_head.weight"] = np.ones((4, 4), np.float32)
        case "embedding":
            arrays["base_model.model.model.embed_tokens.lora_embedding_A"] = np.ones((4, 4), np.float32)
        case "base layer":
            arrays["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"] = np.ones((4, 4), np.float32)
        case "untargeted module":
            arrays[A.replace("q_proj", "o_proj")] = arrays[A]
            arrays[B.replace("q_proj", "o_proj")] = arrays[B]
        case "look-alike module":
            arrays[A.replace("q_proj", "xq_proj")] = arrays[A]
            arrays[B.replace("q_proj", "xq_proj")] = arrays[B]
        case "half a pair":
            del arrays[B]
        case "nothing":
            arrays.clear()
        case "target without weights":
            arrays = {name: array for name, array in arrays.items() if "v_proj" not in name}
        case "another rank":
            arrays[A] = np.ones((5, 16), np.float32)
        case "swapped":
            arrays[A], arrays[B] = arrays[B], arrays[A]
        case "one dimension":
            arrays[A] = np.ones(64, np.float32)
        case "empty dimension":
            arrays[A] = np.ones((4, 0), np.float32)
        case "NaN":
            arrays[A][1, 2] = np.nan
        case "infinity":
            arrays[B][1, 2] = -np.inf
        case "double precision":
            arrays[A] = arrays[A].astype(np.float64)
    return arrays


@pytest.mark.parametrize(
    "change",
    [
        "foreign name",
        "embedding",
        "base layer",
        "untargeted module",
        "look-alike module",
        "half a pair",
        "nothing",
        "target without weights",
        "another rank",
        "swapped",
        "one dimension",
        "empty dimension",
        "NaN",
        "infinity",
        "double precision",
    ],
)
def test_weights_that_are_not_the_specs_are_refused(
    make_spec: Callable[..., AdapterSpec], make_state: Callable[..., AdapterState], change: str
) -> None:
    with pytest.raises(AdapterError):
        validate_state(broken(make_state(), change), make_spec())


@pytest.mark.parametrize(
    ("module", "layers", "expected"),
    [
        ("model.layers.0.self_attn.q_proj", None, True),
        ("model.layers.0.self_attn.q_proj", (0,), True),
        ("model.layers.1.self_attn.q_proj", (0,), False),
        ("model.layers.10.self_attn.q_proj", (1,), False),
        ("q_proj", None, True),
        ("model.layers.0.self_attn.k_proj", None, False),
        ("model.layers.0.q_proj.inner", None, False),
        # PEFT counts the first number, here the layer, not the expert's.
        ("model.layers.1.experts.0.q_proj", (1,), True),
        ("model.layers.1.experts.0.q_proj", (0,), False),
        # Two names must stand before the number.
        ("h.0.q_proj", (0,), False),
        ("encoder.block.3.layer.0.SelfAttention.q_proj", (3,), True),
    ],
)
def test_targets_and_layers_are_matched_as_peft_matches_them(
    make_spec: Callable[..., AdapterSpec], module: str, layers: tuple[int, ...] | None, expected: bool
) -> None:
    peft_utils = pytest.importorskip("peft.tuners.tuners_utils")
    peft = pytest.importorskip("peft")
    spec = make_spec(target_modules=("q_proj",), layers=layers)
    config = peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=None if layers is None else list(layers))
    assert is_targeted(spec, module) is expected
    assert bool(peft_utils.check_target_module_exists(config, module)) is expected


def test_a_target_is_touched_by_any_module_that_ends_with_it(make_spec: Callable[..., AdapterSpec]) -> None:
    spec = make_spec(target_modules=("q_proj", "self_attn.q_proj", "k_proj"))
    assert untouched_targets([A, B], spec) == ("k_proj",)


def test_the_right_base_passes_without_a_word(make_spec: Callable[..., AdapterSpec]) -> None:
    assert verify_base(make_spec(), "f" * 64, "anything") == ""


def test_the_wrong_base_is_refused_with_both_names_and_fingerprints(make_spec: Callable[..., AdapterSpec]) -> None:
    with pytest.raises(AdapterError) as caught:
        verify_base(make_spec(), "0123456789abcdef" * 4, "other-model")
    message = caught.value.message
    assert "acme/tiny-llama at revision aaaaaaaaaaaa (fingerprint ffffffffffff)" in message
    assert "other-model (fingerprint 0123456789ab)" in message
    assert "f" * 13 not in message
    assert "acme/tiny-llama" in caught.value.hint


def test_an_adapter_that_records_no_base_is_used_with_a_notice(make_spec: Callable[..., AdapterSpec]) -> None:
    assert "acme/tiny-llama" in verify_base(make_spec(base_fingerprint=""), "f" * 64, "other-model")
