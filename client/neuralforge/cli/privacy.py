"""`privacy`: what was spent of each privacy budget on this machine, and what is left of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.cli.numbers import positive

if TYPE_CHECKING:
    from neuralforge.privacy.status import ScopeStatus
    from neuralforge_common.privacy import PrivacyStatement

NAME = "privacy"
SUMMARY = "Show what federations and adapters may have told of the code they learnt from: ε spent, and ε left."
EXAMPLES = """\
  neuralforge privacy status
  neuralforge privacy status ./my-adapter.lora --steps 600
  neuralforge privacy status --json > spent.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", metavar="status", required=True, parser_class=type(parser))
    status = actions.add_parser(
        "status",
        help="what is spent, what is left, what the next steps would cost",
        description=SUMMARY,
        epilog=parser.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    status.add_argument(
        "scope", nargs="?", metavar="SCOPE", help="an adapter (NAME.lora), or a part of a federation's name; else all"
    )
    status.add_argument("--home", type=Path, metavar="DIR", help="$NEURALFORGE_HOME, else ~/.neuralforge")
    status.add_argument("--steps", type=positive, metavar="N", help="look N steps ahead; else as many as charged last")
    status.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read the ledgers and tell."""
    from neuralforge.federation.home import client_home
    from neuralforge.privacy.scope import privacy_folder
    from neuralforge.privacy.status import read_ledgers, status_of, totals
    from neuralforge_common.errors import PrivacyError

    home = args.home or client_home()
    ledgers, faults = read_ledgers(home, args.scope)
    if args.scope is not None and not ledgers and not faults:
        raise PrivacyError(
            f"no privacy ledger of {args.scope} in {privacy_folder(home)}", hint="neuralforge privacy status"
        )
    statuses = [status_of(ledger, steps=args.steps) for ledger in ledgers]
    if args.json:
        _print_json(home, statuses, totals(ledgers))
    elif not ledgers and not faults:
        print(f"no privacy ledger in {privacy_folder(home)}: nothing was learnt privately on this machine")
    else:
        _print_lines(statuses, totals(ledgers) if len(ledgers) > 1 else [])
    if faults:
        raise PrivacyError("\n".join(fault.message for fault in faults), hint=faults[0].hint)
    return 0


def _print_lines(statuses: Sequence[ScopeStatus], totals: Sequence[PrivacyStatement]) -> None:
    for status in statuses:
        print(status.ledger.scope)
        for name, text in _lines(status):
            print(f"  {name:<12} {text}")
    for total in totals:
        print(f"if all of these hold the same code: {total}")


def _lines(status: ScopeStatus) -> list[tuple[str, str]]:
    from dataclasses import replace

    ledger, spent, outlook = status.ledger, status.spent, status.outlook
    lines = []
    if ledger.torn:
        lines.append(("notice", f"the ledger ends with {ledger.torn:,} bytes of an entry that was never finished"))
    if spent is None or outlook is None:
        return [*lines, ("spent", "nothing was charged yet")]

    def figure(epsilon: float) -> str:
        return str(replace(spent.statement(), epsilon=epsilon))

    block, target = outlook.block, outlook.budget.target_epsilon
    terms = f"with q = {block.rates[block.busiest]:g}, σ = {block.noise_multiplier:g}"
    lines += [("spent", figure(spent.epsilon)), ("target", figure(target))]
    if spent.at_most > spent.epsilon:
        lines.append(("told", f"{figure(spent.at_most)}: a unit that was in every charge, which is what others hear"))
    lines.append(("left", f"{figure(max(0.0, target - spent.epsilon))}; {outlook.steps_left:,} more steps {terms}"))
    lines.append((f"next {block.steps:,}", f"{figure(outlook.after.epsilon)}, once so many steps {terms} are taken"))
    for each in spent.cohorts:
        lines.append((f"cohort {each.cohort}", f"{figure(each.epsilon)}; {each.steps:,} steps since {each.since[:10]}"))
    return lines


def _print_json(home: Path, statuses: Sequence[ScopeStatus], totals: Sequence[PrivacyStatement]) -> None:
    import json

    document = {
        "home": str(home),
        "scopes": [_document(status) for status in statuses],
        "if_all_hold_the_same_code": [
            {"unit": total.unit, "epsilon": total.epsilon, "delta": total.delta} for total in totals
        ],
    }
    print(json.dumps(document, ensure_ascii=False))


def _document(status: ScopeStatus) -> dict[str, Any]:
    from dataclasses import asdict

    facts: dict[str, Any] = {
        "scope": status.ledger.scope,
        "folder": str(status.ledger.folder),
        "unit": status.ledger.unit,
        "unfinished_bytes": status.ledger.torn,
    }
    if status.spent is None or status.outlook is None:
        return facts | {"epsilon": 0.0, "cohorts": []}
    outlook = status.outlook
    return facts | {
        "epsilon": status.spent.epsilon,
        "at_most": status.spent.at_most,
        "delta": status.spent.delta,
        "target_epsilon": outlook.budget.target_epsilon,
        "steps": status.spent.steps,
        "steps_left": outlook.steps_left,
        "next": {
            "steps": outlook.block.steps,
            "sample_rate": outlook.block.rates[outlook.block.busiest],
            "noise_multiplier": outlook.block.noise_multiplier,
            "epsilon": outlook.after.epsilon,
        },
        "cohorts": [asdict(each) for each in status.spent.cohorts],
    }
