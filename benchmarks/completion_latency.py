"""How long an editor waits for a completion, keystroke by keystroke, with and without the prefix kept in memory.

    python benchmarks/completion_latency.py                                smollm2-135m, a few minutes on two cores
    python benchmarks/completion_latency.py --adapter ./my-adapter.lora    with an adapter on its base
    python benchmarks/completion_latency.py --quick                        under 50 seconds, shows only that it runs

Somebody types real code (the longest module of the package peft, `--source` for another file) from the middle of the
file on, one to four characters a keystroke; each keystroke asks for a greedy completion of what stands before the
cursor. Both sides write the same completions in turn; how many were identical is reported. Times are those of the
writer inside the server; HTTP on loopback adds about a millisecond.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Type, measure, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapter", type=Path, help="a .lora folder; its base is used")
    parser.add_argument("--source", type=Path, help="a file of source code (default: one of the package peft)")
    parser.add_argument("--keystrokes", type=int, default=40)
    parser.add_argument("--context", type=int, default=3000, help="characters before the first keystroke")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a completion")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    text = (arguments.source or _longest_module()).read_text(encoding="utf-8")
    keystrokes, context, tokens = arguments.keystrokes, arguments.context, arguments.tokens
    if arguments.quick:
        keystrokes, context, tokens = 4, 600, 4
    prompts = typed(text, keystrokes=keystrokes, context=context, seed=0)
    answer = measure(prompts, base=arguments.base, adapter=arguments.adapter, tokens=tokens)
    if arguments.json:
        print(json.dumps(answer))
        return
    print(f"{answer['keystrokes']} keystrokes, prompts of {answer['prompt_tokens']:.0f} tokens on average")
    print("| | first token p50 | p50 | p95 |")
    print("|---|---:|---:|---:|")
    for name, row in (("prefix kept", answer), ("read anew", answer["without_reuse"])):
        print(f"| {name} | {row['first_token_p50_ms']:.0f} ms | {row['p50_ms']:.0f} ms | {row['p95_ms']:.0f} ms |")
    print(
        f"faster by {answer['prefix_reuse_speedup']:.2f} (first token {answer['first_token_speedup']:.2f}); "
        f"{answer['reused_share']:.1%} of prompt tokens reused; "
        f"{answer['identical']} of {answer['keystrokes']} completions identical"
    )


def typed(text: str, *, keystrokes: int, context: int, seed: int) -> list[str]:
    """What stands before the cursor at each keystroke."""
    steps = np.random.default_rng(seed).integers(1, 5, size=keystrokes)
    begin = max(0, len(text) // 2 - context)
    if len(text) < begin + context + 4 * keystrokes:
        raise SystemExit(f"error: {len(text):,} characters are too few\n  hint: another --source, or less --context")
    prompts, end = [], begin + context
    for step in steps.tolist():
        end += step
        prompts.append(text[begin:end])
    return prompts


def measure(prompts: Sequence[str], *, base: str, adapter: Path | None, tokens: int) -> dict[str, Any]:
    """Figures of both sides; the first keystroke of each, which nothing is kept for, is left out."""
    from neuralforge.models.load import load_base_model
    from neuralforge.serving.served import ServedModel
    from neuralforge.serving.writer import Writer
    from neuralforge_common.folder import read_adapter_folder

    loaded = load_base_model(read_adapter_folder(adapter).spec.base if adapter else base, device="cpu")
    served = ServedModel(loaded)
    if adapter:
        served.load(adapter)
    sides = {
        True: Writer(loaded, max_context=served.max_context),
        False: Writer(loaded, max_context=served.max_context, reuse_prefix=False),
    }
    rows: dict[bool, list[tuple[float, float, str, Any]]] = {True: [], False: []}
    for prompt in prompts:
        for reuse, writer in sides.items():
            rows[reuse].append(_complete(writer, prompt, tokens))
    kept, anew = (_figures(rows[reuse][1:]) for reuse in (True, False))
    finishes = [row[3] for row in rows[True][1:]]
    return {
        **kept,
        "without_reuse": anew,
        "prefix_reuse_speedup": anew["p50_ms"] / kept["p50_ms"],
        "first_token_speedup": anew["first_token_p50_ms"] / kept["first_token_p50_ms"],
        "reused_share": sum(f.reused_tokens for f in finishes) / sum(f.prompt_tokens for f in finishes),
        "prompt_tokens": statistics.mean(f.prompt_tokens for f in finishes),
        "completion_tokens": tokens,
        "keystrokes": len(finishes),
        "identical": sum(a[2] == b[2] for a, b in zip(rows[True][1:], rows[False][1:], strict=True)),
        "base": loaded.name,
        "number_format": str(loaded.model.dtype).removeprefix("torch."),
    }


def _complete(writer: Any, prompt: str, tokens: int) -> tuple[float, float, str, Any]:
    """Seconds to the first token and to the end, the text, and how it ended."""
    from neuralforge.serving.request import CompletionRequest, Finish

    began = time.perf_counter()
    first, text, finish = 0.0, "", None
    for item in writer.write(CompletionRequest(prompt=prompt, max_tokens=tokens), lambda: False):
        first = first or time.perf_counter() - began
        if isinstance(item, Finish):
            finish = item
        else:
            text += item.text
    return first, time.perf_counter() - began, text, finish


def _figures(rows: Sequence[tuple[float, float, str, Any]]) -> dict[str, float]:
    seconds = sorted(row[1] for row in rows)
    return {
        "first_token_p50_ms": 1000 * statistics.median(row[0] for row in rows),
        "p50_ms": 1000 * statistics.median(seconds),
        "p95_ms": 1000 * seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
    }


def _longest_module() -> Path:
    found = importlib.util.find_spec("peft")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("error: the package peft is not installed\n  hint: name a file with --source")
    modules = Path(found.submodule_search_locations[0]).rglob("*.py")
    return max(modules, key=lambda path: (path.stat().st_size, str(path)))


if __name__ == "__main__":
    main()
