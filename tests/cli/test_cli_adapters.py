"""`neuralforge adapters …` as a person runs it: list, show, compose, export."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.folder import AdapterMetadata, Evaluation, Scores, read_adapter_folder, write_adapter_folder
from neuralforge_common.privacy import PrivacyStatement

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Rows = Callable[[str], dict[str, list[str]]]

ACTIONS = ("list", "show", "verify", "compose", "export")
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")


def write(path: Path, seed: int, **facts: Any) -> None:
    """An adapter of rank 2 for a base that is not there."""
    generator = np.random.default_rng(seed)
    spec = AdapterSpec(
        base="acme/tiny", base_fingerprint="sha256:ab", rank=2, alpha=4.0, target_modules=("q_proj", "up_proj")
    )
    arrays = {}
    for module in MODULES:
        arrays[f"base_model.model.{module}.lora_A.weight"] = generator.standard_normal((2, 8))
        arrays[f"base_model.model.{module}.lora_B.weight"] = generator.standard_normal((6, 2))
    metadata = AdapterMetadata(**{"name": path.name.removesuffix(".lora"), "license": "MIT"} | facts)
    write_adapter_folder(path, spec=spec, state=AdapterState(arrays), metadata=metadata)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three adapters: one private and evaluated, one from a federation, one that plain PEFT might have saved."""
    write(
        tmp_path / "spring.lora",
        1,
        accuracy=0.645,
        training_samples=5000,
        evaluation=Evaluation(base=Scores(accuracy=0.578), adapter=Scores(accuracy=0.645), samples=200),
        privacy=PrivacyStatement(epsilon=3.0, delta=1e-5, unit="file", steps=100),
    )
    write(
        tmp_path / "team.lora",
        2,
        version="1.2.0",
        federation_rounds=12,
        privacy=PrivacyStatement(epsilon=2.0, delta=1e-5, unit="file", steps=50),
    )
    stock = tmp_path / "deeper/stock"
    write(stock, 3)
    for name in ("metadata.json", "lora_weights.bin", "README.md"):
        (stock / name).unlink()
    return tmp_path


def test_the_list_tells_adapters_apart_at_a_glance(cli: Cli, rows: Rows, place: Path) -> None:
    (place / "torn.lora").mkdir()
    (place / "torn.lora/adapter_config.json").write_text("{}")
    done = cli("adapters", "list", cwd=place, COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    table = rows(done.stdout)
    assert table["spring"] == ["1.0.0", "acme/tiny", "2", "0.0", "64.5%", "ε 3, file", "no", "spring.lora"]
    assert table["stock"] == ["", "acme/tiny", "2", "0.0", "", "", "no", "deeper/stock"]
    assert "torn.lora: adapter_config.json: peft_type: wanted LORA, got None" in done.stdout
    answer = json.loads(cli("adapters", "list", "--json", "deeper", "team.lora", cwd=place).stdout)
    assert [facts["path"] for facts in answer] == ["deeper/stock", "team.lora"]
    assert answer[1]["privacy"]["statement"] == "ε = 2 at δ = 1e-05, file-level"
    assert (answer[1]["version"], answer[1]["rank"], answer[1]["signed"]) == ("1.2.0", 2, False)
    empty = cli("adapters", "list", place / "spring.lora/..", cwd=place / "deeper/stock")
    assert "spring" in empty.stdout
    (place / "none").mkdir()
    assert cli("adapters", "list", "none", cwd=place).stdout == "no adapters in none\n"


def test_show_tells_what_the_folder_says_and_what_its_numbers_look_like(cli: Cli, rows: Rows, place: Path) -> None:
    done = cli("adapters", "show", "spring.lora", "--modules", cwd=place, COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "spring 1.0.0",
        "  base         acme/tiny",
        "  LoRA         rank 2, alpha 4, on q_proj, up_proj",
        "  learnt from  5,000 samples",
        "  privacy      ε = 3 at δ = 1e-05, file-level",
        "  evaluation   accuracy 64.5%; base: accuracy 57.8% on 200 samples",
        "  signed       no",
    ):
        assert line in done.stdout.splitlines()
    assert rows(done.stdout)[MODULES[0]][0] == "6 × 8"
    answer = json.loads(cli("adapters", "show", "team.lora", "--json", cwd=place).stdout)
    assert answer["federation_rounds"] == 12
    assert answer["privacy"]["unit"] == "file"
    state = load_file(place / "team.lora/adapter_model.safetensors")
    for module in answer["delta"]["modules"]:
        a, b = (state[f"base_model.model.{module['name']}.lora_{side}.weight"] for side in "AB")
        assert module["norm"] == pytest.approx(float(np.linalg.norm(2.0 * b @ a)), rel=1e-5)
    (place / "team.lora/model.sig").write_text("{}")
    assert json.loads(cli("adapters", "show", "team.lora", "--json", cwd=place).stdout)["signed"] is True
    stock = cli("adapters", "show", "deeper/stock", cwd=place, COLUMNS="200")
    assert "as plain PEFT saves it: whether it fits acme/tiny cannot be checked" in stock.stdout


def test_a_composed_adapter_knows_its_parents_and_forgets_their_figures(cli: Cli, place: Path) -> None:
    options = ("--weights", "0.7,0.3", "-o", "both.lora")
    done = cli("adapters", "compose", "spring.lora", "team.lora", *options, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "both.lora: rank 4, cat"
    assert re.search(r"differs from the weighted sum by \S+e-0[89] of it", done.stdout)
    assert done.stderr.startswith("ε = 5 at δ = 2e-05, file-level: the sum over 2 parents by basic composition")

    both = read_adapter_folder(place / "both.lora")
    assert both.metadata.accuracy is both.metadata.evaluation is both.metadata.training_samples is None
    assert both.metadata.privacy is not None
    assert both.metadata.privacy.epsilon == 5.0
    assert both.metadata.license == "MIT"
    assert both.metadata.composition is not None
    assert [(p.name, p.version, p.weight) for p in both.metadata.composition.parents] == [
        ("spring", "1.0.0", 0.7),
        ("team", "1.2.0", 0.3),
    ]
    digests = [
        hashlib.sha256((place / name / "lora_weights.bin").read_bytes()).hexdigest()
        for name in ("spring.lora", "team.lora")
    ]
    assert [parent.digest for parent in both.metadata.composition.parents] == digests
    card = (place / "both.lora/README.md").read_text()
    assert f"| team | 1.2.0 | 0.3 | `{digests[1]}` |" in card
    assert "Not evaluated. The figures of its parents say nothing of what they are together." in card
    shown = cli("adapters", "show", "both.lora", cwd=place, COLUMNS="200").stdout
    assert "made of      2 adapters, cat" in shown
    assert f"0.3 × team 1.2.0 ({digests[1][:12]}…)" in shown


@pytest.mark.parametrize(
    ("options", "told", "rank"),
    [
        (("--method", "svd", "--rank", "1"), "svd", 1),
        (("--method", "linear"), "linear", 2),
        (("--method", "ties", "--density", "0.3"), "ties, density 0.3", 2),
        (("--method", "dare", "--drop-rate", "0.2", "--seed", "7"), "dare, drop rate 0.2, seed 7", 2),
    ],
)
def test_every_method_writes_an_adapter_and_tells_its_error(
    cli: Cli, place: Path, options: tuple[str, ...], told: str, rank: int
) -> None:
    arguments = ("adapters", "compose", "spring.lora", "deeper/stock", *options, "-o", "x.lora", "--json")
    done = cli(*arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["method"], answer["rank"], answer["weights"]) == (told, rank, [0.5, 0.5])
    assert 0.01 < answer["error"] < 10
    assert "deeper/stock does not record the fingerprint of its base" in done.stderr
    assert "no joint privacy figure: 1 of 2 parents have none" in done.stderr
    written = read_adapter_folder(place / "x.lora")
    assert (written.spec.rank, written.spec.base_fingerprint) == (rank, "sha256:ab")
    assert written.metadata.privacy is None
    shutil.copytree(place / "x.lora", place / "first.lora")
    cli(*arguments, cwd=place)
    assert read_adapter_folder(place / "first.lora").state == read_adapter_folder(place / "x.lora").state


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--weights", "1,2,3"), "error: 3 weights for 2 adapters"),
        (("--method", "ties", "--rank", "4"), "error: --rank is for --method svd, got --method ties"),
        (("--drop-rate", "0.5"), "error: --drop-rate is for --method dare, got --method cat"),
        (("--method", "linear", "--learn-weights", "x.jsonl"), "error: weights are learnt for the weighted sum"),
        (("-o", "./team.lora"), "error: team.lora is one of the adapters that are to be joined"),
        (("--weights", "1,nan"), "argument --weights: wanted numbers with commas between them, got '1,nan'"),
        (("--weights", "1,1", "--learn-weights", "x"), "not allowed with argument --weights"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    cli: Cli, place: Path, options: tuple[str, ...], fault: str
) -> None:
    before = read_adapter_folder(place / "team.lora").state
    done = cli("adapters", "compose", "spring.lora", "team.lora", "-o", "x.lora", *options, cwd=place)
    assert read_adapter_folder(place / "team.lora").state == before
    assert (done.returncode, done.stdout) == (2, "")
    assert fault in done.stderr
    assert not (place / "x.lora").exists()


def test_hostile_and_unfit_adapters_are_refused_in_a_line(refused: Refused, place: Path) -> None:
    config = json.loads((place / "deeper/stock/adapter_config.json").read_text())
    (place / "deeper/stock/adapter_config.json").write_text(json.dumps(config | {"target_modules": "(a+)+$"}))
    for arguments in (
        ("show", "deeper/stock"),
        ("compose", "spring.lora", "deeper/stock", "-o", "x.lora"),
        ("export", "deeper/stock", "--to", "peft", "-o", "x"),
    ):
        message = refused("adapters", *arguments, cwd=place)
        assert message.startswith("deeper/stock: adapter_config.json: target_modules: wanted a list of module names")
    assert not (place / "x.lora").exists()
    taken = refused("adapters", "export", "spring.lora", "--to", "gguf", "-o", "team.lora", cwd=place)
    assert taken == "team.lora: something is there already"


def test_a_stock_peft_folder_is_written_without_a_model(cli: Cli, place: Path) -> None:
    done = cli("adapters", "export", "spring.lora", "--to", "peft", "--base", "acme/hub", "-o", "plain", cwd=place)
    assert done.returncode == 0, done.stderr
    config = json.loads((place / "plain/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("acme/hub", 2)
    again = cli("adapters", "show", "plain", "--json", cwd=place)
    assert json.loads(again.stdout)["base"]["name"] == "acme/hub"


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "spring.lora"],
        ["compose", "spring.lora", "team.lora", "-o", "x.lora"],
        ["export", "spring.lora", "--to", "peft", "-o", "plain"],
        *([action, "--help"] for action in ACTIONS),
    ],
    ids=" ".join,
)
def test_torch_is_imported_only_where_a_base_is_opened(arguments: list[str], place: Path) -> None:
    code = """if True:
        import sys
        from neuralforge.cli.main import main
        try:
            main(["adapters", *sys.argv[1:]])
        finally:
            print("\\n" + repr(sorted(name for name in sys.modules if "." not in name)))
        """
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=place, capture_output=True, text=True)
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    heavy = {"torch", "transformers", "peft"} | ({"numpy", "rich"} if "--help" in arguments else set())
    assert "argparse" in loaded, done.stderr
    assert loaded & heavy == set()


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_examples_with_options_that_it_explains(cli: Cli, tmp_path: Path, action: str) -> None:
    text = cli("adapters", action, "--help", cwd=tmp_path, COLUMNS="200").stdout
    examples = text.partition("\nexamples:\n")[2].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"neuralforge adapters {action}") for line in examples)
    named = set(re.findall(r"--[a-z0-9-]+", " ".join(examples)))
    assert all(re.search(rf"^ +.*{option}\b", text, re.MULTILINE) for option in named)


@pytest.mark.slow
def test_a_trained_adapter_is_composed_by_learnt_weights_and_exported_in_all_formats(
    cli: Cli, adapter: Path, examples: Path, tmp_path: Path
) -> None:
    noise = tmp_path / "noise.lora"
    folder = read_adapter_folder(adapter)
    generator = np.random.default_rng(0)
    state = AdapterState({key: 0.2 * generator.standard_normal(array.shape) for key, array in folder.state.items()})
    write_adapter_folder(noise, spec=folder.spec, state=state, metadata=AdapterMetadata(name="noise"))
    options = ("--learn-weights", examples / "eval.jsonl", "--max-length", 64, "-o", "both.lora", "--json")
    done = cli("adapters", "compose", adapter, noise, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["learnt"]["loss"] <= min(answer["learnt"]["equal"], *answer["learnt"]["alone"])
    assert read_adapter_folder(tmp_path / "both.lora").metadata.composition.learnt_on == 4  # type: ignore[union-attr]

    for kind in ("peft", "gguf", "merged"):
        done = cli("adapters", "export", "both.lora", "--to", kind, "-o", f"as-{kind}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "as-gguf").read_bytes()[:4] == b"GGUF"
    # The merged model is a base like any other, and needs no adapter to write what the adapter writes.
    scored = cli(
        *("benchmark", "--adapter", "both.lora", "--test-file", examples / "eval.jsonl", "--max-length", 64),
        *("--metrics", "perplexity", "--json"),
        cwd=tmp_path,
    )
    wanted = json.loads(scored.stdout)["perplexity"]["adapter"]
    zero = AdapterState({key: 0 * array for key, array in folder.state.items()})
    spec = AdapterSpec(base="as-merged", rank=4, alpha=4.0, target_modules=folder.spec.target_modules)
    write_adapter_folder(tmp_path / "zero.lora", spec=spec, state=zero, metadata=AdapterMetadata(name="zero"))
    scored = cli(
        *("benchmark", "--adapter", "zero.lora", "--base", "./as-merged", "--test-file", examples / "eval.jsonl"),
        *("--max-length", 64, "--metrics", "perplexity", "--json"),
        cwd=tmp_path,
    )
    assert json.loads(scored.stdout)["perplexity"]["base"] == pytest.approx(wanted, rel=0.01)
    assert (tmp_path / "as-merged/model.safetensors").stat().st_mode & 0o044
