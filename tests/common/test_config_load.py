"""A run's configuration: the guide's files load unchanged, the nearest layer wins, and every fault is named at once."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuralforge_common.config.load import flatten, load_train_config, resolve_train_config, to_yaml, variable_of
from neuralforge_common.config.rules import TRAIN
from neuralforge_common.config.schema import KEYS, SECTIONS, TrainConfig
from neuralforge_common.errors import ConfigError

ConfigFaults = Callable[..., tuple[str, ...]]

GUIDE = Path(__file__).parent / "guide_configs"
OURS = Path(__file__).parents[2] / "configs"

GUIDES_VALUES: dict[str, dict[str, object]] = {
    "training-config.yaml": {
        "model.base": "codet5-770m",
        "model.adapter_name": "my-team-style",
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "lora.dropout": 0.1,
        "lora.target_modules": ["q_proj", "v_proj"],
        "training.batch_size": 8,
        "training.learning_rate": 0.0001,
        "training.epochs": 3,
        "training.warmup_steps": 100,
        "training.gradient_checkpointing": True,
        "training.fp16": True,
        "dataset.train_file": "train.jsonl",
        "dataset.eval_file": "eval.jsonl",
        "dataset.max_length": 512,
        "optimization.ewc_lambda": 0.5,
        "optimization.replay_buffer_size": 1000,
    },
    "my-adapter-config.yaml": {
        "model.base": "codet5-770m",
        "model.adapter_name": "my-coding-style",
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "training.epochs": 5,
        "training.learning_rate": 0.0001,
    },
    "spring-boot-adapter.yaml": {
        "dataset.sources": ["spring-boot-samples", "company-microservices"],
        "dataset.patterns": ["*Controller.java", "*Service.java", "*Repository.java"],
        "training.focus_on": ["annotations", "dependency_injection", "rest_mappings"],
    },
    "rust-adapter.yaml": {
        "dataset.language": "rust",
        "dataset.features": ["ownership_patterns", "error_handling", "trait_implementations"],
        "lora.rank": 16,
    },
}


@pytest.mark.parametrize("name", GUIDES_VALUES)
def test_a_file_of_the_guide_loads_unchanged_and_sets_its_values_and_no_other(name: str) -> None:
    resolved = resolve_train_config(GUIDE / name, {}, {})
    assert flatten(resolved.config) == flatten(TrainConfig()) | GUIDES_VALUES[name]
    assert {key for key, origin in resolved.origins.items() if origin.kind == "file"} == GUIDES_VALUES[name].keys()


def test_the_guide_still_prints_the_files_that_are_tested() -> None:
    assert {path.name for path in GUIDE.iterdir()} == GUIDES_VALUES.keys()
    assert all(path.read_text().startswith(f"# {path.name}\n") for path in GUIDE.iterdir())


OTHERS = {"server.yaml", "site_policy.yaml"}  # other documents, loaded in their own tests


@pytest.mark.parametrize(
    "path", sorted(path for path in OURS.glob("*.yaml") if path.name not in OTHERS), ids=lambda path: path.name
)
def test_our_own_examples_load(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    resolved = resolve_train_config(path, {}, {})
    keys = {f"{section}.{key}" for section, entries in written.items() for key in entries}
    assert {key for key, origin in resolved.origins.items() if origin.kind == "file"} == keys


def test_nothing_given_is_all_defaults() -> None:
    resolved = resolve_train_config(None, {}, {})
    assert resolved.config == TrainConfig()
    assert {origin.where for origin in resolved.origins.values()} == {"default"}
    assert tuple(resolved.origins) == KEYS


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n", "~\n", "lora:\n", "lora: null\nmodel: ~\n"])
def test_a_file_without_wishes_is_all_defaults(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert load_train_config(tmp_path / "c.yaml", {}, {}) == TrainConfig()


LAYERS = ("file", "environment", "command line")


@pytest.mark.parametrize("present", [c for n in range(4) for c in itertools.combinations(LAYERS, n)], ids=str)
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("lora.rank", (1, 2, 3)),
        ("model.base", ("a", "b", "c")),
        ("training.learning_rate", (0.1, 0.2, 0.3)),
        ("lora.target_modules", (["a"], ["b", "b2"], ["c"])),
    ],
)
def test_the_highest_layer_that_names_a_key_wins(
    tmp_path: Path, key: str, values: tuple[object, ...], present: tuple[str, ...]
) -> None:
    section, _, name = key.partition(".")
    texts = [",".join(value) if isinstance(value, list) else str(value) for value in values]
    file = tmp_path / "c.yaml"
    file.write_text(f"{section}:\n  {name}: {values[0]}\n" if "file" in present else "")
    resolved = resolve_train_config(
        file,
        {key: texts[2]} if "command line" in present else {},
        {variable_of(key): texts[1]} if "environment" in present else {},
    )
    default = flatten(TrainConfig())
    expected = values[LAYERS.index(present[-1])] if present else default[key]
    assert flatten(resolved.config) == default | {key: expected}
    assert resolved.origins[key].kind == (present[-1] if present else "default")


def test_each_key_is_settled_by_itself_and_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("lora:\n  rank: 4\n  alpha: 4\n\ntraining:\n  epochs: 4\n")
    resolved = resolve_train_config(
        Path("c.yaml"),
        {"training.epochs": 9},
        {"NF_LORA_ALPHA": "8", "NF_TRAINING_EPOCHS": "8", "NF_TRAINING_SEED": "8"},
    )
    keys = ("lora.rank", "lora.alpha", "training.epochs", "training.seed", "lora.dropout")
    assert {key: (flatten(resolved.config)[key], str(resolved.origins[key])) for key in keys} == {
        "lora.rank": (4, "c.yaml:2"),
        "lora.alpha": (8.0, "NF_LORA_ALPHA"),
        "training.epochs": (9, "command line"),
        "training.seed": (8, "NF_TRAINING_SEED"),
        "lora.dropout": (0.0, "default"),
    }


def test_every_key_has_a_variable_of_its_own() -> None:
    assert len({variable_of(key) for key in KEYS}) == len(KEYS)
    assert variable_of("training.learning_rate") == "NF_TRAINING_LEARNING_RATE"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_set_in_the_environment(key: str, tmp_path: Path) -> None:
    texts = {
        "model.trust_remote_code": "false",
        "model.adapter_name": "x",
        "training.precision": "bf16",
        "dataset.balance": "2",
        "training.scheduler": "cosine",
        "training.device": "cpu",
        "training.int8": "full",
        "training.engine": "fast",
        "training.attention": "sdpa",
        "training.loss": "label_smoothing",
        "output.resume": "auto",
        "optimization.anchor": "global",
        "optimization.replay_balance": "language",
        "optimization.orthogonal_lambda": "0",
        "privacy.delta": "1e-6",
        "privacy.unit": "file",
        "privacy.accountant": "prv",
        "privacy.engine": "opacus",
    }
    needs = {"dataset.from_git": "."} if key == "dataset.since" else {}
    text = texts.get(key, "0.5" if TRAIN.wanted(key).startswith("a number") else "9")
    if TRAIN.wanted(key) == "true or false":
        text = "false"
    origins = resolve_train_config(None, needs, {variable_of(key): text}).origins
    assert {key for key, origin in origins.items() if origin.kind != "default"} == {key, *needs}


def test_an_empty_variable_and_those_of_other_programs_are_not_ours() -> None:
    environ = {"NF_LORA_RANK": "", "NF_CACHE": "/x", "NF": "1", "NFL_TEAM": "x", "PATH": "/bin", "LORA_RANK": "3"}
    assert load_train_config(None, {}, environ) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("0.0001", 1e-4), ("1", 1.0), ("'3e-4'", 3e-4)]
)
def test_a_number_is_a_number_however_it_is_written(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "c.yaml").write_text(f"training:\n  learning_rate: {text}\n")
    assert load_train_config(tmp_path / "c.yaml", {}, {}).training.learning_rate == value


def test_a_leading_zero_is_not_octal_and_off_is_not_a_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  epochs: 010\n  int8: off\n  cache_prefix: off\n  fp16: yes\n")
    training = load_train_config(tmp_path / "c.yaml", {}, {}).training
    assert (training.epochs, training.int8, training.cache_prefix, training.fp16) == (10, "off", False, True)


def test_a_list_may_be_written_with_commas_where_there_is_only_text() -> None:
    config = load_train_config(None, {"lora.target_modules": "q_proj, v_proj"}, {"NF_DATASET_PATTERNS": "*.py,*.pyi"})
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert config.dataset.patterns == ("*.py", "*.pyi")


@pytest.mark.parametrize("text", ["none", "None", "null"])
def test_none_switches_an_optional_key_off_where_there_is_only_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text("lora:\n  top_layers: 3\ndataset:\n  max_eval_samples: 5\n")
    config = load_train_config(tmp_path / "c.yaml", {"lora.top_layers": text}, {"NF_DATASET_MAX_EVAL_SAMPLES": text})
    assert config.lora.top_layers is None
    assert config.dataset.max_eval_samples is None


def test_in_a_file_only_yamls_own_null_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text('model:\n  revision: "null"\ndataset:\n  language: null\n  max_eval_samples: ~\n')
    config = load_train_config(tmp_path / "c.yaml", {}, {})
    assert config.model.revision == "null"
    assert config.dataset.language is None
    assert config.dataset.max_eval_samples is None


def test_none_is_no_value_for_a_key_that_needs_one(config_faults: ConfigFaults) -> None:
    assert config_faults("lora:\n  rank:\n", {"training.epochs": "none"}) == (
        "c.yaml:2: lora.rank: wanted a whole number from 1 to 256, got nothing",
        "command line: training.epochs: wanted a whole number ≥ 1, got 'none'",
    )


def test_true_is_no_number(config_faults: ConfigFaults) -> None:
    assert config_faults("training:\n  epochs: true\n", {"lora.rank": True}) == (
        "c.yaml:2: training.epochs: wanted a whole number ≥ 1, got 'true'",
        "command line: lora.rank: wanted a whole number from 1 to 256, got True",
    )


def test_the_home_folder_is_found_and_that_of_an_unknown_user_is_a_fault(config_faults: ConfigFaults) -> None:
    assert (
        load_train_config(None, {"dataset.train_file": "~/x.jsonl"}, {}).dataset.train_file == Path.home() / "x.jsonl"
    )
    assert config_faults("dataset:\n  train_file: ~no-such-user/x.jsonl\n") == (
        "c.yaml:2: dataset.train_file: wanted a path, got '~no-such-user/x.jsonl'",
    )


def test_a_misspelt_key_is_named_with_its_line_and_the_nearest_known_one(config_faults: ConfigFaults) -> None:
    faults = config_faults("lora:\n  rank: 8\n  aplha: 16\n")
    assert faults == ("c.yaml:3: lora.aplha: unknown key, did you mean 'alpha'?",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("lra:\n  rank: 8\n", "c.yaml:1: lra: unknown section, did you mean 'lora'?"),
        ("Training:\n  epochs: 8\n", "c.yaml:1: Training: unknown section, did you mean 'training'?"),
        ("rank: 8\n", "c.yaml:1: rank: unknown section, did you mean 'lora.rank'?"),
        ("training:\n  rank: 8\n", "c.yaml:2: training.rank: unknown key, did you mean 'lora.rank'?"),
        ("training:\n  batch-size: 8\n", "c.yaml:2: training.batch-size: unknown key, did you mean 'batch_size'?"),
        (
            "optimization:\n  qqqq: 8\n",
            "c.yaml:2: optimization.qqqq: unknown key, optimization has "
            + ", ".join(SECTIONS["optimization"].model_fields),
        ),
        ("zzz: 8\n", f"c.yaml:1: zzz: unknown section, there are {', '.join(SECTIONS)}"),
    ],
)
def test_an_unknown_name_is_answered_with_a_known_one(config_faults: ConfigFaults, content: str, fault: str) -> None:
    assert config_faults(content) == (fault,)


def test_a_misspelt_variable_is_named_with_the_nearest_known_one(config_faults: ConfigFaults) -> None:
    assert config_faults("", environ={"NF_LORA_RNAK": "3", "NF_LORA_WHATEVER": "3"}) == (
        "NF_LORA_RNAK: unknown variable, did you mean NF_LORA_RANK?",
        "NF_LORA_WHATEVER: unknown variable, lora has no such key",
    )


def test_every_fault_is_named_at_once_in_the_order_in_which_a_reader_meets_them(config_faults: ConfigFaults) -> None:
    content = "lora:\n  rank: 0\n  aplha: 3\n  rank: 4\nsomething: 1\ntraining:\n  epochs: many\n  fp16: maybe\n"
    assert config_faults(
        content,
        {"lora.dropout": "1.5", "training.sede": 3},
        {"NF_TRAINING_BATCH_SIZE": "-1", "NF_MODEL_BSE": "x"},
    ) == (
        "c.yaml:2: lora.rank: wanted a whole number from 1 to 256, got 0",
        "c.yaml:3: lora.aplha: unknown key, did you mean 'alpha'?",
        "c.yaml:4: lora.rank: given twice, first in line 2",
        f"c.yaml:5: something: unknown section, there are {', '.join(SECTIONS)}",
        "c.yaml:7: training.epochs: wanted a whole number ≥ 1, got 'many'",
        "c.yaml:8: training.fp16: wanted true or false, got 'maybe'",
        "NF_MODEL_BSE: unknown variable, did you mean NF_MODEL_BASE?",
        "NF_TRAINING_BATCH_SIZE: training.batch_size: wanted a whole number ≥ 1, got -1",
        "command line: training.sede: unknown key, did you mean 'seed'?",
        "command line: lora.dropout: wanted a number from 0 to below 1, got 1.5",
    )


def test_rules_between_keys_are_checked_even_where_other_values_are_wrong(config_faults: ConfigFaults) -> None:
    content = "lora:\n  rank: 0\ndataset:\n  train_file: a.jsonl\n  eval_file: a.jsonl\n"
    assert config_faults(content) == (
        "c.yaml:2: lora.rank: wanted a whole number from 1 to 256, got 0",
        "c.yaml:5: dataset.eval_file: is the training file: examples that were trained on measure nothing",
    )


def test_a_mapping_where_a_value_is_wanted_is_a_fault_of_every_key(config_faults: ConfigFaults) -> None:
    lines, expected = [], []
    for section, model in SECTIONS.items():
        lines.append(f"{section}:")
        for name in model.model_fields:
            lines.append(f"  {name}: {{a: b}}")
            key = f"{section}.{name}"
            expected.append(f"c.yaml:{len(lines)}: {key}: wanted {TRAIN.wanted(key)}, got a mapping")
    assert config_faults("\n".join(lines)) == tuple(expected)
    assert "another value" not in " ".join(expected)


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("lora.rank", "257", "257"),
        ("lora.rank", "8.5", "8.5"),
        ("lora.rank", "[8]", "a list"),
        ("lora.alpha", "0", "0"),
        ("lora.dropout", "1", "1"),
        ("lora.dropout", "''", "''"),
        ("lora.target_modules", "[]", "an empty list"),
        ("lora.target_modules", "'q_proj|v_proj'", "'q_proj|v_proj'"),
        ("training.learning_rate", "nan", "'nan'"),
        ("training.learning_rate", ".inf", "'.inf'"),
        ("training.learning_rate", "2", "2"),
        ("training.max_grad_norm", "0", "0"),
        ("training.batch_size", "true", "'true'"),
        ("training.seed", "-1", "-1"),
        ("training.seed", "99999999999", "99999999999"),
        ("training.device", "tpu", "'tpu'"),
        ("training.precision", "fp8", "'fp8'"),
        ("dataset.max_length", "7", "7"),
        ("dataset.eval_fraction", "1", "1"),
        ("dataset.train_file", "..", "'..'"),
        ("dataset.train_file", '"a\\nb"', "'a\\nb'"),
        ("model.adapter_name", "../evil", "'../evil'"),
        ("model.adapter_name", ".hidden", "'.hidden'"),
        ("model.base", "''", "''"),
        ("model.base", '"\\e[2J"', r"'\x1b[2J'"),
        ("output.resume", "always", "'always'"),
        ("federation.max_rank", "257", "257"),
        ("federation.server", '"nf://a:1\\nnf://b:1"', r"'nf://a:1\nnf://b:1'"),
        ("federation.policy", "''", "''"),
    ],
)
def test_a_value_out_of_bounds_is_told_what_was_wanted_and_what_was_given(
    config_faults: ConfigFaults, key: str, value: str, got: str
) -> None:
    section, _, name = key.partition(".")
    assert config_faults(f"{section}:\n  {name}: {value}\n") == (
        f"c.yaml:2: {key}: wanted {TRAIN.wanted(key)}, got {got}",
    )


def test_a_huge_value_is_shown_in_one_short_line(config_faults: ConfigFaults) -> None:
    (fault,) = config_faults(f"lora:\n  rank: {'9' * 100_000}\n")
    assert len(fault) < 200
    (fault,) = config_faults(f"lora:\n  {'z' * 1000}: 3\n")
    assert len(fault) < 300


@pytest.mark.parametrize("place", ["nope.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_fault(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: ") as caught:
        load_train_config(Path(place), {}, {})
    assert len(caught.value.faults) == 1


def test_flatten_is_plain_json_in_the_order_of_the_schema(tmp_path: Path) -> None:
    flat = flatten(load_train_config(None, {"dataset.sources": [Path("a"), "b"], "lora.alpha": "16"}, {}))
    assert tuple(flat) == KEYS
    assert flat["dataset.sources"] == ["a", "b"]
    assert flat["lora.alpha"] == 16.0
    assert flat["dataset.train_file"] is None


def test_a_configuration_cannot_be_changed_once_it_is_made() -> None:
    config: Any = TrainConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.lora.rank = 3


def test_a_written_configuration_names_every_section_and_key() -> None:
    written = yaml.safe_load(to_yaml(TrainConfig()))
    assert tuple(f"{section}.{name}" for section, entries in written.items() for name in entries) == KEYS
