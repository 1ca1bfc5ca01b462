"""Between keys: alternatives replace each other across layers, contradictions are faults, surprises are notices."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge_common.config.load import load_train_config, resolve_train_config

ConfigFaults = Callable[..., tuple[str, ...]]


def written(tmp_path: Path, content: str) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    return file


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("train_file: t.jsonl", "from_git", "repo"),
        ("train_file: t.jsonl", "sources", "src"),
        ("from_git: repo", "train_file", "t.jsonl"),
        ("from_git: repo", "sources", "src"),
        ("sources: [src, lib]", "train_file", "t.jsonl"),
        ("sources: [src, lib]", "from_git", "repo"),
    ],
)
@pytest.mark.parametrize("layer", ["environment", "command line"])
def test_a_higher_layers_source_of_data_replaces_the_files(
    tmp_path: Path, file: str, key: str, value: str, layer: str
) -> None:
    path = written(tmp_path, f"dataset:\n  {file}\n")
    resolved = resolve_train_config(
        path,
        {f"dataset.{key}": value} if layer == "command line" else {},
        {f"NF_DATASET_{key.upper()}": value} if layer == "environment" else {},
    )
    data = resolved.config.dataset
    given = {name for name in ("train_file", "from_git", "sources") if getattr(data, name)}
    assert given == {key}
    assert str(resolved.origins[f"dataset.{file.partition(':')[0]}"]) == "default"


def test_the_command_lines_source_of_data_replaces_the_environments() -> None:
    config = load_train_config(None, {"dataset.from_git": "."}, {"NF_DATASET_TRAIN_FILE": "t.jsonl"})
    assert config.dataset.train_file is None
    assert config.dataset.from_git == Path()


@pytest.mark.parametrize("other", [{"dataset.train_file": "t.jsonl"}, {"dataset.sources": "src"}], ids=str)
def test_since_goes_with_the_repository_that_it_is_of(tmp_path: Path, other: dict[str, str]) -> None:
    path = written(tmp_path, "dataset:\n  from_git: repo\n  since: 1 week ago\n")
    assert load_train_config(path, {}, {}).dataset.since == "1 week ago"
    assert load_train_config(path, other, {}).dataset.since is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            "dataset:\n  since: 1 week ago\n",
            "c.yaml:2: dataset.since: needs dataset.from_git: a file or a folder has no commits",
        ),
        (
            "optimization:\n  replay_buffer_size: 0\n  der_alpha: 0.5\n",
            "c.yaml:3: optimization.der_alpha: needs replayed examples, optimization.replay_buffer_size is 0",
        ),
        (
            "optimization:\n  orthogonal_lambda: 0.5\n",
            "c.yaml:2: optimization.orthogonal_lambda: there is no new block to hold at right angles to earlier ones, "
            "optimization.progressive is false",
        ),
        (
            "optimization:\n  continue_from: a.lora\nfederation:\n  server: nf://x:1\n",
            "c.yaml:2: optimization.continue_from: cannot be used together with federation.server: "
            "a federation says which adapter is trained",
        ),
        (
            "training:\n  loss: label_smoothing\nfederation:\n  server: nf://x:1\n",
            "c.yaml:2: training.loss: cannot be used together with federation.server: "
            "all clients of a federation make the same thing small",
        ),
        (
            "tasks:\n  documentation: 1\noptimization:\n  remember: true\n",
            "c.yaml:2: tasks.documentation: cannot be used together with optimization.remember: replay knows no tasks",
        ),
        (
            "tasks:\n  completion: 1\ntraining:\n  focus_on: [annotations]\n",
            "c.yaml:2: tasks.completion: cannot be used together with training.focus_on: "
            "both say how often an example is drawn",
        ),
    ],
)
def test_what_needs_something_else_says_what(config_faults: ConfigFaults, content: str, fault: str) -> None:
    assert config_faults(content) == (fault,)


def test_switching_an_alternative_off_brings_nothing_down(tmp_path: Path) -> None:
    path = written(tmp_path, "dataset:\n  train_file: t.jsonl\n")
    assert load_train_config(path, {"dataset.from_git": "none"}, {}).dataset.train_file == Path("t.jsonl")


def test_two_sources_of_data_in_one_layer_contradict_each_other(config_faults: ConfigFaults) -> None:
    assert config_faults("dataset:\n  train_file: t.jsonl\n  from_git: repo\n  sources: [src]\n") == (
        "c.yaml:3: dataset.from_git: cannot be used together with dataset.train_file",
        "c.yaml:4: dataset.sources: cannot be used together with dataset.train_file",
    )
    assert config_faults("", {"dataset.train_file": "t.jsonl", "dataset.from_git": "repo"}) == (
        "command line: dataset.from_git: cannot be used together with dataset.train_file",
    )


def test_a_repository_and_folders_may_stand_side_by_side(config_faults: ConfigFaults) -> None:
    assert config_faults("dataset:\n  from_git: repo\n  sources: [src]\n") == ()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_a_precision_on_the_command_line_replaces_the_guides_fp16(tmp_path: Path, precision: str) -> None:
    path = written(tmp_path, "training:\n  fp16: true\n")
    assert load_train_config(path, {"training.precision": precision}, {}).training.requested_precision == precision


def test_fp16_on_the_command_line_replaces_the_files_precision(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  precision: bf16\n")
    assert load_train_config(path, {"training.fp16": "true"}, {}).training.requested_precision == "fp16"
    assert load_train_config(path, {"training.fp16": "false"}, {}).training.requested_precision == "bf16"


def test_fp16_beside_another_precision_is_a_contradiction(config_faults: ConfigFaults) -> None:
    assert config_faults("training:\n  fp16: true\n  precision: bf16\n") == (
        "c.yaml:2: training.fp16: contradicts training.precision: bf16",
    )
    assert config_faults("training:\n  fp16: true\n  precision: fp16\n") == ()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            "dataset:\n  train_file: t.jsonl\n  eval_file: ./t.jsonl\n",
            "c.yaml:3: dataset.eval_file: is the training file: examples that were trained on measure nothing",
        ),
        (
            "training:\n  eval_steps: 5\ndataset:\n  eval_fraction: 0\n",
            "c.yaml:2: training.eval_steps: there is nothing to evaluate on: "
            "dataset.eval_fraction is 0 and there is no dataset.eval_file",
        ),
        (
            "training:\n  engine: general\n  int8: full\n",
            "c.yaml:3: training.int8: needs the fast engine, training.engine is general",
        ),
        (
            "training:\n  engine: general\n  context_gradients: false\n",
            "c.yaml:3: training.context_gradients: needs the fast engine, training.engine is general",
        ),
    ],
)
def test_keys_that_cannot_go_together_are_a_fault_of_the_line_to_change(
    config_faults: ConfigFaults, content: str, fault: str
) -> None:
    assert config_faults(content) == (fault,)


def test_a_contradiction_across_layers_is_told_where_its_first_key_was_set(config_faults: ConfigFaults) -> None:
    assert config_faults("training:\n  engine: general\n", {}, {"NF_TRAINING_INT8": "full"}) == (
        "NF_TRAINING_INT8: training.int8: needs the fast engine, training.engine is general",
    )
    assert config_faults("training:\n  eval_steps: 5\n", {"dataset.eval_fraction": 0}) == (
        "c.yaml:2: training.eval_steps: there is nothing to evaluate on: "
        "dataset.eval_fraction is 0 and there is no dataset.eval_file",
    )


def test_foreign_code_is_trusted_on_the_command_line_alone(config_faults: ConfigFaults, tmp_path: Path) -> None:
    refused = "model.trust_remote_code: can be switched on by --trust-remote-code alone"
    assert config_faults("model:\n  trust_remote_code: true\n") == (f"c.yaml:2: {refused}",)
    assert config_faults("", environ={"NF_MODEL_TRUST_REMOTE_CODE": "1"}) == (f"NF_MODEL_TRUST_REMOTE_CODE: {refused}",)
    assert config_faults("model:\n  trust_remote_code: false\n") == ()
    resolved = resolve_train_config(None, {"model.trust_remote_code": "true", "model.base": "a/b"}, {})
    assert resolved.config.model.trust_remote_code
    assert resolved.notices == ("model.trust_remote_code is on: a/b may run code of its own on this machine",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("training:\n  max_steps: 20\n  warmup_steps: 100\n", ("warmup_steps (100)", "max_steps (20)", "cut")),
        ("training:\n  cache_prefix: true\n", ("cache_prefix has no effect without lora.top_layers",)),
        (
            "dataset:\n  from_git: repo\n  eval_file: eval.jsonl\n",
            ("dataset.eval_file is not used without dataset.train_file",),
        ),
    ],
)
def test_a_setting_without_its_effect_is_told_in_one_line(tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    (notice,) = resolve_train_config(written(tmp_path, content), {}, {}).notices
    assert all(word in notice for word in words)
    assert "\n" not in notice


@pytest.mark.parametrize(
    "content",
    [
        "",
        "training:\n  max_steps: 20\n",
        "training:\n  cache_prefix: false\n",
        "training:\n  cache_prefix: true\nlora:\n  top_layers: 2\n",
        "dataset:\n  train_file: train.jsonl\n  eval_file: eval.jsonl\n",
    ],
)
def test_where_all_is_well_nothing_is_said(tmp_path: Path, content: str) -> None:
    assert resolve_train_config(written(tmp_path, content), {}, {}).notices == ()


def test_a_key_of_another_loss_is_said_to_have_no_effect(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  label_smoothing: 0.2\n")
    (notice,) = resolve_train_config(path, {}, {}).notices
    assert notice == "training.label_smoothing has no effect with training.loss: cross_entropy"
    assert resolve_train_config(path, {"training.loss": "label_smoothing"}, {}).notices == ()
