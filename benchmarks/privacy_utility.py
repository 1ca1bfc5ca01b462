"""What privacy costs in what is learnt: held-out perplexity at ε = ∞, 8, 3 and 1, all of LoRA against B alone.

    python benchmarks/privacy_utility.py                              nf-tiny, three seeds: half an hour on two cores
    python benchmarks/privacy_utility.py --base smollm2-135m --seeds 1 --samples 1000      hours on two cores
    python benchmarks/privacy_utility.py --clients 8 --samples 200    8 clients of 200 examples, simulated: an hour
    python benchmarks/privacy_utility.py --quick                      under 50 seconds, shows only that it runs

`lora` trains A and B, `ffa-lora` B alone (Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning").
ε = ∞ is the trainer's default without privacy, over as many epochs. A private run is what `train --private` does: its
noise is computed for (ε, δ = 1e-5) at example level, its steps and sample rate are the options below. A seed decides
the untrained A and nothing else; the data are the same for all. Data: the sources of networkx, `--source` for another
folder. With `--clients` it is dealt out to so many, who train the adapter together in `ROUNDS` rounds by plain means,
each with a ledger of its own; there ∞ is as many steps without privacy. `learnt` is the share of ∞'s fall in loss, of
the same method, that is left.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.data.dataset import Dataset

METHODS = ("lora", "ffa-lora")
DELTA = 1e-5
ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all runs."""

    base: str
    rank: int
    max_length: int
    sample_rate: float
    epochs: int
    clip: float
    learning_rate: float | None
    clients: int = 0


def main() -> None:
    """Train and judge every run; print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--base", default="nf-tiny")
    parser.add_argument("--methods", default=",".join(METHODS), help="by comma")
    parser.add_argument("--epsilons", default="inf,8,3,1", help="by comma")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--judged", type=int, default=64, help="held-out examples")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--sample-rate", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, help="of private runs; default: as the command line has it")
    parser.add_argument("--clients", type=int, default=0, help="so many train together, 0: one alone")
    parser.add_argument("--source", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    methods, epsilons = given.methods.split(","), [float(epsilon) for epsilon in given.epsilons.split(",")]
    if strange := set(methods) - {*METHODS}:
        raise SystemExit(f"error: no such methods: {', '.join(sorted(strange))}\n  hint: {', '.join(METHODS)}")
    setting = Setting(
        base=given.base,
        rank=2 if given.quick else given.rank,
        max_length=32 if given.quick else given.max_length,
        sample_rate=0.25 if given.quick else given.sample_rate,
        epochs=1 if given.quick else given.epochs,
        clip=given.clip,
        learning_rate=given.learning_rate,
        clients=given.clients,
    )
    answer = measure(
        given.source or _source(quick=given.quick),
        setting,
        methods=methods,
        epsilons=[math.inf, 8.0] if given.quick else epsilons,
        seeds=1 if given.quick else given.seeds,
        samples=48 if given.quick else given.samples,
        judged=8 if given.quick else given.judged,
    )
    if given.json:
        print(json.dumps(answer))
    else:
        print_table(answer)


def measure(
    source: Path,
    setting: Setting,
    *,
    methods: list[str],
    epsilons: list[float],
    seeds: int,
    samples: int,
    judged: int,
) -> dict[str, Any]:
    """Figures of each method at each ε: means over the seeds and their standard deviations."""
    from neuralforge.data.gather import gather

    if setting.clients:
        name, train = "federated", partial(run_together, source, setting, samples=samples, judged=judged)
    else:
        data = gather(sources=[source], max_samples=samples, max_eval_samples=judged, seed=0)
        name, train = "local", partial(run, data, setting)
    rows = []
    for method in methods:
        free = None
        for epsilon in epsilons:
            runs = [train(method=method, epsilon=epsilon, seed=seed) for seed in range(seeds)]
            before, after = runs[0][0], [end for _, end, _ in runs]
            fall = math.log(before) - statistics.fmean(map(math.log, after))
            free = fall if math.isinf(epsilon) else free
            rows.append(
                {
                    "method": method,
                    "epsilon": None if math.isinf(epsilon) else epsilon,
                    "noise_multiplier": runs[0][2],
                    "before": before,
                    "perplexity": statistics.fmean(after),
                    "deviation": statistics.stdev(after) if len(after) > 1 else None,
                    "learnt": fall / free if free else None,
                }
            )
            print(f"{method}, ε = {epsilon:g}: {before:.2f} -> {statistics.fmean(after):.2f}", file=sys.stderr)
    return {
        "setting": vars(setting),
        "training": name,
        "source": source.name,
        "seeds": seeds,
        "samples": samples,
        "delta": DELTA,
        "rows": rows,
    }


def run(
    data: Dataset, setting: Setting, *, method: str, epsilon: float, seed: int
) -> tuple[float, float, float | None]:
    """Held-out perplexity before and after one run, and its noise multiplier."""
    from neuralforge.models.load import load_base_model
    from neuralforge.privacy.ledger import Account
    from neuralforge.privacy.planned import DIVISOR, steps_per_epoch
    from neuralforge.privacy.run import PrivateTraining
    from neuralforge.training.trainer import LoRATrainer
    from neuralforge_common.accounting import calibrate
    from neuralforge_common.privacy import PrivacyTerms

    base = load_base_model(setting.base, device="cpu")
    trainer = LoRATrainer(
        base,
        rank=setting.rank,
        max_length=setting.max_length,
        learning_rate=_rate(setting, base.parameters) if math.isfinite(epsilon) else None,
        seed=seed,
    )
    how: dict[str, Any] = {
        "epochs": setting.epochs,
        "checkpoint_steps": 0,
        "keeps": "last",
        "early_stopping_patience": 0,
        "trainable": trainer.flat.mask("B") if method == "ffa-lora" else None,
    }
    if math.isinf(epsilon):
        return *_scores(trainer.train(data.train, data.evaluation, eval_steps=10**9, **how)), None
    steps = setting.epochs * steps_per_epoch(setting.sample_rate)
    noise = calibrate(target_epsilon=epsilon, delta=DELTA, sample_rate=setting.sample_rate, steps=steps)
    terms = PrivacyTerms(
        noise_multiplier=noise,
        max_grad_norm=setting.clip,
        sample_rate=setting.sample_rate,
        divisor=DIVISOR,
        target_epsilon=epsilon,
        delta=DELTA,
    )
    with (
        tempfile.TemporaryDirectory() as home,
        Account.open(Path(home), "adapter of a benchmark", unit="sample", tell=print) as account,
    ):
        private = PrivateTraining(terms, account, data.train, steps=steps, what="benchmark")
        result = trainer.train(
            data.train,
            data.evaluation,
            batch_size=16,
            max_steps=steps,
            eval_steps=steps,
            gradient=private.gradient,
            max_grad_norm=0.0,
            **how,
        )
    return *_scores(result), noise


def run_together(
    source: Path, setting: Setting, *, samples: int, judged: int, method: str, epsilon: float, seed: int
) -> tuple[float, float, float | None]:
    """The same of a federation of clients with `samples` examples each, on what all of them hold out."""
    from neuralforge.models.load import load_base_model
    from neuralforge.privacy.planned import steps_per_epoch
    from neuralforge_server.events import Event, Scored
    from neuralforge_simulations.engine import run_locally
    from neuralforge_simulations.population import populate
    from neuralforge_simulations.scenario_config import resolve_scenario_config

    steps = setting.epochs * steps_per_epoch(setting.sample_rate)
    is_private = math.isfinite(epsilon)
    with tempfile.TemporaryDirectory() as folder:
        keys: dict[str, object] = {
            "federation.rounds": ROUNDS,
            "federation.min_clients": setting.clients,
            "federation.evaluate_every": ROUNDS,
            "federation.seed": seed,
            "adapter.base": setting.base,
            "adapter.rank": setting.rank,
            "training.steps": max(1, steps // ROUNDS),
            "training.batch_size": max(1, round(setting.sample_rate * samples)),
            "training.max_length": setting.max_length,
            "training.schedule": "linear",
            "aggregation.method": "frozen-a" if method == "ffa-lora" else "mean",
            "clients.count": setting.clients,
            "clients.partition": "dirichlet",
            "clients.dirichlet_alpha": 1e4,
            "clients.sources": [str(source)],
            "clients.max_samples_per_client": samples,
            "clients.max_eval_samples": max(1, judged // setting.clients),
            "run.directory": folder,
        }
        if is_private:
            keys |= {
                "privacy.enabled": True,
                "privacy.target_epsilon": epsilon,
                "privacy.delta": DELTA,
                "privacy.sample_rate": setting.sample_rate,
                "privacy.max_grad_norm": setting.clip,
                "privacy.spare_rounds": 0,
                "training.learning_rate": _rate(setting, load_base_model(setting.base, device="cpu").parameters),
            }
        config = resolve_scenario_config(None, keys, {}).config
        scored: list[float] = []

        def watch(event: Event) -> None:
            if isinstance(event, Scored):
                tokens = sum(score.tokens for score in event.scores)
                scored.append(math.exp(sum(score.loss * score.tokens for score in event.scores) / tokens))

        run_locally(config, populate(config), observers=(watch,))
    return scored[0], scored[-1], None


def print_table(answer: dict[str, Any]) -> None:
    """The rows, in Markdown."""
    print("| method | ε | noise multiplier | perplexity | ± | learnt |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in answer["rows"]:
        noise = "" if row["noise_multiplier"] is None else f"{row['noise_multiplier']:.3g}"
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.2f}"
        learnt = "" if row["learnt"] is None else f"{row['learnt']:.0%}"
        print(
            f"| {row['method']} | {row['epsilon'] or '∞'} | {noise} | {row['before']:.2f} → {row['perplexity']:.2f} | "
            f"{deviation} | {learnt} |"
        )


def _rate(setting: Setting, parameters: int) -> float:
    from neuralforge.privacy.planned import LEARNING_RATE_FACTOR
    from neuralforge.training.schedule import default_learning_rate

    return setting.learning_rate or LEARNING_RATE_FACTOR * default_learning_rate(parameters)


def _scores(result: Any) -> tuple[float, float]:
    return result.before.perplexity, result.after.perplexity


def _source(*, quick: bool) -> Path:
    name = "tomllib" if quick else "networkx"
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"error: the package {name} is not installed\n  hint: name a folder with --source")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    main()
