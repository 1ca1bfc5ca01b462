"""`train --dry-run`: every value with its origin and what the run would take, without base, torch or network."""

import ast
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge_common.config.schema import KEYS

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Rows = Callable[[str], dict[str, list[str]]]

GUIDE = Path(__file__).parents[1] / "common" / "guide_configs"
DATASET = "".join(
    f'{{"context": "def f{n}(x):\\n    y = {n * n}", "completion": "\\n    return x * y + {n * 7}"}}\n'
    for n in range(23)
)


def test_every_value_is_shown_with_where_it_comes_from(cli: Cli, rows: Rows, team_code: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "lora:\n  rank: 16\n  target_modules: [q_proj, v_proj]\n\ntraining:\n  epochs: 9\n"
    )
    done = cli(
        *("train", "--config", "c.yaml", "--source", team_code, "--epochs", 2, "--dry-run"),
        cwd=tmp_path,
        NF_TRAINING_BATCH_SIZE="2",
        NF_TRAINING_EPOCHS="5",
        COLUMNS="200",
    )
    assert (done.returncode, done.stderr) == (0, "")
    table = rows(done.stdout)
    assert [key for key in table if key in KEYS] == [*KEYS]
    assert table["lora.rank"] == ["16", "c.yaml:2"]
    assert table["lora.target_modules"] == ["['q_proj', 'v_proj']", "c.yaml:3"]
    assert table["training.batch_size"] == ["2", "NF_TRAINING_BATCH_SIZE"]
    assert table["training.epochs"] == ["2", "command line"]
    assert table["dataset.sources"] == [f"['{team_code}']", "command line"]
    assert table["lora.alpha"] == ["", "default"]


def test_the_steps_are_counted_as_the_training_will_count_them(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(DATASET)
    options = ("--batch-size", 3, "--gradient-accumulation-steps", 2, "--epochs", 5, "--eval-fraction", 0)
    done = cli("train", "--dataset", "d.jsonl", *options, "--name", "mine", "--dry-run", cwd=tmp_path)
    per_epoch = math.ceil(math.ceil(23 / 3) / 2)
    assert f"23 examples, 0 held out; {per_epoch} steps an epoch, {5 * per_epoch} steps in all, about" in done.stdout
    assert "the adapter would go to mine.lora\n" in done.stdout
    done = cli("train", "--dataset", "d.jsonl", *options, "--max-steps", 7, "--dry-run", cwd=tmp_path)
    assert f"; {per_epoch} steps an epoch, 7 steps in all, about" in done.stdout


def test_the_guides_configuration_can_be_tried_out(cli: Cli, rows: Rows, tmp_path: Path) -> None:
    lines = DATASET.splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:20]))
    (tmp_path / "eval.jsonl").write_text("".join(lines[20:]))
    config = GUIDE / "training-config.yaml"
    done = cli("train", "--config", config, "--dry-run", cwd=tmp_path, COLUMNS="300")
    assert done.returncode == 0
    assert rows(done.stdout)["model.base"] == ["codet5-770m", f"{config}:3"]
    assert "20 examples, 3 held out; 3 steps an epoch, 9 steps in all, about" in done.stdout
    assert "optimization.ewc_lambda: read and not used, a first session has no older knowledge to keep\n" in done.stdout


@pytest.mark.parametrize("source", ["--source", "--from-git", "--dataset"])
def test_neither_torch_nor_the_base_nor_the_network_is_needed(
    source: str, team_code: Path, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(DATASET)
    place = {"--source": team_code, "--from-git": repository, "--dataset": tmp_path / "d.jsonl"}[source]
    code = """if True:
        import sys

        def no_network(event, arguments):
            if event.startswith("socket.") and event != "socket.__new__":
                print("NETWORK", event, arguments)

        sys.addaudithook(no_network)
        from neuralforge.cli.main import main
        status = main(sys.argv[1:])
        print(repr(sorted(name for name in sys.modules if "." not in name)))
        sys.exit(status)
        """
    options = ("--base", "nobody/has-this", "--dry-run")
    command = [sys.executable, "-c", code, "train", source, str(place), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "NETWORK" not in done.stdout
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert "rich" in loaded
    assert loaded & {"torch", "transformers", "peft", "huggingface_hub", "tokenizers"} == set()


def test_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(DATASET)
    options = ("--output", "out", "--tensorboard", "logs", "--checkpoint-dir", "checkpoints")
    assert cli("train", "--dataset", "d.jsonl", *options, "--dry-run", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_brackets_in_values_are_shown_as_they_are(cli: Cli, rows: Rows, team_code: Path, tmp_path: Path) -> None:
    options = ("--pattern", "[a-z]*.py", "--output", "[/bold]:smile:")
    done = cli("train", "--source", team_code, *options, "--dry-run", cwd=tmp_path, COLUMNS="300")
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout)["dataset.patterns"] == ["['[a-z]*.py']", "command line"]
    assert "the adapter would go to [/bold]:smile:/my-adapter.lora\n" in done.stdout


def test_what_the_run_has_no_use_for_is_told_in_a_line_each(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  focus_weight: 2\n  warmup_steps: 100\n  max_steps: 20\n")
    done = cli("train", "--config", "c.yaml", "--source", team_code, "--dry-run", cwd=tmp_path)
    assert re.search(r"^training\.focus_weight: read and not used, \S.*$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^training\.warmup_steps \(100\) is not below training\.max_steps \(20\): ", done.stdout, re.MULTILINE
    )


def test_every_fault_of_every_layer_is_named_before_anything_is_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lora:\n  rank: 8\n  aplha: 16\ntraning:\n  epochs: 3\n")
    done = cli(
        *("train", "--config", "c.yaml", "--learning-rate", "fast", "--dataset", "missing.jsonl", "--dry-run"),
        cwd=tmp_path,
        NF_LORA_DROPUOT="1",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: c.yaml:3: lora.aplha: unknown key, did you mean 'alpha'?",
        "c.yaml:4: traning: unknown section, did you mean 'training'?",
        "NF_LORA_DROPUOT: unknown variable, did you mean NF_LORA_DROPOUT?",
        "command line: training.learning_rate: wanted a number above 0, at most 1, got 'fast'",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data: nothing says what to learn from"),
        (("--config", "no.yaml"), "no.yaml: cannot be read: No such file or directory"),
        (("--config", "."), ".: cannot be read: Is a directory"),
        (("--dataset", "no.jsonl"), "no.jsonl: no such file"),
        (("--dataset", "d.jsonl", "--eval-dataset", "no.jsonl"), "no.jsonl: no such file"),
        (("--source", "no"), "no: no such folder"),
        (("--from-git", "no"), "no: no such folder"),
        (
            ("--dataset", "d.jsonl", "--eval-dataset", "d.jsonl"),
            "command line: dataset.eval_file: is the training file: examples that were trained on measure nothing",
        ),
        (
            ("--dataset", "d.jsonl", "--from-git", "."),
            "command line: dataset.from_git: cannot be used together with dataset.train_file",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_read_is_one_line(
    refused: Refused, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "d.jsonl").write_text(DATASET)
    assert refused("train", *arguments, "--dry-run", cwd=tmp_path) == message
