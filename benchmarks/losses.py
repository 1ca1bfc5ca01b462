"""Does a loss that minds syntax make code that parses? Greedy completions of held-out code, by the loss trained with.

The same data, steps and seeds for every loss; `base` is the base alone. The rate is over completions that a parser can
judge: one is valid where it parses as well as what a person wrote there (evaluation/syntax.py), the last unfinished
line left out. Differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import time
from pathlib import Path
from typing import Any

from neuralforge.data.dataset import Dataset, build_dataset
from neuralforge.data.example import Example
from neuralforge.data.source import join_sources, read_source_tree
from neuralforge.evaluation.generation import write
from neuralforge.evaluation.syntax import syntax_valid
from neuralforge.models import load_base_model
from neuralforge.training import LoRATrainer
from neuralforge.training.losses.named import named_loss

LOSSES = ("cross_entropy", "label_smoothing", "syntax_penalised", "style_consistent")
MODULES = (
    *("argparse.py", "ast.py", "bdb.py", "calendar.py", "cmd.py", "configparser.py", "csv.py", "dataclasses.py"),
    *(
        "difflib.py",
        "fileinput.py",
        "fractions.py",
        "gettext.py",
        "heapq.py",
        "imaplib.py",
        "mailbox.py",
        "optparse.py",
    ),
)
MAX_LENGTH, NEW_TOKENS = 128, 40


def main() -> None:
    """Train with every loss and every seed, complete, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="nf-tiny")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: shows that it runs, decides nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    args = parser.parse_args()
    seeds, steps, judged = ((0,), 12, 12) if args.quick else ((0, 1, 2), 80, 100)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [read_source_tree(library / name) for name in MODULES if (library / name).is_file()]
    dataset = build_dataset(join_sources(sources), eval_fraction=0.25, max_eval_samples=judged, seed=0)
    rows: dict[str, list[dict[str, float]]] = {"base": []}
    for loss in LOSSES:
        rows[loss] = []
        for seed in seeds:
            base = load_base_model(args.base, dtype="float32")
            trainer = LoRATrainer(
                base, rank=8, max_length=MAX_LENGTH, batch_size=4, seed=seed, learning_rate=3e-3, loss=named_loss(loss)
            )
            if not rows["base"]:
                rows["base"] = [figures(trainer, dataset)]
            began = time.process_time()
            trainer.train(dataset.train, epochs=9, max_steps=steps)
            spent = time.process_time() - began
            rows[loss].append(figures(trainer, dataset) | {"cpu_seconds": spent})
    result = {
        "base_model": args.base,
        "steps": steps,
        "seeds": len(seeds),
        "judged": judged,
        "syntax_valid_rate": {loss: mean(found, "syntax_valid_rate") for loss, found in rows.items()},
        "perplexity": {loss: mean(found, "perplexity") for loss, found in rows.items()},
        "cpu_seconds": {loss: mean(found, "cpu_seconds") for loss, found in rows.items() if loss != "base"},
        "difference_to_cross_entropy": {
            loss: [
                round(a["syntax_valid_rate"] - b["syntax_valid_rate"], 4)
                for a, b in zip(rows[loss], rows["cross_entropy"], strict=True)
            ]
            for loss in LOSSES[1:]
        },
    }
    print(json.dumps(result) if args.json else table(result))


def figures(trainer: LoRATrainer, dataset: Dataset) -> dict[str, float]:
    """Rate of completions that parse, and perplexity."""
    judged = [syntax_valid(example, complete(trainer, example), cut=True) for example in dataset.evaluation]
    known = [value for value in judged if value is not None]
    return {
        "syntax_valid_rate": sum(known) / max(1, len(known)),
        "perplexity": trainer.evaluate(dataset.evaluation).perplexity,
    }


def complete(trainer: LoRATrainer, example: Example) -> str:
    """Greedy, at most NEW_TOKENS."""
    trainer.peft.eval()
    options = {"max_length": MAX_LENGTH, "max_new_tokens": NEW_TOKENS}
    return write(trainer.peft, trainer.base, example.context, **options).text


def mean(rows: list[dict[str, float]], name: str) -> float:
    """Over seeds."""
    return round(statistics.mean(row[name] for row in rows), 4)


def table(result: dict[str, Any]) -> str:
    """For docs/training.md."""
    lines = [
        f"{result['base_model']}, {result['steps']} steps, {result['seeds']} seeds, {result['judged']} completions",
        "",
        "| loss | completions that parse | difference to cross-entropy, by seed | perplexity | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for loss, rate in result["syntax_valid_rate"].items():
        apart = ", ".join(f"{value:+.1%}" for value in result["difference_to_cross_entropy"].get(loss, [])) or "–"
        seconds = result["cpu_seconds"].get(loss)
        cost = "–" if seconds is None else f"{seconds:.0f}"
        lines.append(f"| `{loss}` | {rate:.1%} | {apart} | {result['perplexity'][loss]:.2f} | {cost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
