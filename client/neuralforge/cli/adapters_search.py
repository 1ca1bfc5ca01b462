"""`adapters search`: what a registry has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuralforge.cli.numbers import positive
from neuralforge.cli.registry_choice import add_registry, chosen_registry

if TYPE_CHECKING:
    from neuralforge.registry.listing import Listing

NAME = "search"
SUMMARY = "Search the registry: what is public, and what you may see of your teams."
EXAMPLES = """\
  neuralforge adapters search spring
  neuralforge adapters search "spring rest" --language java --tag microservices
  neuralforge adapters search --team my-company --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "text", nargs="?", default="", metavar="TEXT", help="words that all stand in its names, description or tags"
    )
    parser.add_argument("--language", default="", metavar="NAME", help="for this programming language")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="with this tag; may be repeated")
    parser.add_argument("--base", default="", metavar="NAME", help="for this base")
    parser.add_argument("--team", default="", metavar="TEAM", help="by this team")
    parser.add_argument("--limit", type=positive, default=100, metavar="N", help="at most so many (100)")
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output")
    add_registry(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and tell."""
    from neuralforge.registry.search import search

    with chosen_registry(args) as connection:
        found = search(
            connection,
            args.text,
            tags=[tag.lower() for tag in args.tag],
            language=args.language.lower(),
            base_model=args.base,
            team=args.team,
            most=args.limit,
        )
    if args.json:
        import json

        print(json.dumps([each.to_facts() for each in found], ensure_ascii=False))
    elif not found:
        print("nothing found, or nothing that you may see")
    else:
        _print_table(found)
        print("what stands here is what the registry says; adapters pull verifies who signed it")
    return 0


def _print_table(found: Sequence[Listing]) -> None:
    from rich.table import Table
    from rich.text import Text

    from neuralforge.cli.console import plain_console

    table = Table()
    for name in ("adapter", "base", "tags", "MB", "pulls", "seen by", "description"):
        table.add_column(name, justify="right" if name in ("MB", "pulls") else "left", overflow="fold")
    for each in found:
        description = each.description.strip().partition("\n")[0][:120]
        cells = (
            str(each.release),
            each.base_model,
            ", ".join(dict.fromkeys((*each.tags, *each.languages))),
            f"{each.size / 1e6:.1f}",
            f"{each.downloads:,}",
            each.visibility,
            f"{description} (does not beat its base)".strip() if each.allow_worse else description,
        )
        table.add_row(*map(Text, cells))
    plain_console().print(table)
