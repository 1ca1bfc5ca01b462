"""AdapterSpec ↔ PEFT's `adapter_config.json`: plain LoRA only, everything that would change its meaning is refused."""

import json
import math
from typing import NoReturn

from neuralforge_common.adapter import MAX_RANK, AdapterSpec, Task
from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import kind_of, parse_json_object, shortened

MAX_CONFIG_BYTES = 2**20

_FILE = "adapter_config.json"
_TASKS: dict[Task, str] = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}

# What PEFT can do beyond W₀ + (alpha / r)·B·A. Each may stand in the file only where it is switched off.
_UNSUPPORTED = {
    "modules_to_save": "whole modules saved beside LoRA would replace the base's own weights",
    "use_dora": "DoRA is not supported",
    "use_rslora": "rank-stabilised scaling is not supported",
    "use_qalora": "QALoRA is not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "rank_pattern": "ranks that differ between modules are not supported",
    "alpha_pattern": "alphas that differ between modules are not supported",
    "layers_pattern": "a layers pattern is not supported",
    "exclude_modules": "excluded modules are not supported",
    "target_parameters": "LoRA on bare parameters is not supported",
    "trainable_token_indices": "trained tokens would replace the base's own embeddings",
    "layer_replication": "replicated layers are not supported",
    "lora_bias": "a LoRA bias is not supported",
    "ensure_weight_tying": "tied adapters are not supported",
    "alora_invocation_tokens": "activated LoRA is not supported",
    "arrow_config": "Arrow routing is not supported",
    "kasa_config": "KaSA changes the base's own weights",
    "loftq_config": "LoftQ changes the base's own weights",
    "corda_config": "CorDA changes the base's own weights",
    "lora_ga_config": "LoRA-GA changes the base's own weights",
    "monteclora_config": "Monte Carlo LoRA is not supported",
    "velora_config": "VeLoRA is not supported",
    "megatron_config": "Megatron layers are not supported",
}
# Some initialisations (pissa, olora, corda, loftq, lora_ga …) rewrite the base when the adapter is loaded.
_HARMLESS_INITS = (None, "gaussian", "orthogonal")


def encode_peft_config(spec: AdapterSpec) -> bytes:
    """The `adapter_config.json` that PEFT 0.21 reads for this spec."""
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": _TASKS[spec.task],
        "base_model_name_or_path": spec.base or None,
        "revision": spec.base_revision,
        "r": spec.rank,
        # PEFT's field is a whole number, though it computes with any.
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(spec.target_modules),
        "layers_to_transform": None if spec.layers is None else list(spec.layers),
        "layers_pattern": None,
        "bias": "none",
        "fan_in_fan_out": spec.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()


def decode_peft_config(data: bytes) -> AdapterSpec:
    """The spec that an `adapter_config.json` describes; its `base_fingerprint` is empty, PEFT knows none.

    Keys that PEFT does not act on are ignored.

    Raises:
        AdapterError: it is not plain LoRA, or a value is out of bounds.
    """
    config = parse_json_object(data, what=_FILE, limit=MAX_CONFIG_BYTES)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{_FILE}: peft_type: wanted LORA, got {shortened(config.get('peft_type'))}")
    for key, reason in _UNSUPPORTED.items():
        if config.get(key) not in (None, False, [], {}, ""):
            raise AdapterError(f"{_FILE}: {key}: {reason}", hint="only plain LoRA adapters can be opened")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{_FILE}: bias: wanted none, got {shortened(config['bias'])}")
    init = config.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in _HARMLESS_INITS:
        raise AdapterError(f"{_FILE}: init_lora_weights: {shortened(init)} can change the base's own weights")
    try:
        return AdapterSpec(
            base=_text(config, "base_model_name_or_path") or "",
            base_revision=_text(config, "revision"),
            rank=_rank(config),
            alpha=_number(config, "lora_alpha", 8),
            dropout=_number(config, "lora_dropout", 0.0),
            target_modules=_targets(config),
            task=_task(config),
            layers=_layers(config),
            fan_in_fan_out=_flag(config, "fan_in_fan_out"),
        )
    except AdapterError as error:
        if error.message.startswith(_FILE):
            raise
        raise AdapterError(f"{_FILE}: {error.message}", hint=error.hint) from error


def _refuse(key: str, wanted: str, value: object) -> NoReturn:
    raise AdapterError(f"{_FILE}: {key}: wanted {wanted}, got {shortened(value)}")


def _text(config: dict[str, object], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        _refuse(key, "a text or null", value)
    return value or None


def _rank(config: dict[str, object]) -> int:
    value = config.get("r")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        _refuse("r", f"a whole number from 1 to {MAX_RANK}", value)
    return value


def _number(config: dict[str, object], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e9 < value < 1e9 or math.isnan(value):
        _refuse(key, "a finite number", value)
    return value


def _flag(config: dict[str, object], key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        _refuse(key, "true or false", value)
    return value


def _targets(config: dict[str, object]) -> tuple[str, ...]:
    value = config.get("target_modules")
    if isinstance(value, str):
        # PEFT runs such a text as a regular expression over every module's name: a crafted one never ends.
        raise AdapterError(
            f"{_FILE}: target_modules: wanted a list of module names, got the pattern {shortened(value)}",
            hint="write the names of the modules as a list",
        )
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        _refuse("target_modules", "a list of module names", value)
    return tuple(value)


def _task(config: dict[str, object]) -> Task:
    value = config.get("task_type")
    for task, name in _TASKS.items():
        if value == name:
            return task
    raise AdapterError(
        f"{_FILE}: task_type: wanted {' or '.join(_TASKS.values())}, got {shortened(value)}",
        hint="where it is null, write the one that the base model is for into adapter_config.json",
    )


def _layers(config: dict[str, object]) -> tuple[int, ...] | None:
    value = config.get("layers_to_transform")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, list):
        raise AdapterError(f"{_FILE}: layers_to_transform: wanted a list of layer numbers, got {kind_of(value)}")
    return tuple(value) or None
