"""`adapters show`: everything worth knowing of one adapter, its numbers included."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAME = "show"
SUMMARY = "Show what an adapter is, what it was made of, and what its weights look like."
EXAMPLES = """\
  neuralforge adapters show ./my-adapter.lora
  neuralforge adapters show ./my-adapter.lora --modules
  neuralforge adapters show ./my-adapter.lora --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a .lora folder, or a folder that PEFT has saved")
    parser.add_argument("--modules", action="store_true", help="a line for every module as well")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, with all modules")


def run(args: argparse.Namespace) -> int:
    """Read, validate, measure and show."""
    from neuralforge.inspection.facts import facts_of
    from neuralforge_common.folder import read_adapter_folder

    facts = facts_of(read_adapter_folder(args.adapter))
    if args.json:
        import json

        print(json.dumps(facts, ensure_ascii=False))
        return 0
    _print(facts, modules=args.modules)
    return 0


def _print(facts: dict[str, Any], *, modules: bool) -> None:
    from neuralforge.cli.console import plain_console

    console = plain_console()
    console.print(f"{facts['name']} {facts['version']}")
    for name, text in _lines(facts):
        console.print(f"  {name:<12} {text}")
    delta = facts["delta"]
    console.print(_table("ΔW by module name", delta["kinds"]))
    if delta["layers"]:
        console.print(_table("ΔW by layer", delta["layers"]))
    if modules:
        console.print(_module_table(delta["modules"]))


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    base, lora, evaluation = facts["base"], facts["lora"], facts["evaluation"]
    if facts["description"].strip():
        yield "says", " ".join(facts["description"].split())
    yield "base", (base["name"] or "not said") + (f" at {base['revision']}" if base["revision"] else "")
    yield "fingerprint", base["fingerprint"] or "not recorded: whether a base is the right one cannot be checked"
    where = "" if lora["layers"] is None else f", layers {', '.join(map(str, lora['layers']))}"
    yield "LoRA", f"rank {lora['rank']}, alpha {lora['alpha']:g}, on {', '.join(lora['target_modules'])}{where}"
    yield "size", f"{facts['parameters']:,} parameters, {facts['size_mb']} MB"
    for key in ("author", "license", "created"):
        if facts[key]:
            yield key, facts[key]
    if facts["training_samples"] is not None:
        yield "learnt from", f"{facts['training_samples']:,} samples"
    if facts["federation_rounds"] is not None:
        yield "federation", f"{facts['federation_rounds']:,} rounds"
    if parent := facts["parent"]:
        yield "goes on from", f"{parent['name']} {parent['version']} ({parent['digest'][:12]}…)"
    if composition := facts["composition"]:
        yield (
            "made of",
            f"{len(composition['parents'])} adapters, {composition['method']}"
            + (f", weights learnt on {composition['learnt_on']:,} samples" if composition["learnt_on"] else ""),
        )
        for parent in composition["parents"]:
            yield "", f"{parent['weight']:g} × {parent['name']} {parent['version']} ({parent['digest'][:12]}…)"
    yield "privacy", facts["privacy"]["statement"] if facts["privacy"] else "no figure: nothing bounds what it may tell"
    if facts["privacy"] and facts["privacy"]["note"]:
        yield "", facts["privacy"]["note"]
    yield "evaluation", "none" if evaluation is None else _evaluation(evaluation)
    yield "signed", "yes; whether it holds: neuralforge adapters verify" if facts["signed"] else "no"
    for notice in facts["notices"]:
        yield "notice", notice


def _evaluation(evaluation: dict[str, Any]) -> str:
    def figures(scores: dict[str, Any]) -> str:
        told = []
        if scores["accuracy"] is not None:
            told.append(f"accuracy {scores['accuracy']:.1%}")
        if scores["perplexity"] is not None:
            told.append(f"perplexity {scores['perplexity']:.2f}")
        return ", ".join(told) or "not measured"

    samples = f" on {evaluation['samples']:,} samples" if evaluation["samples"] else ""
    return f"{figures(evaluation['adapter'])}; base: {figures(evaluation['base'])}{samples}"


def _table(title: str, groups: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for name in ("", "modules", "norm", "share", "largest σ", "effective rank", "components for 90%"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for group in groups:
        table.add_row(
            Text(group["name"]),
            f"{group['modules']:,}",
            f"{group['norm']:.4g}",
            f"{group['share']:.1%}",
            f"{group['largest']:.4g}",
            f"{group['effective_rank']:.2f}",
            f"{group['components']:.1f}",
        )
    return table


def _module_table(modules: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="modules", title_justify="left")
    for name in ("", "shape", "norm", "rank", "effective rank", "singular values"):
        table.add_column(name, justify="left" if name in ("", "singular values") else "right", overflow="fold")
    for module in modules:
        table.add_row(
            Text(module["name"]),
            f"{module['d_out']} × {module['d_in']}",
            f"{module['norm']:.4g}",
            str(module["rank"]),
            f"{module['effective_rank']:.2f}",
            " ".join(f"{value:.3g}" for value in module["singular_values"][:8])
            + (" …" if len(module["singular_values"]) > 8 else ""),
        )
    return table
