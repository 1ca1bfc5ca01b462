"""What a budget of tokens teaches: the default trainer on real code, judged on files that it did not see.

    python benchmarks/learning.py                                     about 15 minutes on two cores
    python benchmarks/learning.py --lengths 256 --tokens 110000       one row: the defaults for about four minutes
    python benchmarks/learning.py --loss-on-context                   every token of an example learnt, not completions
    python benchmarks/learning.py --quick                             under 50 seconds, shows only that it runs

Each row trains one epoch on as many samples as the budget holds, cut to that row's `max_length`. All rows are judged on
the same held-out examples at 512 tokens. Seconds are those of training steps, without loading and judging. Data:
the sources of the package peft, `--source` for another folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

JUDGED_LENGTH = 512


def main() -> None:
    """Train and judge each row; print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--lengths", default="512,256,160", help="max_length of each row, by comma")
    parser.add_argument("--tokens", type=int, default=90_000, help="sample tokens to train on")
    parser.add_argument("--loss-on-context", action="store_true", help="learn the code in front of completions, too")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--source", type=Path, help="a folder of source code (default: the package peft)")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    lengths = [96] if arguments.quick else [int(length) for length in arguments.lengths.split(",")]
    tokens, held_out = (1_500, 4) if arguments.quick else (arguments.tokens, 48)
    place, options = arguments.source or _peft(), {"loss_on_context": arguments.loss_on_context}
    answer = measure(place, arguments.base, lengths, tokens=tokens, held_out=held_out, **options)
    if arguments.json:
        print(json.dumps(answer))
        return
    base = answer["base"]
    print(f"base: perplexity {base['perplexity']:.2f}, token accuracy {base['accuracy']:.1%}")
    print("| max_length | samples | tokens | seconds | perplexity | change | token accuracy |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for row in answer["rows"]:
        print(
            f"| {row['max_length']} | {row['samples']} | {row['tokens']} | {row['seconds']:.0f} | "
            f"{row['perplexity']:.2f} | {row['change']:+.1%} | {row['accuracy']:.1%} |"
        )


def measure(
    source: Path, base: str, lengths: list[int], *, tokens: int, held_out: int, **options: Any
) -> dict[str, Any]:
    """Figures of the base and of each row."""
    from neuralforge.data.gather import gather
    from neuralforge.evaluation.metrics import summarize
    from neuralforge.evaluation.opened import open_adapter
    from neuralforge.models.load import load_base_model
    from neuralforge.training.events import Event, StepDone
    from neuralforge.training.trainer import LoRATrainer

    dataset = gather(sources=[source], max_samples=2000, max_eval_samples=held_out, seed=0)
    rows = []
    before: dict[str, float] = {}
    for length in lengths:
        trainer = LoRATrainer(load_base_model(base, device="cpu"), max_length=length, **options)
        count = used = 0
        for example in trainer.tokenize(dataset.train):
            if used >= tokens:
                break
            count, used = count + 1, used + len(example.tokens)
        seconds: list[float] = []

        def watch(event: Event, seconds: list[float] = seconds) -> None:
            if isinstance(event, StepDone):
                seconds.append(event.seconds)

        trainer.train(dataset.train[:count], epochs=1, checkpoint_steps=0, observers=[watch])
        with tempfile.TemporaryDirectory() as place:
            path = trainer.save_adapter(Path(place) / "row.lora")
            opened = open_adapter(path, device="cpu", max_length=JUDGED_LENGTH)
        if not before:
            scores = summarize(opened.score(dataset.evaluation, adapter=False))
            before = {"perplexity": scores.perplexity, "accuracy": scores.accuracy}
        after = summarize(opened.score(dataset.evaluation, adapter=True))
        rows.append(
            {
                "max_length": length,
                "samples": count,
                "tokens": used,
                "seconds": sum(seconds),
                "perplexity": after.perplexity,
                "change": after.perplexity / before["perplexity"] - 1,
                "accuracy": after.accuracy,
            }
        )
        print(f"max_length {length}: {sum(seconds):.0f} s, perplexity {after.perplexity:.3f}", file=sys.stderr)
    return {"base": before, "rows": rows}


def _peft() -> Path:
    found = importlib.util.find_spec("peft")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("error: the package peft is not installed\n  hint: name a folder with --source")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    main()
