"""`audit-privacy`: what an attacker can show against the privacy that a configuration claims."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli.numbers import positive

if TYPE_CHECKING:
    from rich.table import Table

    from neuralforge.models.base import BaseModel
    from neuralforge.privacy.audit.report import Findings, Report
    from neuralforge_common.config.schema import TrainConfig

NAME = "audit-privacy"
SUMMARY = "Attack the private training of a configuration, and hold what comes of it against the ε that is claimed."
EXAMPLES = """\
  neuralforge audit-privacy --config training-config.yaml
  neuralforge audit-privacy --config training-config.yaml --quick --json > audit.json
  neuralforge audit-privacy --controls --canaries 0"""

DRAWS, CANARIES = 4000, 512
QUICK_DRAWS, QUICK_CANARIES, QUICK_STEPS, QUICK_EXAMPLES = 800, 64, 20, 64
CONFIDENCE = 0.95
FEWEST_DRAWS = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", metavar="FILE", help="a YAML file, as for `train --private`")
    parser.add_argument("--draws", type=_draws, metavar="N", help=f"steps of each white-box attack ({DRAWS})")
    parser.add_argument(
        "--canaries", type=_canaries, metavar="M", help=f"canaries of the one-run audit; 0 for none ({CANARIES})"
    )
    parser.add_argument(
        "--confidence", type=_confidence, default=CONFIDENCE, metavar="P", help=f"of all bounds together ({CONFIDENCE})"
    )
    parser.add_argument("--quick", action="store_true", help="fewer draws, canaries, examples and steps: less power")
    parser.add_argument(
        "--controls", action="store_true", help="audit steps broken on purpose, too: all must be flagged"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Audit and tell; 1 where something contradicts the claim."""
    import os
    import tempfile

    from neuralforge_common.config.load import load_train_config

    config = load_train_config(Path(args.config) if args.config else None, {}, os.environ)
    if args.quick:
        config = _quick(config)
    draws = args.draws or (QUICK_DRAWS if args.quick else DRAWS)
    canaries = args.canaries if args.canaries is not None else QUICK_CANARIES if args.quick else CANARIES
    with tempfile.TemporaryDirectory(prefix="neuralforge-audit-") as folder:
        report, controls = _audit(config, Path(folder), draws, canaries, args.confidence, controls=args.controls)
    missed = [name for name, findings in controls.items() if not findings.violations]
    if args.json:
        _print_json(report, controls, missed)
    else:
        _print_report(report, controls, missed)
    return 1 if missed else report.exit_code


def _audit(
    config: TrainConfig, folder: Path, draws: int, canaries: int, confidence: float, *, controls: bool
) -> tuple[Report, dict[str, Findings]]:
    from neuralforge.cli.private_session import freezes_a
    from neuralforge.data.configured import read_dataset
    from neuralforge.data.example import Example
    from neuralforge.privacy.audit.configured import run_of, step_of, thrown_away
    from neuralforge.privacy.audit.controls import CONTROLS
    from neuralforge.privacy.audit.report import Report
    from neuralforge.privacy.audit.white_box import audit_step

    data = config.dataset
    examples: list[Example] = []
    if canaries and (data.from_git or data.sources or data.train_file):
        examples = list(read_dataset(config).train)
    config = thrown_away(config, folder)
    freeze_a = freezes_a(config)
    base = _load(config)
    broken: dict[str, Findings] = {}
    with step_of(config, base, freeze_a=freeze_a) as (parts, claim, crowd):
        found = [audit_step(parts, claim, crowd=crowd, draws=draws, confidence=confidence)]
        for name, breaks in CONTROLS.items() if controls else ():
            broken[name] = audit_step(breaks(parts), claim, crowd=crowd, draws=draws, confidence=confidence)
    if canaries:
        found.append(
            run_of(config, base, examples, freeze_a=freeze_a, canaries=canaries, confidence=confidence),
        )
    return Report(parts=tuple(found), delta=claim.delta, confidence=confidence), broken


def _load(config: TrainConfig) -> BaseModel:
    import torch

    from neuralforge.models.load import load_base_model

    training = config.training
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "auto", "auto": "auto"}[training.requested_precision]
    base = load_base_model(
        config.model.base,
        revision=config.model.revision,
        dtype=dtype,
        device=training.device,
        trust_remote_code=config.model.trust_remote_code,
    )
    for notice in base.notices:
        print(notice, file=sys.stderr)
    return base


def _quick(config: TrainConfig) -> TrainConfig:
    training = config.training.model_copy(
        update={"max_steps": min(config.training.max_steps or QUICK_STEPS, QUICK_STEPS)}
    )
    samples = min(config.dataset.max_samples or QUICK_EXAMPLES, QUICK_EXAMPLES)
    return config.model_copy(
        update={"training": training, "dataset": config.dataset.model_copy(update={"max_samples": samples})}
    )


def _print_json(report: Report, controls: dict[str, Findings], missed: list[str]) -> None:
    import json

    document = report.to_json()
    if controls:
        document["controls"] = {
            name: {
                "flagged": name not in missed,
                "bounds": {bound.name: bound.lower for bound in findings.bounds},
                "violations": [violation.name for violation in findings.violations],
            }
            for name, findings in controls.items()
        }
    print(json.dumps(document, ensure_ascii=False))


def _print_report(report: Report, controls: dict[str, Findings], missed: list[str]) -> None:
    from neuralforge.cli.console import plain_console

    for part in report.parts:
        print(f"{part.title}: {', '.join(f'{name} {_shown(value)}' for name, value in part.audited.items())}")
        width = max(len(finding.name) for finding in part.lines)
        for finding in part.lines:
            print(f"  {finding.name:<{width}}  {finding}")
    if controls:
        plain_console().print(_controls_table(report.parts[0], controls))
        print("".join(f"({n}) {bound.name}\n" for n, bound in enumerate(report.parts[0].bounds, start=1)), end="")
        if missed:
            print(f"NOT FLAGGED: {', '.join(missed)}: so few draws do not show it\n  hint: --draws")
    surely = f"at {100 * report.confidence:g}% confidence, δ = {report.delta:g}"
    if report.violations:
        print(f"VIOLATION: {len(report.violations)} findings contradict the claim ({surely})")
    else:
        print(f"consistent: nothing that was found contradicts the claim ({surely}). That does not prove it")


def _shown(value: str | int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _controls_table(honest: Findings, controls: dict[str, Findings]) -> Table:
    """As Markdown reads it."""
    from rich import box
    from rich.table import Table

    table = Table(title="steps that are broken on purpose: lower bounds, ! above the claim", box=box.MARKDOWN)
    table.add_column("step")
    for number, bound in enumerate(honest.bounds, start=1):
        table.add_column(f"({number}) ≤ {bound.claimed:.2f}", justify="right", no_wrap=True)
    table.add_column("checks that failed", overflow="fold")
    for name, findings in {"as it is": honest, **controls}.items():
        failed = [check.name for check in findings.checks if not check.passed]
        cells = [f"{bound.lower:.2f}{'' if bound.passed else ' !'}" for bound in findings.bounds]
        table.add_row(name, *cells, ", ".join(failed))
    return table


def _draws(text: str) -> int:
    if positive(text) < FEWEST_DRAWS:
        raise argparse.ArgumentTypeError(f"wanted a whole number ≥ {FEWEST_DRAWS}, got {text!r}")
    return positive(text)


def _canaries(text: str) -> int:
    count = 0 if text == "0" else positive(text)
    if 0 < count < 4:
        raise argparse.ArgumentTypeError(f"wanted 0, or a whole number ≥ 4, got {text!r}")
    return count


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"wanted a number from 0.5, below 1, got {text!r}")
    return value
