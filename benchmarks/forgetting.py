"""What is left of older code when newer code is learnt: three code bases in a row, and each way to keep them.

    python benchmarks/forgetting.py                              nf-tiny, three seeds: several minutes on two cores
    python benchmarks/forgetting.py --base smollm2-135m          the default base: hours on two cores
    python benchmarks/forgetting.py --plot docs/forgetting.png   the same, as a picture
    python benchmarks/forgetting.py --quick                      under 50 seconds, shows only that it runs

R[i][j] is what the held-out part of code base j scores after session i. AA, mean of R[last][j], is what one has in the
end; LA, mean of R[j][j], how well each was learnt when it was new; BWT, mean of R[last][j] − R[j][j] over all but the
last, what later sessions did to earlier ones (below 0 in accuracy, above 0 in loss: forgotten). Always read together:
who learns nothing forgets nothing. `forgotten` is BWT in loss, as a share of naive's; `newest` is R[last][last].

`naive` goes on training; `joint` has all code bases at once and is the bound. The buffer holds `--buffer` examples of
all earlier sessions together. `ewc+der++` is what `train --continue-from` does by itself; `progressive+der++` what it
does with `--progressive`: each session in a block of its own, all blocks merged into the rank that the others have;
`by language` the same, each code base judged with the blocks weighed for its language and not merged; `progressive` is
without replay.

The goals: at most a quarter of naive's forgetting, at most 2 % more loss than naive's on the newest code base.

Data: the sources of networkx (Python), the headers of torch's core (C++), the sources of sqlalchemy (Python, another
idiom); `--sources` for other folders.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralforge.data.dataset import Dataset
    from neuralforge.data.tokens import TokenizedExample
    from neuralforge.models.base import BaseModel
    from neuralforge.training.trainer import LoRATrainer

PLAINLY = ("naive", "ewc", "replay", "ewc+replay", "der++", "ewc+der++")
METHODS = (*PLAINLY, "progressive", "progressive+der++", "by language", "joint")
GOALS = {"forgetting_ratio_vs_naive": 0.25, "newest_ratio_vs_naive": 1.02}
"""At most so much, in loss."""
SOURCES = (("networkx", ""), ("torch", "include/c10"), ("sqlalchemy", ""))

Scores = tuple[float, float]
"""Held-out loss in nats a token, token accuracy."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all methods."""

    rank: int
    epochs: int
    max_length: int
    ewc_lambda: float
    beside: float
    buffer: int
    share: float
    der_alpha: float
    orthogonal_lambda: float


def main() -> None:
    """Run every method on every seed; print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG as well")
    parser.add_argument("--base", default="nf-tiny")
    parser.add_argument("--methods", default=",".join(METHODS), help="by comma; naive is needed for the ratios")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=240, help="examples of each code base")
    parser.add_argument("--judged", type=int, default=48, help="held-out examples of each code base")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--ewc-lambda", type=float, default=0.5)
    parser.add_argument("--beside", type=float, default=0.1, help="EWC's weight beside DER++")
    parser.add_argument("--buffer", type=int, default=120, help="examples of all earlier code bases together")
    parser.add_argument("--replay-ratio", type=float, default=0.2)
    parser.add_argument("--der-alpha", type=float, default=0.5)
    parser.add_argument("--orthogonal-lambda", type=float, default=0.0, help="O-LoRA's, of the progressive ones")
    parser.add_argument("--sources", nargs="+", type=Path, metavar="FOLDER", help="code bases, oldest first")
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    methods = given.methods.split(",")
    if strange := set(methods) - {*METHODS}:
        raise SystemExit(f"error: no such methods: {', '.join(sorted(strange))}\n  hint: {', '.join(METHODS)}")
    setting = Setting(
        rank=2 if given.quick else given.rank,
        epochs=1 if given.quick else given.epochs,
        max_length=48 if given.quick else given.max_length,
        ewc_lambda=given.ewc_lambda,
        beside=given.beside,
        buffer=given.buffer,
        share=given.replay_ratio,
        der_alpha=given.der_alpha,
        orthogonal_lambda=given.orthogonal_lambda,
    )
    answer = measure(
        given.sources or _sources(),
        given.base,
        methods,
        setting,
        seeds=1 if given.quick else given.seeds,
        samples=12 if given.quick else given.samples,
        judged=4 if given.quick else given.judged,
    )
    if given.plot:
        plot(answer, given.plot)
    if given.json:
        print(json.dumps(answer))
    else:
        print_table(answer)


def measure(
    sources: Sequence[Path],
    base: str,
    methods: Sequence[str],
    setting: Setting,
    *,
    seeds: int,
    samples: int,
    judged: int,
) -> dict[str, Any]:
    """Figures of each method: means over the seeds and their standard deviations."""
    from neuralforge.data.gather import gather
    from neuralforge.models.load import load_base_model

    data = [gather(sources=[s], max_samples=samples, max_eval_samples=judged, seed=0) for s in sources]
    loaded = load_base_model(base, device="cpu")
    runs: dict[str, list[list[list[Scores]]]] = {}
    seconds: dict[str, float] = {}
    for method in methods:
        began = time.process_time()
        for seed in range(seeds):
            matrix = _RUNS[method](loaded, data, setting, seed)
            runs.setdefault(method, []).append(matrix)
            last = "  ".join(f"{loss:.3f}" for loss, _ in matrix[-1])
            print(f"{method}, seed {seed}: held-out losses in the end {last}", file=sys.stderr)
        seconds[method] = (time.process_time() - began) / seeds
    rows: dict[str, Any] = {name: figures(matrices) | {"cpu_s": seconds[name]} for name, matrices in runs.items()}
    if naive := rows.get("naive"):
        for row in rows.values():
            _compare(row, naive, forgets=naive["bwt"] < 0)
            _compare(row["loss"], naive["loss"], forgets=naive["loss"]["bwt"] > 0)
            row["meets_goals"] = meets_goals(row["loss"])
    return {
        "base": base,
        "sources": [source.name for source in sources],
        "seeds": seeds,
        "samples": samples,
        "setting": vars(setting),
        "goals": GOALS,
        "methods": rows,
    }


def _compare(row: dict[str, Any], naive: dict[str, Any], *, forgets: bool) -> None:
    """Add the ratios; of forgetting there is none where naive training does not forget."""
    row["forgetting_ratio_vs_naive"] = row["bwt"] / naive["bwt"] if forgets and row["bwt"] is not None else None
    row["la_ratio_vs_naive"] = row["la"] / naive["la"] if row["la"] is not None else None
    row["newest_ratio_vs_naive"] = row["newest"] / naive["newest"]


def meets_goals(loss: dict[str, Any]) -> bool | None:
    """Whether a method's figures in loss meet both goals; None where there is nothing to compare."""
    found = [loss.get(name) for name in GOALS]
    return None if None in found else all(value <= most for value, most in zip(found, GOALS.values(), strict=True))


def figures(matrices: Sequence[Sequence[Sequence[Scores]]]) -> dict[str, Any]:
    """AA, LA, BWT and the newest's score in token accuracy, and under `loss` in nats; each with its deviation.

    Of `joint`, which has no sessions, only AA and the newest mean anything.
    """
    return {**_figures(matrices, 1), "loss": _figures(matrices, 0), "matrix": matrices}


def _figures(matrices: Sequence[Sequence[Sequence[Scores]]], kind: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"aa": [], "la": [], "bwt": [], "newest": []}
    for scores in matrices:
        final = [score[kind] for score in scores[-1]]
        found["aa"].append(statistics.fmean(final))
        found["newest"].append(final[-1])
        if len(scores) == len(final):
            fresh = [scores[j][j][kind] for j in range(len(final))]
            found["la"].append(statistics.fmean(fresh))
            found["bwt"].append(statistics.fmean(last - new for last, new in zip(final[:-1], fresh[:-1], strict=True)))
    row: dict[str, Any] = {}
    for name, values in found.items():
        row[name] = statistics.fmean(values) if values else None
        row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def _sequential(*, ewc: str = "", replay: bool = False, dark: bool = False) -> Callable[..., list[list[Scores]]]:
    def run(base: BaseModel, data: Sequence[Dataset], setting: Setting, seed: int) -> list[list[Scores]]:
        from neuralforge.continual import Dark, EWCRegularizer, Mix, ReplayBuffer, replayed
        from neuralforge.continual.dark import answers
        from neuralforge.models.lora import detach_lora
        from neuralforge.training.source import EpochSource, SourceMaker

        trainer = _trainer(base, setting, seed, rank=setting.rank)
        keeper = EWCRegularizer(getattr(setting, ewc) if ewc else 0.0)
        buffer = ReplayBuffer(setting.buffer, balance="session", seed=seed)
        alpha = Dark(alpha=setting.der_alpha) if dark else None
        matrix = []
        for number, part in enumerate(data):
            source: SourceMaker = EpochSource
            if replay and number:
                source = Mix(replayed=replayed(buffer.items, trainer, dark=alpha), share=setting.share)
            penalties = keeper.penalties(trainer) if ewc else ()
            trainer.train(part.train, epochs=setting.epochs, penalties=penalties, source=source)
            if ewc:
                keeper.consolidate(trainer, part.train, seed=seed)
            if replay:
                given = answers(trainer, part.train) if dark else None
                buffer.add(part.train, session=str(number), answers=given)
            matrix.append(_judged(trainer, data))
        detach_lora(trainer.peft)
        return matrix

    return run


def _progressive(*, replay: bool, languages: bool = False) -> Callable[..., list[list[Scores]]]:
    def run(base: BaseModel, data: Sequence[Dataset], setting: Setting, seed: int) -> list[list[Scores]]:
        from neuralforge.continual import Dark, Mix, ReplayBuffer, replayed
        from neuralforge.continual.blocks import Blocks, learn_block
        from neuralforge.continual.dark import answers
        from neuralforge.models.lora import detach_lora
        from neuralforge.training.source import EpochSource, SourceMaker

        trainer = _trainer(base, setting, seed, rank=setting.rank)
        trainer.train(data[0].train, epochs=setting.epochs)
        blocks = Blocks.of(trainer.spec, trainer.state())
        buffer = ReplayBuffer(setting.buffer, balance="session", seed=seed)
        matrix = [_judged(trainer, data)]
        for number, part in enumerate(data[1:], start=1):
            source: SourceMaker = EpochSource
            earlier: Sequence[TokenizedExample] = ()
            if replay:
                before = data[number - 1].train
                buffer.add(before, session=str(number - 1), answers=answers(trainer, before))
                old = replayed(buffer.items, trainer, dark=Dark(alpha=setting.der_alpha))
                source, earlier = Mix(replayed=old, share=setting.share), old.examples
            trainer, _, merged = learn_block(
                trainer,
                blocks,
                trainer.tokenize(part.train),
                (),
                earlier=earlier,
                orthogonal_lambda=setting.orthogonal_lambda,
                seed=seed + number,
                source=source,
                epochs=setting.epochs,
            )
            if merged is not None:
                print(f"  {len(merged.blocks.ranks)} blocks, the merge misses {merged.error:.1%}", file=sys.stderr)
                blocks = merged.blocks
            if languages and merged is not None:
                own, state = trainer.spec, trainer.state()
                trainer = trainer.resized(blocks.spec, blocks.state)
                row = []
                for one in data:
                    language = one.train[0].language
                    trainer.load_state(merged.of_language(language)[1] if language in merged.gates else blocks.state)
                    row += _judged(trainer, [one])
                matrix.append(row)
                trainer = trainer.resized(own, state)
            else:
                matrix.append(_judged(trainer, data))
        detach_lora(trainer.peft)
        return matrix

    return run


def _joint(base: BaseModel, data: Sequence[Dataset], setting: Setting, seed: int) -> list[list[Scores]]:
    from neuralforge.models.lora import detach_lora

    trainer = _trainer(base, setting, seed, rank=setting.rank)
    trainer.train([example for part in data for example in part.train], epochs=setting.epochs)
    row = _judged(trainer, data)
    detach_lora(trainer.peft)
    return [row]


_RUNS: dict[str, Callable[..., list[list[Scores]]]] = {
    "naive": _sequential(),
    "ewc": _sequential(ewc="ewc_lambda"),
    "replay": _sequential(replay=True),
    "ewc+replay": _sequential(ewc="ewc_lambda", replay=True),
    "der++": _sequential(replay=True, dark=True),
    "ewc+der++": _sequential(ewc="beside", replay=True, dark=True),
    "progressive": _progressive(replay=False),
    "progressive+der++": _progressive(replay=True),
    "by language": _progressive(replay=True, languages=True),
    "joint": _joint,
}


def _trainer(base: BaseModel, setting: Setting, seed: int, **options: Any) -> LoRATrainer:
    from neuralforge.training.trainer import LoRATrainer

    return LoRATrainer(base, max_length=setting.max_length, seed=seed, **options)


def _judged(trainer: LoRATrainer, data: Sequence[Dataset]) -> list[Scores]:
    scores = [trainer.evaluate(part.evaluation) for part in data]
    return [(score.loss, score.accuracy) for score in scores]


def print_table(answer: dict[str, Any]) -> None:
    """Markdown, loss and accuracy of each method side by side."""
    print(
        f"{answer['base']}, {' → '.join(answer['sources'])}, {answer['samples']} examples each, {answer['seeds']} seeds"
    )
    print("| method | AA loss | LA loss | BWT loss | forgotten | newest | AA | LA | BWT | goals | CPU |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|")
    for name, row in answer["methods"].items():
        loss = row["loss"]
        ratio = loss.get("forgetting_ratio_vs_naive")
        print(
            f"| {name} | {_cell(loss, 'aa')} | {_cell(loss, 'la')} | {_cell(loss, 'bwt', '+.3f')} | "
            f"{'' if ratio is None else f'{ratio:.0%}'} | {_cell(loss, 'newest')} | "
            f"{_cell(row, 'aa', '.1%')} | {_cell(row, 'la', '.1%')} | {_cell(row, 'bwt', '+.1%')} | "
            f"{ ({None: '', True: 'met', False: 'missed'}[row.get('meets_goals')]) } | {row['cpu_s']:.0f} s |"
        )


def _cell(row: dict[str, Any], name: str, form: str = ".3f") -> str:
    mean, deviation = row[name], row[f"{name}_sd"]
    if mean is None:
        return ""
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form.lstrip('+')}}")


def plot(answer: dict[str, Any], file: Path) -> None:
    """Left: the oldest code base's held-out loss after each session. Right: forgotten against learnt, mean and sd."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    sessions = range(1, len(answer["sources"]) + 1)
    for name, row in answer["methods"].items():
        matrices, loss = row["matrix"], row["loss"]
        if loss["bwt"] is None:
            bound = statistics.fmean(matrix[-1][0][0] for matrix in matrices)
            left.axhline(bound, color="grey", linestyle=":", label=name)
            continue
        line = [statistics.fmean(matrix[i][0][0] for matrix in matrices) for i in range(len(matrices[0]))]
        (drawn,) = left.plot(sessions, line, marker="o", label=name)
        right.errorbar(
            loss["la"], loss["bwt"], xerr=loss["la_sd"], yerr=loss["bwt_sd"], marker="o", color=drawn.get_color()
        )
        right.annotate(name, (loss["la"], loss["bwt"]), xytext=(5, 5), textcoords="offset points")
    left.set(xlabel="after session", ylabel="loss, nats a token", title=f"held-out code of {answer['sources'][0]}")
    left.set_xticks(list(sessions))
    left.legend()
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(xlabel="LA: loss when new (left is better)", ylabel="BWT: loss since (low is better)", title="all")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _sources() -> list[Path]:
    folders = []
    for name, inside in SOURCES:
        spec = importlib.util.find_spec(name)
        places = spec.submodule_search_locations if spec else None
        folder = Path(places[0]) / inside if places else None
        if folder is None or not folder.is_dir():
            raise SystemExit(f"error: the sources of {name} are missing\n  hint: name folders with --sources")
        folders.append(folder)
    return folders


if __name__ == "__main__":
    main()
