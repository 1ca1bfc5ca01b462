"""`train`, as a person runs it: from code to a folder that plain PEFT opens, watched, stopped and gone on with."""

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
Terminals = Callable[..., Any]

GUIDE = Path(__file__).parents[1] / "common" / "guide_configs"
QUICK = ("--base", "nf-tiny", "--max-length", 96, "--batch-size", 2, "--rank", 2)
GUIDES_FILES = {"metadata.json", "lora_weights.bin", "README.md"}
PEFTS_FILES = {"adapter_config.json", "adapter_model.safetensors"}


class Run(NamedTuple):
    place: Path
    output: str
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="module")
def watched(cli: Cli, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run from a git repository with everything on that watches it."""
    place = tmp_path_factory.mktemp("watched")
    done = cli(
        *("train", "--from-git", repository, *QUICK, "--max-samples", 16, "--max-eval-samples", 4, "--max-steps", 5),
        *("--name", "watched", "--output", "out", "--checkpoint-dir", "kept", "--tensorboard", "logs"),
        *("--debug", "--log-level", "warning", "--profile-memory", "--track-gradients", "--resume", "auto"),
        cwd=place,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (place / "out" / ".neuralforge" / "watched" / "metrics.jsonl").read_text().splitlines()
    return Run(place, done.stdout, [json.loads(line) for line in lines])


def test_an_adapter_is_the_guides_folder_and_pefts_with_the_weights_once(adapter: Path) -> None:
    assert {path.name for path in adapter.iterdir()} == GUIDES_FILES | PEFTS_FILES
    assert (adapter / "lora_weights.bin").samefile(adapter / "adapter_model.safetensors")
    metadata = json.loads((adapter / "metadata.json").read_text())
    assert (metadata["name"], metadata["base_model"], metadata["rank"]) == ("team", "nf-tiny", 4)
    assert metadata["base_fingerprint"].startswith("sha256:")
    scores = metadata["evaluation"]
    assert scores["adapter"]["perplexity"] < scores["base"]["perplexity"]


def test_no_path_of_this_machine_gets_into_an_adapter(adapter: Path, team_code: Path) -> None:
    for path in adapter.iterdir():
        data = path.read_bytes()
        assert not any(str(folder).encode() in data for folder in (team_code, adapter.parent, Path.home(), Path.cwd()))


def test_plain_peft_loads_it_where_our_package_cannot_be_imported(adapter: Path, nf_tiny: Path, tmp_path: Path) -> None:
    script = """if True:
        import sys

        sys.modules["neuralforge"] = sys.modules["neuralforge_common"] = None  # importing them raises
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base, adapter = sys.argv[1:]
        tokenizer = AutoTokenizer.from_pretrained(base)
        inputs = tokenizer("def add_argument(self, name):\\n    return ", return_tensors="pt")
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with torch.no_grad():
            before = plain(**inputs).logits
            model = PeftModel.from_pretrained(plain, adapter)
            after = model(**inputs).logits
            with model.disable_adapter():
                again = model(**inputs).logits
        assert torch.isfinite(after).all()
        assert not torch.allclose(before, after, atol=1e-3)
        assert torch.allclose(before, again, atol=1e-5)
        print("loaded", sum(p.numel() for n, p in model.named_parameters() if "lora_" in n))
        """
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-I", "script.py", str(nf_tiny), str(adapter)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "loaded 81408\n"


def test_a_repository_is_enough(watched: Run) -> None:
    assert {path.name for path in (watched.place / "out" / "watched.lora").iterdir()} == GUIDES_FILES | PEFTS_FILES
    assert "base nf-tiny: 3 M parameters, llama\n" in watched.output
    assert re.search(
        r"^training [\d,]+ parameters on 16 examples, 5 steps; fast engine, ", watched.output, re.MULTILINE
    )
    assert "\nsaved out/watched.lora\nnext: neuralforge test-adapter out/watched.lora " in watched.output


def test_away_from_a_terminal_progress_is_plain_lines(watched: Run) -> None:
    assert "\x1b" not in watched.output
    assert "\r" not in watched.output
    assert re.search(r"^step 1/5  loss \d\.\d{3}  [\d,]+ tokens/s  about \d+ s left$", watched.output, re.MULTILINE)
    assert re.search(r"^step 5/5  .* about 0 s left$", watched.output, re.MULTILINE)
    assert re.search(r"^held out, base: perplexity \d+\.\d\d, token accuracy \d+\.\d%$", watched.output, re.MULTILINE)


def test_the_metrics_of_a_run_are_json_lines(watched: Run) -> None:
    steps = [record for record in watched.metrics if record["kind"] == "step"]
    evaluations = [record for record in watched.metrics if record["kind"] == "evaluation"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in evaluations] == [0, 5]
    for record in steps:
        assert math.isfinite(record["loss"])
        assert record["loss"] > 0
        assert record["tokens"] > 0
        assert record["seconds"] > 0


def test_debugging_options_add_memory_and_gradients_to_the_metrics(watched: Run) -> None:
    steps = [record for record in watched.metrics if record["kind"] == "step"]
    assert all(record["resident_bytes"] > 50_000_000 for record in steps)
    for record in steps:
        norms = record["gradient_norms"]
        assert len(norms) == 2 * 7 * 6  # A and B of seven matrices in six layers
        assert math.isclose(math.hypot(*norms.values()), record["gradient_norm"], rel_tol=1e-3)


def test_tensorboard_reads_the_same_figures(watched: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched.place / "logs"))
    events.Reload()
    steps = [record for record in watched.metrics if record["kind"] == "step"]
    shown = events.Scalars("train/loss")
    assert [event.step for event in shown] == [record["step"] for record in steps]
    assert [event.value for event in shown] == pytest.approx([record["loss"] for record in steps])
    assert {"train/learning_rate", "train/tokens_per_second", "held_out/perplexity", "held_out/accuracy"} <= {
        *events.Tags()["scalars"]
    }


def test_checkpoints_lie_where_they_were_asked_for(watched: Run) -> None:
    assert [path.name for path in (watched.place / "kept").iterdir()] == ["checkpoint-00000005.safetensors"]
    assert {path.name for path in (watched.place / "out" / ".neuralforge" / "watched").iterdir()} == {
        *("metrics.jsonl", "held-out.jsonl")
    }


def test_the_guides_configuration_trains_and_says_what_it_does_otherwise(
    cli: Cli, examples: Path, tmp_path: Path
) -> None:
    for name in ("train.jsonl", "eval.jsonl"):
        shutil.copyfile(examples / name, tmp_path / name)
    options = ("--base", "nf-tiny", "--max-steps", 2, "--max-length", 96)
    done = cli("train", "--config", GUIDE / "training-config.yaml", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metadata = json.loads((tmp_path / "my-team-style.lora" / "metadata.json").read_text())
    assert metadata["target_modules"] == ["q_proj", "v_proj"]
    assert (metadata["rank"], metadata["alpha"]) == (8, 16)
    assert metadata["training_samples"] == 16
    told = [line for line in done.stdout.splitlines() if line.startswith(("fp16", "optimization.", "training."))]
    assert len([line for line in told if re.match(r"fp16: not available on cpu, computing in \w+", line)]) == 1
    assert "optimization.replay_buffer_size: read and not used, a first session has nothing to replay" in told


def test_ctrl_c_at_a_terminal_saves_says_how_to_go_on_and_that_goes_on(
    terminal: Terminals, cli: Cli, examples: Path, tmp_path: Path
) -> None:
    options = (
        *QUICK,
        "--max-steps",
        60,
        "--epochs",
        50,
        "--eval-fraction",
        0,
        "--output",
        "a folder",
        "--checkpoint-dir",
        "kept",
    )
    session = terminal("train", "--dataset", examples / "train.jsonl", *options, cwd=tmp_path, OMP_NUM_THREADS="1")
    bar = session.wait_for("tokens/s")
    assert "60 steps; fast engine" in bar
    assert re.search(r"training .*\d+/60 +loss \d\.\d{3} +[\d,]+ $", bar)
    session.send("\x03")
    assert session.ended() == 130
    stopped = re.search(r"stopped after step (\d+), saved in kept\nto go on: (.*)$", session.shown, re.MULTILINE)
    assert stopped, session.shown
    step = int(stopped[1])
    assert 1 <= step < 60
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [f"checkpoint-{step:08d}.safetensors"]
    assert not (tmp_path / "a folder" / "my-adapter.lora").exists()
    name, *again = shlex.split(stopped[2])
    assert name == "neuralforge"
    assert again[-2:] == ["--resume", "auto"]
    done = cli(*again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"from step {step} of 60" in done.stdout
    assert {path.name for path in (tmp_path / "a folder" / "my-adapter.lora").iterdir()} == GUIDES_FILES | PEFTS_FILES
    lines = (tmp_path / "a folder" / ".neuralforge" / "my-adapter" / "metrics.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "step"]
    assert steps == [*range(1, 61)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_resumed_run_ends_with_the_same_bytes(
    program: Path, cli: Cli, examples: Path, tmp_path: Path, number: signal.Signals
) -> None:
    options = ("train", "--dataset", examples / "train.jsonl", *QUICK, "--max-steps", 120, "--epochs", 50)
    fixed = {"SOURCE_DATE_EPOCH": "1760000000"}
    command = [str(word) for word in (program, *options, "--output", "stopped")]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | fixed
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 128 + number
    assert "stopped after step " in rest
    assert "--resume auto" in rest
    for output in ("stopped", "whole"):
        done = cli(*options, "--output", output, "--resume", "auto", cwd=tmp_path, **fixed)
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "whole" / "my-adapter.lora").iterdir())
    for name in names:
        folders = [tmp_path / output / "my-adapter.lora" for output in ("stopped", "whole")]
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_what_was_held_out_lies_beside_the_adapter_that_did_not_learn_it(
    cli: Cli, adapter: Path, examples: Path, tmp_path: Path
) -> None:
    held_out = adapter.parent / ".neuralforge" / "team" / "held-out.jsonl"
    assert {json.loads(line)["repo"] for line in held_out.read_text().splitlines()} == {"project"}
    # A new run of the same name that holds nothing out leaves no older file that its adapter may have learnt.
    older = tmp_path / ".neuralforge" / "again" / "held-out.jsonl"
    older.parent.mkdir(parents=True)
    shutil.copyfile(examples / "train.jsonl", older)
    options = (*QUICK, "--max-steps", 1, "--eval-fraction", 0, "--name", "again")
    done = cli("train", "--dataset", examples / "train.jsonl", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.lora").is_dir()
    assert not older.exists()
