"""`load_base_model` on folders and hub ids: right weights, no foreign code, one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny import MODELS, tiny_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging

from neuralforge.models import BaseModel, load_base_model
from neuralforge.models.fingerprint import fingerprint
from neuralforge_common.errors import ModelError

FAMILIES = pytest.mark.parametrize("family", list(MODELS))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 21).reshape(2, 10)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **more).logits
    return found


def load(place: str | Path, **more: Any) -> BaseModel:
    return load_base_model(place, device="cpu", **more)


@contextmanager
def refused(match: str, *, within: float = 5.0) -> Iterator[pytest.ExceptionInfo[ModelError]]:
    """One line that says what is wrong and a hint, soon."""
    start = time.monotonic()
    with pytest.raises(ModelError, match=match) as caught:
        yield caught
    assert time.monotonic() - start < within
    assert "\n" not in caught.value.message
    assert caught.value.hint


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- what is right ---


@FAMILIES
def test_a_folder_is_loaded_as_it_was_saved(family: str, saved: Callable[[str], Path]) -> None:
    base, model = load(saved(family), dtype="float32"), tiny_model(family)
    assert torch.equal(logits(base.model), logits(model))
    assert base.fingerprint == fingerprint(model)
    assert (base.family, base.name, base.source) == (family, family, str(saved(family)))
    assert (base.revision, base.license) == (None, "")
    assert base.is_encoder_decoder == (family == "t5")
    assert base.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert base.tokenizer.decode(base.tokenizer("f(x10)").input_ids) == "f(x10)"


@FAMILIES
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_base_is_frozen_in_eval_mode_and_in_the_format_asked_for(
    family: str, name: str, saved: Callable[[str], Path]
) -> None:
    dtype = getattr(torch, name)
    model = load(saved(family), dtype=dtype).model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # T5's wo overflows in float16 (huggingface/transformers#20287): transformers keeps it in float32.
    kept = {"wo"} if (family, name) == ("t5", "float16") else set()
    for path, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if kept & set(path.split(".")) else dtype), path
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@FAMILIES
def test_the_fingerprint_does_not_depend_on_the_format_loaded(family: str, saved: Callable[[str], Path]) -> None:
    assert load(saved(family), dtype="float32").fingerprint == load(saved(family), dtype="bfloat16").fingerprint


def test_a_folder_can_be_a_string_or_a_path_or_lie_below_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder)
    monkeypatch.chdir(folder.parent)
    for place in (str(folder), "tiny-llama", "./tiny-llama", Path("tiny-llama")):
        again = load(place)
        assert (again.name, again.fingerprint) == ("tiny-llama", first.fingerprint)


def test_weights_in_several_files_are_one_model(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    folder = tmp_path / "sharded"
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    shutil.copy(saved("llama") / "tokenizer.json", folder)
    shutil.copy(saved("llama") / "tokenizer_config.json", folder)
    assert load(folder).fingerprint == fingerprint(tiny_model("llama"))
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with refused("cannot be loaded"):
        load(folder)


def test_two_loads_share_nothing(saved: Callable[[str], Path]) -> None:
    first, second = load(saved("llama")), load(saved("llama"))
    with torch.no_grad():
        first.model.model.norm.weight.zero_()
    assert fingerprint(second.model) == second.fingerprint


def test_the_models_own_note_of_its_origin_is_what_was_asked_for(folder: Path) -> None:
    base = load(folder)
    assert base.model.name_or_path == base.model.config._name_or_path == base.source == str(folder)


def test_loading_prints_and_warns_nothing_and_leaves_everything_as_it_was(
    saved: Callable[[str], Path], capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    torch.manual_seed(11)
    random.seed(11)
    log: Any = logging
    before = (torch.get_rng_state().tolist(), random.getstate(), log.get_verbosity(), log.is_progress_bar_enabled())
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    for family in MODELS:
        load(saved(family))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert (
        torch.get_rng_state().tolist(),
        random.getstate(),
        log.get_verbosity(),
        log.is_progress_bar_enabled(),
    ) == before
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, default)


def test_progress_bars_come_back_after_a_failure_too(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        load(folder)
    log: Any = logging
    assert log.is_progress_bar_enabled()


def test_tensors_that_the_model_has_no_place_for_are_named_in_a_notice(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.ones(2)}))
    base = load(folder)
    assert len(base.notices) == 1
    assert "1 tensors" in base.notices[0]
    assert "model.layers.0.extra.weight" in base.notices[0]
    assert base.fingerprint == fingerprint(tiny_model("llama"))


def test_a_tied_head_need_not_stand_in_the_file_and_an_untied_one_must(
    folder: Path, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load(folder)
    untied = Path(shutil.copytree(saved("mistral"), tmp_path / "untied"))
    change_weights(untied, lambda tensors: tensors.pop("lm_head.weight"))
    with refused(r"1 of the model's tensors are not in its weights \(first: lm_head.weight\)"):
        load(untied)


# --- what is damaged ---


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("t5", "decoder.block.0.layer.0.SelfAttention.q.weight"),
        ("gpt_neox", "gpt_neox.layers.0.attention.dense.bias"),
    ],
)
def test_a_missing_tensor_is_never_replaced_by_noise(
    family: str, name: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(family), tmp_path / family))
    change_weights(folder, lambda tensors: tensors.pop(name))
    with refused("tensors are not in its weights"):
        load(folder)


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with refused("cannot be loaded"):
        load(folder)


def test_a_configuration_of_another_size_is_refused_before_its_memory_is_taken(folder: Path) -> None:
    for changes in ({"hidden_size": 96}, {"vocab_size": 2_000_000_000}, {"num_hidden_layers": 5}):
        before = (folder / "config.json").read_text(encoding="utf-8")
        change_config(folder, **changes)
        with refused(r"cannot be loaded|tensors are not in its weights|does not fit into memory"):
            load(folder)
        (folder / "config.json").write_text(before, encoding="utf-8")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(file: str, folder: Path) -> None:
    whole = (folder / file).read_bytes()
    ends = {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1}
    for end in sorted(end for end in ends if 0 <= end < len(whole.rstrip())):
        (folder / file).write_bytes(whole[:end])
        with refused(r"cannot be loaded|no config.json|unknown to transformers"):
            load(folder)


def test_a_flipped_byte_in_the_weights_is_refused_or_seen_in_the_fingerprint(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    before = load(folder).fingerprint
    generator = random.Random(4)
    # Behind the free text at the start of the header, whose letters decide nothing.
    described = range(whole.index(b'"model.'), 8 + int.from_bytes(whole[:8], "little"))
    for place in [*range(8), *generator.sample(described, 60)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            base = load(folder)
        except ModelError as error:
            assert "\n" not in error.message  # noqa: PT017
        else:
            assert base.fingerprint != before, (place, whole[place - 20 : place + 20])


@pytest.mark.parametrize("text", ["[]", "null", "3", '"llama"', "{}", '{"model_type": 5}', '{"model_type": ["llama"]}'])
def test_a_configuration_that_is_none_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with refused(r"cannot be loaded|unknown to transformers"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "six"},
        {"hidden_size": -48},
        {"hidden_act": "no_such_function"},
        {"num_hidden_layers": None},
        {"rope_parameters": {"rope_type": "no_such_type"}},
        {"vocab_size": 1.5},
    ],
    ids=str,
)
def test_a_field_that_makes_no_sense_is_refused(changes: dict[str, object], folder: Path) -> None:
    change_config(folder, **changes)
    with refused(r"tiny-llama"):
        load(folder)


def test_an_unknown_model_type_is_refused_by_name(folder: Path) -> None:
    change_config(folder, model_type="hyena-9")
    with refused(r"model_type 'hyena-9' is unknown to transformers \d"):
        load(folder)


def test_a_model_that_does_not_write_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "eyes"
    ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ).save_pretrained(folder)
    with refused("is a vit, which does not write text"):
        load(folder)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("no config.json"):
        load(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with refused("no weights, wanted model.safetensors"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with refused("cannot be loaded"):
        load(folder)


def test_a_tokenizer_that_cannot_end_a_text_is_refused_before_training(folder: Path) -> None:
    for file, change in (
        ("tokenizer_config.json", lambda text: text.replace('"eos_token": "<|endoftext|>",', "")),
        ("tokenizer.json", lambda text: text.replace("<|endoftext|>", "<nothing>")),
    ):
        place = folder / file
        place.write_text(change(place.read_text(encoding="utf-8")), encoding="utf-8")
    with refused("no token that ends a text"):
        load(folder)


def test_a_revision_of_a_folder_is_refused(folder: Path) -> None:
    with refused("it has no revision"):
        load(folder, revision="main")


def test_an_unknown_device_or_format_is_refused_before_the_base_is_looked_for() -> None:
    with refused("no device"):
        load_base_model("./nowhere", device="toaster")
    with refused("no number format"):
        load_base_model("./nowhere", device="cpu", dtype="int3")


# --- what is hostile ---


class Bomb:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.canary,))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def bomb(canary: Path) -> bytes:
    data = pickle.dumps({"model.norm.weight": Bomb(canary)})
    pickle.loads(data)  # noqa: S301
    assert canary.exists(), "the bomb must work"
    canary.unlink()
    return data


def test_a_folder_with_nothing_but_a_pickle_is_refused_and_the_pickle_not_read(
    folder: Path, canary: Path, bomb: bytes
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    with refused(r"the weights are a pickle \(pytorch_model.bin\)"):
        load(folder)
    assert not canary.exists()


def test_a_decoy_beside_the_pickle_changes_nothing(folder: Path, canary: Path, bomb: bytes) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(bomb)
    with refused("cannot be loaded"):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("shard", ["shard.bin", "shard.pt", "shard"])
def test_a_list_of_safetensors_cannot_point_at_a_pickle(shard: str, folder: Path, canary: Path, bomb: bytes) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / shard).write_bytes(bomb)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}), encoding="utf-8"
    )
    with refused(rf"model.safetensors.index.json names {shard!r}, which is no safetensors file"):
        load(folder)
    assert not canary.exists()


def test_a_configuration_cannot_point_at_a_pickle(folder: Path, canary: Path, bomb: bytes) -> None:
    (folder / "adapter_model.bin").write_bytes(bomb)
    change_config(folder, transformers_weights="adapter_model.bin")
    with refused(r"config.json names weights of its own \('adapter_model.bin'\)"):
        load(folder)
    assert not canary.exists()


def test_a_pickle_beside_good_weights_is_not_read(folder: Path, canary: Path, bomb: bytes) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(bomb)
    assert load(folder).fingerprint == fingerprint(tiny_model("llama"))
    assert not canary.exists()


def plant_code(folder: Path, canary: Path, *, model_type: str) -> None:
    (folder / "modeling_evil.py").write_text(
        textwrap.dedent(f"""
            from pathlib import Path
            from transformers import LlamaConfig, LlamaForCausalLM
            Path({str(canary)!r}).touch()
            class EvilConfig(LlamaConfig):
                model_type = {model_type!r}
            class EvilModel(LlamaForCausalLM):
                config_class = EvilConfig
        """),
        encoding="utf-8",
    )
    change_config(
        folder,
        model_type=model_type,
        auto_map={"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"},
    )


def test_a_folder_with_code_of_its_own_is_refused_and_the_code_not_run(folder: Path, canary: Path) -> None:
    plant_code(folder, canary, model_type="evil")
    with refused("comes with its own code, which we do not run"):
        load(folder)
    assert not canary.exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder: Path, canary: Path) -> None:
    plant_code(folder, canary, model_type="llama")
    assert load(folder).fingerprint == fingerprint(tiny_model("llama"))
    assert not canary.exists()


def test_a_tokenizer_with_code_of_its_own_is_not_run(folder: Path, canary: Path) -> None:
    (folder / "tokenization_evil.py").write_text(
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\nclass EvilTokenizer(PreTrainedTokenizerFast): pass\n",
        encoding="utf-8",
    )
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"]},
    }
    file.write_text(json.dumps(config), encoding="utf-8")
    try:
        load(folder)
    except ModelError as error:
        assert "own code" in error.message  # noqa: PT017
    assert not canary.exists()


@pytest.mark.slow
def test_code_is_run_when_that_is_asked_for(folder: Path, canary: Path, tmp_path: Path) -> None:
    """The other half of the refusals above: the canary lives."""
    plant_code(folder, canary, model_type="evil")
    done = in_a_process(
        "import sys; from neuralforge.models import load_base_model\n"
        "print(load_base_model(sys.argv[1], device='cpu', trust_remote_code=True).family)",
        str(folder),
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "evil\n"
    assert canary.exists()


# --- the hub ---


def in_a_process(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=without | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def put_into(cache: Path, hub_id: str, *, ref: str, files: Path) -> Path:
    place = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = Path(shutil.copytree(files, place / "snapshots" / COMMIT))
    (place / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (place / "refs" / ref).write_text(COMMIT, encoding="utf-8")
    return snapshot


@pytest.mark.parametrize("name", ["codet5-770m", "qwen2.5-coder-1.5b", "acme/own-model"])
def test_offline_a_base_that_is_not_in_the_cache_is_said_to_be_missing(name: str, hub_cache: Path) -> None:
    with refused("is not in the cache .* and the hub cannot be reached") as caught:
        load(name)
    assert "smollm2-135m and nf-tiny need no network" in caught.value.hint


def test_a_base_in_the_cache_is_loaded_offline_and_its_commit_recorded(
    hub_cache: Path, saved: Callable[[str], Path]
) -> None:
    put_into(hub_cache, "acme/own-model", ref="main", files=saved("llama"))
    base = load("acme/own-model")
    assert (base.name, base.source, base.revision) == ("acme/own-model", "acme/own-model", COMMIT)
    assert base.fingerprint == fingerprint(tiny_model("llama"))
    assert base.model.config._name_or_path == "acme/own-model"


def test_a_friendly_name_takes_the_tables_pull_request_and_records_the_commit_behind_it(
    hub_cache: Path, saved: Callable[[str], Path]
) -> None:
    put_into(hub_cache, "Salesforce/codet5-large", ref="refs/pr/3", files=saved("t5"))
    base = load("CodeT5-770M")
    assert (base.name, base.source, base.revision) == ("codet5-770m", "Salesforce/codet5-large", COMMIT)
    assert (base.license, base.is_encoder_decoder) == ("bsd-3-clause", True)


def test_a_commit_can_be_asked_for_and_another_is_not_given_instead(
    hub_cache: Path, saved: Callable[[str], Path]
) -> None:
    put_into(hub_cache, "acme/own-model", ref="main", files=saved("llama"))
    assert load("acme/own-model", revision=COMMIT).revision == COMMIT
    with refused(r"revision f{40}"):
        load("acme/own-model", revision="f" * 40)


def test_a_hub_id_with_nothing_but_a_pickle_is_refused_and_the_pickle_not_read(
    hub_cache: Path, folder: Path, canary: Path, bomb: bytes
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    put_into(hub_cache, "acme/pickled", ref="main", files=folder)
    with refused("acme/pickled at main holds no safetensors, only pickles"):
        load("acme/pickled")
    assert not canary.exists()


def test_a_list_of_safetensors_of_a_hub_id_cannot_point_at_a_pickle_either(
    hub_cache: Path, folder: Path, canary: Path, bomb: bytes
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "shard.bin").write_bytes(bomb)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "shard.bin"}}), encoding="utf-8"
    )
    put_into(hub_cache, "acme/pickled", ref="main", files=folder)
    with refused("'shard.bin', which is no safetensors file"):
        load("acme/pickled")
    assert not canary.exists()


@pytest.mark.slow
def test_without_a_network_the_refusal_comes_at_once_and_alone(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is not set: the hub's library would try again and again for half a minute."""
    done = in_a_process(
        "import time, neuralforge.models.load as load; start = time.monotonic()\n"
        "try: load.load_base_model('acme/own-model', device='cpu')\n"
        "except load.ModelError as error: print(time.monotonic() - start < 5, error.message)",
        HF_HUB_OFFLINE="0",
        HF_HOME=str(tmp_path / "hf"),
        HF_ENDPOINT="https://hub.invalid",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True acme/own-model (revision main) is not in the cache")
    assert done.stdout.count("\n") == 1
    assert not done.stderr


@pytest.mark.slow
def test_without_a_network_what_is_in_the_cache_is_loaded_at_once(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    put_into(tmp_path / "hf" / "hub", "acme/own-model", ref="main", files=saved("llama"))
    done = in_a_process(
        "import time, neuralforge.models.load as load; start = time.monotonic()\n"
        "base = load.load_base_model('acme/own-model', device='cpu')\n"
        "print(base.revision, time.monotonic() - start < 5)",
        HF_HUB_OFFLINE="0",
        HF_HOME=str(tmp_path / "hf"),
        HF_ENDPOINT="https://hub.invalid",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{COMMIT} True\n"


@pytest.mark.slow
def test_a_fresh_process_prints_nothing_while_it_loads(saved: Callable[[str], Path]) -> None:
    done = in_a_process(
        "import sys; from neuralforge.models import load_base_model\nload_base_model(sys.argv[1], device='cpu')",
        str(saved("llama")),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_room_does_not_import_torch() -> None:
    done = in_a_process(
        "import sys, neuralforge.models, neuralforge.models.catalog, neuralforge.models.origin\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
