"""What several tasks cost and bring: an adapter of completion alone and one of three tasks, judged on each task.

    python benchmarks/tasks.py                     smollm2-135m: about half an hour on two cores
    python benchmarks/tasks.py --base nf-tiny      about four minutes
    python benchmarks/tasks.py --quick             under 50 seconds, shows only that it runs

Both adapters see the same number of examples in the same number of steps and start from the same weights, so each of
three tasks has less of it. Both are judged on the same held-out files, by perplexity on each task. Data: the sources
of the package peft, `--source` for another folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

THREE = {"completion": 0.5, "bug_detection": 0.3, "documentation": 0.2}


def main() -> None:
    """Train both and judge them; print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--base", help="default: smollm2-135m, nf-tiny with --quick")
    parser.add_argument("--steps", type=int, default=200, help="of four examples")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--source", type=Path, help="a folder of source code (default: the package peft)")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    quick = arguments.quick
    answer = measure(
        arguments.source or _peft(),
        arguments.base or ("nf-tiny" if quick else "smollm2-135m"),
        steps=6 if quick else arguments.steps,
        seeds=1 if quick else arguments.seeds,
        samples=40 if quick else 1500,
        held_out=24 if quick else 60,
    )
    if arguments.json:
        print(json.dumps(answer))
        return
    print("| held out | examples | base | completion alone | three tasks |")
    print("|---|---:|---:|---:|---:|")
    for name in THREE:
        row = answer["tasks"][name]
        cells = (f"{sum(row[who]) / len(row[who]):.2f} ({min(row[who]):.2f}–{max(row[who]):.2f})" for who in _WHO)
        print(f"| {name} | {row['examples']} | {row['base']:.2f} | {' | '.join(cells)} |")


_WHO = ("alone", "three")


def measure(source: Path, base: str, *, steps: int, seeds: int, samples: int, held_out: int) -> dict[str, Any]:
    """Perplexity by task: of the base, and by seed of both adapters."""
    from neuralforge.data.gather import gather
    from neuralforge.models.load import load_base_model
    from neuralforge.tasks.multi_task import train_tasks
    from neuralforge.tasks.task import made_by, resolve_tasks
    from neuralforge.training.trainer import LoRATrainer

    dataset = gather(sources=[source], max_samples=samples, max_eval_samples=held_out, seed=0)
    judged = made_by(list(resolve_tasks(THREE)), dataset.evaluation)
    tasks: dict[str, dict[str, Any]] = {
        name: {"examples": len(judged.of(name)), "alone": [], "three": []} for name in THREE
    }
    for seed in range(seeds):
        for who, shares in (("alone", {"completion": 1.0}), ("three", THREE)):
            trainer = LoRATrainer(load_base_model(base, device="cpu"), seed=seed)
            if not seed and who == "alone":
                for name, row in tasks.items():
                    row["base"] = trainer.evaluate(judged.of(name)).perplexity
            train_tasks(trainer, shares, dataset.train, epochs=1000, max_steps=steps)
            for name, row in tasks.items():
                row[who].append(trainer.evaluate(judged.of(name)).perplexity)
            told = ", ".join(f"{name} {row[who][-1]:.2f}" for name, row in tasks.items())
            print(f"seed {seed}, {who}: {told}", file=sys.stderr)
    return {"base": base, "steps": steps, "train": len(dataset.train), "tasks": tasks}


def _peft() -> Path:
    found = importlib.util.find_spec("peft")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("error: the package peft is not installed\n  hint: name a folder with --source")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    main()
