"""Where a training step's time goes: torch's profiler over the default trainer, operators put in five groups.

    python benchmarks/step_profile.py            about half a minute
    python benchmarks/step_profile.py --quick    fewer steps, shorter samples

Groups are told by operator and shape: products of matrices whose every side is above 64 are `large products` (frozen
weights, the head), other products `thin products` (the adapter's), batched ones and the softmax over three dimensions
`attention`; of the rest, what takes time is `elementwise`, and `other` is views, allocation and the profiler's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

THIN = 64
ELEMENTWISE = ("mul", "add", "sub", "div", "silu", "copy", "softmax", "exp", "log", "sum", "norm", "rsqrt", "gather")


def main() -> None:
    """Profile a few steps and print shares of the time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer steps, shorter samples")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--base", default="smollm2-135m")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    answer = measure(arguments.base, length=96 if arguments.quick else 256, steps=2 if arguments.quick else 6)
    if arguments.json:
        print(json.dumps(answer))
        return
    for name, share in answer["shares"].items():
        print(f"{name}: {share:.1%}")
    print(f"large products: {answer['large_gflops']:.0f} GFLOP/s")


def measure(base: str, *, length: int, steps: int) -> dict[str, Any]:
    """Shares of self time by group, and the rate of the large products."""
    from torch.profiler import ProfilerActivity, profile

    from neuralforge.data.batch import Batch, epoch_batches
    from neuralforge.data.gather import gather
    from neuralforge.models.load import load_base_model
    from neuralforge.training.trainer import LoRATrainer

    found = importlib.util.find_spec("peft")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("error: the package peft is not installed")
    source = Path(found.submodule_search_locations[0])
    dataset = gather(sources=[source], max_samples=4 * (steps + 2), max_eval_samples=4, seed=0)
    trainer = LoRATrainer(load_base_model(base, device="cpu"), max_length=length)
    tokens = trainer.tokenize(dataset.train)
    order = epoch_batches(tokens, batch_size=4, seed=0, epoch=0)
    batches = [Batch(examples=tuple(tokens[i] for i in batch)) for batch in order]
    for batch in batches[:2]:  # the first ones build what later ones reuse
        trainer.engine.accumulate(batch, scale=1 / batch.targets, seed=0)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        for batch in batches[2 : 2 + steps]:
            trainer.engine.accumulate(batch, scale=1 / batch.targets, seed=0)
    spent: dict[str, float] = dict.fromkeys(("large products", "thin products", "attention", "elementwise", "other"), 0)
    operations = 0.0
    for event in watched.key_averages(group_by_input_shape=True):
        shapes = [shape for shape in event.input_shapes if shape]
        group = _group(event.key, shapes)
        spent[group] += event.self_cpu_time_total
        if group == "large products":
            left, right = shapes[-2:]
            operations += 2 * left[0] * left[1] * right[1] * event.count
    total = math.fsum(spent.values())
    return {
        "shares": {name: value / total for name, value in spent.items()},
        "large_gflops": operations / (spent["large products"] * 1e-6) / 1e9,
    }


def _group(operator: str, shapes: list[list[int]]) -> str:
    name = operator.removeprefix("aten::").strip("_")
    if name in ("bmm", "baddbmm") or ("softmax" in name and shapes and len(shapes[0]) == 3):
        return "attention"
    if name in ("mm", "addmm"):
        sides = [side for shape in shapes[-2:] for side in shape]
        return "large products" if min(sides) > THIN else "thin products"
    return "elementwise" if any(part in name for part in ELEMENTWISE) else "other"


if __name__ == "__main__":
    main()
