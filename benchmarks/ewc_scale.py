"""What `ewc_lambda` is worth: one code base is learnt, then another under EWC, and both are judged.

    python benchmarks/ewc_scale.py                                 several minutes on two cores
    python benchmarks/ewc_scale.py --ranks 2,8,32 --pulls factors  the same scale at three ranks
    python benchmarks/ewc_scale.py --quick                         under a minute, shows only that it runs

`pull`: "factors" and "product" are EWC's two spaces; "gradient" is the factors' penalty through Adam's gradient, as EWC
is mostly written. `old` and `new` are held-out losses in nats a token of the first and the second code base in the end;
`forgotten` is what `old` rose by in the second session, as a share of what it rises by without EWC, left out where that
is under 0.05 nats; `moved` is the penalty at a weight of 1, `largest` the largest change of a weight. Data: the sources
of networkx (Python), then the headers of torch's core (C++), `--sources` for other folders.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from neuralforge.continual.ewc import FactorPenalty
    from neuralforge.data.dataset import Dataset

LITTLE = 0.05
WEIGHTS = (0.05, 0.1, 0.5, 1.0, 5.0, 50.0)


def main() -> None:
    """Sweep; print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--base", default="nf-tiny")
    parser.add_argument("--ranks", default="8", help="by comma")
    parser.add_argument("--pulls", default="factors,product,gradient", help="by comma")
    parser.add_argument("--weights", default=",".join(map(str, WEIGHTS)), help="values of ewc_lambda, by comma")
    parser.add_argument("--samples", type=int, default=200, help="examples of each code base")
    parser.add_argument("--first", type=int, help="examples of the first one, where that is another number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", nargs=2, type=Path, metavar=("OLD", "NEW"))
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    quick = arguments.quick
    rows = sweep(
        arguments.sources or _sources(),
        arguments.base,
        ranks=[4] if quick else [int(rank) for rank in arguments.ranks.split(",")],
        pulls=arguments.pulls.split(","),
        weights=[0.5, 50.0] if quick else [float(weight) for weight in arguments.weights.split(",")],
        counts=(16, 16) if quick else (arguments.first or arguments.samples, arguments.samples),
        judged=4 if quick else 32,
        seed=arguments.seed,
    )
    if arguments.json:
        print(json.dumps({"base": arguments.base, "rows": rows}))
        return
    print("| rank | pull | ewc_lambda | old | new | forgotten | moved | largest |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        share = "" if row["forgotten"] is None else f"{row['forgotten']:.0%}"
        print(
            f"| {row['rank']} | {row['pull']} | {row['weight']:g} | {row['old']:.3f} | {row['new']:.3f} | "
            f"{share} | {row['moved']:.3g} | {row['largest']:.2g} |"
        )


def sweep(
    sources: list[Path],
    base: str,
    *,
    ranks: list[int],
    pulls: list[str],
    weights: list[float],
    counts: tuple[int, int],
    judged: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One row for each rank, pull and weight, and one for no pull."""
    from neuralforge.data.gather import gather

    data = [gather(sources=[source], max_samples=400, max_eval_samples=judged, seed=0) for source in sources]
    rows = []
    for rank in ranks:
        rows += _sweep_of_rank(data, base, rank, pulls=pulls, weights=weights, counts=counts, seed=seed)
    return rows


def _sweep_of_rank(
    data: list[Dataset],
    base: str,
    rank: int,
    *,
    pulls: list[str],
    weights: list[float],
    counts: tuple[int, int],
    seed: int,
) -> list[dict[str, Any]]:
    from neuralforge.continual.ewc import EWCRegularizer
    from neuralforge.models.load import load_base_model
    from neuralforge.training.trainer import LoRATrainer

    trainer = LoRATrainer(load_base_model(base, device="cpu"), rank=rank, max_length=96, seed=seed)
    train = [part.train[:count] for part, count in zip(data, counts, strict=True)]
    trainer.train(train[0], epochs=1)
    anchor = trainer.flat.vector.detach().clone()
    first = trainer.evaluate(data[0].evaluation).loss
    ewc = EWCRegularizer()
    ewc.consolidate(trainer, train[0], limit=100)
    rows: list[dict[str, Any]] = []
    for pull, weight in [("none", 0.0), *((pull, weight) for pull in pulls for weight in weights)]:
        trainer.flat.load(anchor)
        ewc.ewc_lambda, ewc.space = weight, "product" if pull == "product" else "factors"
        terms: tuple[Any, ...] = ewc.penalties(trainer)
        if pull == "gradient":
            terms = tuple(ThroughGradient(term) for term in terms)
        trainer.train(train[1], epochs=1, penalties=terms)
        old = trainer.evaluate(data[0].evaluation).loss
        plainly = (rows[0]["old"] if rows else old) - first
        rows.append(
            {
                "rank": rank,
                "pull": pull,
                "weight": weight,
                "first": first,
                "old": old,
                "new": trainer.evaluate(data[1].evaluation).loss,
                "forgotten": (old - first) / plainly if plainly >= LITTLE else None,
                "moved": ewc.penalty(trainer),
                "largest": float((trainer.flat.vector.detach() - anchor).abs().max()),
            }
        )
        print(f"rank {rank}, {pull} {weight:g}: old {old:.3f}, new {rows[-1]['new']:.3f}", file=sys.stderr)
    return rows


@dataclass(frozen=True)
class ThroughGradient:
    """EWC's penalty as a part of the loss like any other, for comparison."""

    term: FactorPenalty

    def add(self, vector: torch.Tensor, gradient: torch.Tensor) -> float:
        """Add 2 · weight · F · (w − anchor)."""
        gradient.addcmul_(self.term.importance, vector.detach() - self.term.anchor, value=2 * self.term.weight)
        return self.term.add(vector, gradient)

    def digest(self) -> str:
        """Of the penalty."""
        return self.term.digest()


def _sources() -> list[Path]:
    found = [importlib.util.find_spec(name) for name in ("networkx", "torch")]
    folders = [Path(spec.submodule_search_locations[0]) for spec in found if spec and spec.submodule_search_locations]
    if len(folders) != 2 or not (folders[1] / "include" / "c10").is_dir():
        raise SystemExit("error: networkx or the headers of torch are missing\n  hint: name two folders with --sources")
    return [folders[0], folders[1] / "include" / "c10"]


if __name__ == "__main__":
    main()
