"""Writing a configuration out and loading it again changes nothing, whatever stands in it."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge_common.config.load import flatten, load_train_config, to_yaml, variable_of
from neuralforge_common.config.rules import conflicts
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.errors import ConfigError

# Texts that YAML would take for something else, beside any others.
TRAPS = ["null", "~", "yes", "off", "1e-4", "010", "0x1f", "=", "<<", "- a", "a: b", "a #b", "'", '"', "&a", "*a", "!t"]
TRAPS += [
    "2001-01-01",
    "1:30",
    "[a]",
    "{a}",
    "%x",
    "@x",
    "`x",
    "| x",
    "> x",
    "? x",
    "a,b",
    "none",
    "é𝔘",
    " x ",
    "\ufeffx",
]


def _is_plain(text: str) -> bool:
    return bool(text.strip()) and not any(
        ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x2028 <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in text
    )


lines = st.sampled_from(TRAPS) | st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    _is_plain
)
# A leading ~ is the home folder in a file, and stands for itself nowhere.
paths = lines.filter(lambda text: not text.startswith("~") and Path(text).name not in ("", ".."))
names = st.from_regex(r"[A-Za-z0-9_]{1,8}(\.[A-Za-z0-9_]{1,8}){0,2}", fullmatch=True)
whole = st.integers(1, 2**31 - 1)


def section(**entries: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=entries)


configs = (
    section(
        model=section(
            base=lines,
            adapter_name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
            revision=st.none() | lines,
        ),
        lora=section(
            rank=st.integers(1, 256),
            alpha=st.none() | st.floats(0, 1e6, exclude_min=True),
            dropout=st.floats(0, 1, exclude_max=True),
            target_modules=st.just("auto") | st.lists(names, min_size=1, max_size=4),
            top_layers=st.none() | whole,
        ),
        training=section(
            batch_size=whole,
            learning_rate=st.none() | st.floats(0, 1, exclude_min=True),
            scheduler=st.sampled_from(["linear", "cosine", "constant"]),
            fp16=st.booleans(),
            precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
            max_grad_norm=st.floats(0, exclude_min=True, allow_infinity=False),
            weight_decay=st.floats(0, allow_infinity=False),
            max_steps=st.none() | whole,
            device=st.sampled_from(["auto", "cpu", "cuda", "cuda:3", "mps"]),
            int8=st.sampled_from(["off", "backward", "full"]),
            engine=st.sampled_from(["auto", "fast", "general"]),
            focus_on=st.lists(lines, max_size=3),
        ),
        dataset=section(
            train_file=st.none() | paths,
            eval_file=st.none() | paths,
            from_git=st.none() | paths,
            sources=st.lists(paths, max_size=3),
            patterns=st.lists(lines, max_size=3),
            language=st.none() | lines,
            max_length=st.integers(8, 10_000),
            eval_fraction=st.floats(0, 1, exclude_max=True),
        ),
        output=section(directory=paths, tensorboard=st.none() | paths, resume=st.sampled_from(["never", "auto"])),
        federation=section(
            server=st.none() | lines,
            policy=st.none() | paths,
            max_rank=st.none() | st.integers(1, 256),
            home=st.none() | paths,
        ),
    )
    .map(TrainConfig.model_validate)
    .filter(lambda config: not [*conflicts(config)])
)


@given(config=configs)
@settings(max_examples=200, deadline=None)
def test_a_written_configuration_loads_as_the_same_one(config: TrainConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        loaded = load_train_config(file, {}, {})
    assert loaded == config
    assert flatten(loaded) == flatten(config)


@given(config=configs, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_number_given_as_text_in_any_layer_is_the_same_number(config: TrainConfig, data: st.DataObject) -> None:
    numbers = {
        key: value
        for key, value in flatten(config).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    key = data.draw(st.sampled_from(sorted(numbers)))
    for overrides, environ in (({key: str(numbers[key])}, {}), ({}, {variable_of(key): str(numbers[key])})):
        assert flatten(load_train_config(None, overrides, environ))[key] == numbers[key]


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=200, deadline=None)
def test_any_bytes_at_all_are_a_configuration_or_a_list_of_one_line_faults(data: bytes) -> None:
    faults: tuple[str, ...] = ("none",)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_bytes(data)
        try:
            load_train_config(file, {}, {})
        except ConfigError as error:
            faults = error.faults
    assert faults
    assert all(len(fault.splitlines()) == 1 for fault in faults)
