"""`adapter_config.json`: ours is one that PEFT reads, theirs is plain LoRA or refused by the name of the key."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import AdapterError
from neuralforge_common.peft_config import MAX_CONFIG_BYTES, decode_peft_config, encode_peft_config

MINIMAL: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
}

specs = st.builds(
    AdapterSpec,
    base=st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp")), max_size=40),
    base_revision=st.none() | st.from_regex(r"[0-9a-f]{40}", fullmatch=True),
    rank=st.integers(1, 256),
    alpha=st.floats(0, 1e9, exclude_min=True, exclude_max=True) | st.integers(1, 1000),
    dropout=st.floats(0, 1, exclude_max=True),
    target_modules=st.lists(st.from_regex(r"[a-z0-9_]{1,8}(\.[a-z0-9_]{1,8})?", fullmatch=True), min_size=1).map(tuple),
    task=st.sampled_from(["causal", "seq2seq"]),
    layers=st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=5).map(tuple),
    fan_in_fan_out=st.booleans(),
)


def decode(**changes: Any) -> AdapterSpec:
    return decode_peft_config(json.dumps(MINIMAL | changes).encode())


@given(spec=specs)
def test_decoding_undoes_encoding(spec: AdapterSpec) -> None:
    assert decode_peft_config(encode_peft_config(spec)) == spec


@given(spec=specs)
def test_equal_specs_are_equal_files(spec: AdapterSpec) -> None:
    assert encode_peft_config(spec) == encode_peft_config(decode_peft_config(encode_peft_config(spec)))


def test_the_fingerprint_stays_out_because_peft_knows_none(make_spec: Callable[..., AdapterSpec]) -> None:
    spec = make_spec(base_fingerprint="f" * 64)
    data = encode_peft_config(spec)
    assert b"ffff" not in data
    assert decode_peft_config(data).base_fingerprint == ""


def test_peft_reads_our_file_as_the_same_adapter(make_spec: Callable[..., AdapterSpec], tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    spec = make_spec(layers=(1, 3), alpha=12.0, dropout=0.25)
    (tmp_path / "adapter_config.json").write_bytes(encode_peft_config(spec))
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.25)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert config.layers_to_transform == [1, 3]
    assert (config.base_model_name_or_path, config.revision) == ("acme/tiny-llama", "a" * 40)
    assert (config.bias, config.modules_to_save, config.task_type) == ("none", None, "CAUSAL_LM")
    assert config.inference_mode


@pytest.mark.parametrize("layers", [None, [0, 5], 7])
def test_a_file_that_stock_peft_wrote_is_read(layers: Any, tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        lora_dropout=0.1,
        target_modules=["v", "q"],
        task_type="SEQ_2_SEQ_LM",
        layers_to_transform=layers,
        base_model_name_or_path="acme/t5",
    )
    config.save_pretrained(str(tmp_path))
    spec = decode_peft_config((tmp_path / "adapter_config.json").read_bytes())
    assert spec == AdapterSpec(
        base="acme/t5",
        rank=3,
        alpha=5.0,
        dropout=0.1,
        target_modules=("q", "v"),
        task="seq2seq",
        layers=(7,) if layers == 7 else layers,
    )


def test_what_is_left_out_has_pefts_defaults() -> None:
    assert decode() == AdapterSpec(base="", rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj"))


def test_keys_that_peft_does_not_act_on_are_ignored() -> None:
    assert decode(peft_version="0.99", auto_mapping=None, somebody_elses={"x": 1}) == decode()


BEYOND_PLAIN_LORA: dict[str, Any] = {
    "modules_to_save": ["lm_head"],
    "use_dora": True,
    "use_rslora": True,
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "layers_pattern": "h",
    "exclude_modules": ["q_proj"],
    "target_parameters": ["x"],
    "trainable_token_indices": [1],
    "layer_replication": [[0, 2]],
    "lora_bias": True,
    "alora_invocation_tokens": [1],
    "loftq_config": {"bits": 4},
    "corda_config": {"x": 1},
    "megatron_config": {"x": 1},
    "bias": "all",
    "init_lora_weights": "pissa",
}


@pytest.mark.parametrize("key", BEYOND_PLAIN_LORA)
def test_what_would_change_the_meaning_of_plain_lora_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(AdapterError, match=rf"^adapter_config\.json: {key}: "):
        decode(**{key: BEYOND_PLAIN_LORA[key]})


@pytest.mark.parametrize("off", [None, False, [], {}, ""])
def test_the_same_keys_may_stand_there_switched_off(off: Any) -> None:
    keys = BEYOND_PLAIN_LORA.keys() - {"bias", "init_lora_weights"}
    assert decode(**dict.fromkeys(keys, off)) == decode()


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal"])
def test_an_initialisation_that_leaves_the_base_alone_is_fine(init: Any) -> None:
    assert decode(init_lora_weights=init) == decode()


def test_every_option_of_lora_that_peft_has_is_known_to_us_or_harmless() -> None:
    # A new PEFT may bring an option that changes the meaning; then this test asks somebody to decide.
    peft = pytest.importorskip("peft")
    from neuralforge_common import peft_config

    ours = json.loads(encode_peft_config(AdapterSpec(base="b", rank=1, alpha=1.0, target_modules=("q",)))).keys()
    harmless = {
        "auto_mapping",  # names a class for models without a task
        "peft_version",
        "megatron_core",  # used with megatron_config alone
        "eva_config",  # used with init_lora_weights="eva" alone
        "qalora_group_size",  # used with use_qalora alone
        "runtime_config",
        "use_bdlora",
    }
    theirs = peft.LoraConfig().to_dict().keys()
    assert theirs - ours - peft_config._UNSUPPORTED.keys() - harmless == set()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("task_type", None),
        ("task_type", "TOKEN_CLS"),
        ("r", 0),
        ("r", 257),
        ("r", 4.0),
        ("r", True),
        ("r", "4"),
        ("r", None),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_alpha", 10**400),
        ("lora_alpha", "8"),
        ("lora_alpha", True),
        ("lora_dropout", 1),
        ("lora_dropout", -0.1),
        ("lora_dropout", [0]),
        ("fan_in_fan_out", 1),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", ["a b"]),
        ("target_modules", {"q_proj": 1}),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", ["0"]),
        ("layers_to_transform", True),
        ("layers_to_transform", {"0": 1}),
        ("layers_to_transform", list(range(20_000))),
        ("base_model_name_or_path", 3),
        ("base_model_name_or_path", "a\nb"),
        ("revision", ["main"]),
    ],
)
def test_a_value_that_no_adapter_can_have_is_refused_in_one_line(key: str, value: Any) -> None:
    with pytest.raises(AdapterError, match=r"^adapter_config\.json: ") as caught:
        decode(**{key: value})
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.message) < 250


def test_a_pattern_of_target_modules_is_refused_with_a_way_out() -> None:
    # PEFT would run it as a regular expression over the name of every module.
    with pytest.raises(AdapterError, match="target_modules: wanted a list of module names, got the pattern") as caught:
        decode(target_modules="(a+)+$")
    assert caught.value.hint == "write the names of the modules as a list"


def test_nan_and_a_file_over_the_limit_are_refused() -> None:
    with pytest.raises(AdapterError, match="NaN"):
        decode(lora_alpha=math.nan)
    with pytest.raises(AdapterError, match="at most 1,048,576 are allowed"):
        decode_peft_config(b" " * (MAX_CONFIG_BYTES + 1))
