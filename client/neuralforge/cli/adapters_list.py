"""`adapters list`: the adapters below folders, a line each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "list"
SUMMARY = "List the adapters in folders: what they say of themselves, their weights unopened."
EXAMPLES = """\
  neuralforge adapters list
  neuralforge adapters list ~/adapters ./team --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="where to look (the current folder)")
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output")


def run(args: argparse.Namespace) -> int:
    """Find and list."""
    from neuralforge.inspection.facts import facts_in_a_list
    from neuralforge.inspection.found import find_adapters

    roots = args.folders or [Path()]
    facts = [facts_in_a_list(found) for found in find_adapters(roots)]
    if args.json:
        import json

        print(json.dumps(facts, ensure_ascii=False))
    elif not facts:
        print(f"no adapters in {', '.join(map(str, roots))}")
    else:
        _print_table(facts)
    return 0


def _print_table(listed: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from neuralforge.cli.console import plain_console

    table = Table()
    for name in ("adapter", "version", "base", "rank", "MB", "accuracy", "privacy", "signed", "where"):
        table.add_column(name, justify="right" if name in ("rank", "MB", "accuracy") else "left", overflow="fold")
    for facts in listed:
        if "fault" in facts:
            table.add_row(*[""] * 8, Text(f"{facts['path']}: {facts['fault']}"))
            continue
        privacy = facts["privacy"]
        cells = (
            facts["name"],
            facts["version"] or "",
            facts["base"] or "not said",
            str(facts["rank"]),
            f"{facts['size_mb']:.1f}",
            "" if facts["accuracy"] is None else f"{facts['accuracy']:.1%}",
            "" if privacy is None else f"ε {privacy['epsilon']:.3g}, {privacy['unit']}",
            "yes" if facts["signed"] else "no",
            facts["path"],
        )
        table.add_row(*(Text(cell) for cell in cells))
    plain_console().print(table)
