"""Finding one's way: every command explains itself at once, and a misspelt word is answered with the right one."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]

COMMANDS = (
    *("train", "create-dataset", "test-adapter", "benchmark", "ab-test"),
    *("forget-report", "replay", "audit-privacy"),
    *("serve", "lsp"),
)

GUIDES_TROUBLESHOOTING = (
    *("--batch-size", "--gradient-checkpointing", "--device"),  # out of memory
    *("--learning-rate", "--rank", "--epochs"),  # not improving
    *("--fp16", "--max-length"),  # slow
    "--dropout",  # overfitting
    *("--debug", "--log-level", "--profile-memory", "--track-gradients"),  # debug mode
)
GUIDES_TRAINING = ("--from-git", "--dataset", "--interactive", "--config", "--tensorboard", "--checkpoint-dir")

# Each takes a second or more to import, or reads files of its own.
HEAVY = {"torch", "transformers", "peft", "numpy", "pydantic", "tokenizers", "safetensors", "yaml", "rich"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_ends_with_examples_that_parse(cli: Cli, tmp_path: Path, command: str) -> None:
    done = cli(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"usage: neuralforge {command} ")
    examples = done.stdout.partition("\nexamples:\n")[2].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"neuralforge {command} ") for line in examples)
    named = set(re.findall(r"--[a-z0-9-]+", " ".join(examples)))
    assert all(re.search(rf"^ +.*{option}\b", done.stdout, re.MULTILINE) for option in named)


def test_the_help_of_the_whole_lists_every_command_with_a_sentence(cli: Cli, tmp_path: Path) -> None:
    done = cli("--help", cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command}\s+[A-Z].*\.$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(cli: Cli, tmp_path: Path, command: str) -> None:
    text = cli(command, "--help", cwd=tmp_path, COLUMNS="200").stdout
    # A long option has its explanation in the next line, further in.
    options = re.findall(r"^  (-.*)$", re.sub(r"\n {20,}", "  ", text), re.MULTILINE)
    assert len(options) > 3
    assert [option for option in options if not re.search(r"\S {2,}\S", option)] == []


@pytest.mark.parametrize("option", GUIDES_TROUBLESHOOTING + GUIDES_TRAINING)
def test_every_option_that_the_guide_names_exists(cli: Cli, tmp_path: Path, option: str) -> None:
    text = cli("train", "--help", cwd=tmp_path).stdout
    assert re.search(rf"^ +(-h, )?{option}\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)], ids=str
)
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = """if True:
        import sys
        from neuralforge.cli.main import main
        try:
            main(sys.argv[1:])
        finally:
            print("\\n" + repr(sorted(name for name in sys.modules if "." not in name)))
        """
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert "argparse" in loaded
    assert loaded & HEAVY == set()


def test_both_names_are_the_same_program(program: Path, tmp_path: Path) -> None:
    answers = [
        subprocess.run([program.with_name(name), "--version"], cwd=tmp_path, capture_output=True, text=True)
        for name in ("neuralforge", "nf-client")
    ]
    assert answers[0].stdout == answers[1].stdout
    assert re.fullmatch(r"neuralforge \d+\.\d+\S*\n", answers[0].stdout)


def test_no_command_shows_the_help_and_is_a_usage_error(cli: Cli, tmp_path: Path) -> None:
    done = cli(cwd=tmp_path)
    assert done.returncode == 2
    assert "create-dataset" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "strange"),
    [
        ("train --bacth-size 2", "--bacth-size 2; did you mean --batch-size?"),
        ("train --lerning-rate=1", "--lerning-rate=1; did you mean --learning-rate?"),
        ("benchmark --adapter x --metric-s y", "--metric-s y; did you mean --metrics?"),
        ("test-adapter x --testfile y", "--testfile y; did you mean --test-file?"),
        ("create-dataset --source x --output y --patern z", "--patern z; did you mean --pattern?"),
        ("--vresion", "--vresion; did you mean --version?"),
        ("train something", "something"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest_one(
    cli: Cli, tmp_path: Path, arguments: str, strange: str
) -> None:
    done = cli(*arguments.split(), cwd=tmp_path)
    program = f"neuralforge {arguments.split()[0]}" if not arguments.startswith("-") else "neuralforge"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{program}: error: unrecognized arguments: {strange}\n  hint: {program} --help\n"


def test_an_argument_that_is_missing_is_named(cli: Cli, tmp_path: Path) -> None:
    done = cli("benchmark", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("neuralforge benchmark: error: the following arguments are required: --adapter\n")


def test_a_misspelt_command_is_answered_with_the_nearest_one(cli: Cli, tmp_path: Path) -> None:
    done = cli("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("; did you mean train?")
    assert "did you mean" not in cli("xyzzy", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("benchmark --adapter x --limit 0", "argument --limit: wanted a whole number ≥ 1, got '0'"),
        ("benchmark --adapter x --max-length -5", "argument --max-length: "),
        ("benchmark --adapter x --metrics accuracy,sped", "wanted any of accuracy,latency,memory,perplexity,"),
        ("benchmark --adapter x --metrics ,", "exact_match,edit_similarity,syntax, got ','"),
        ("test-adapter x --limit many", "argument --limit: wanted a whole number ≥ "),
        ("create-dataset --source . --output o --max-samples 0", "wanted a whole number ≥ 1, got '0'"),
        ("create-dataset --source . --output o --seed -1", "argument --seed: "),
        ("train --log-level loud", "argument --log-level: invalid choice: 'LOUD'"),
    ],
)
def test_a_number_or_a_name_that_an_option_does_not_take_is_a_usage_error(
    cli: Cli, tmp_path: Path, arguments: str, wanted: str
) -> None:
    done = cli(*arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert wanted in done.stderr.splitlines()[0]
    assert [*tmp_path.iterdir()] == []
