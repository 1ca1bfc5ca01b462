"""Which rules of quality hold, and what became of one example: options of whatever makes a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuralforge.cli.numbers import at_least_one

if TYPE_CHECKING:
    from rich.console import Console

    from neuralforge.data.decision import Decision
    from neuralforge.data.quality import Quality

MOST_DECISIONS = 50


def configure_cleaning(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--list-rules", action=_ListRules, nargs=0, help="name the rules of quality, and stop")
    parser.add_argument("--without-rule", action="append", default=[], metavar="RULE", help="leave nothing out by it")
    parser.add_argument("--with-rule", action="append", default=[], metavar="RULE", help="a rule that is off otherwise")
    parser.add_argument(
        "--license-allow", default="", metavar="SPDX", help="only code under these, e.g. mit,apache-2.0 (or unknown)"
    )
    parser.add_argument("--require-license", action="store_true", help="leave out code whose license nobody knows")
    parser.add_argument(
        "--balance", type=at_least_one, metavar="K", help="cut each language to K times the median of all languages"
    )


def chosen_quality(args: argparse.Namespace) -> Quality:
    """The rules that the options leave on; raises DataError for a name that no rule has."""
    from neuralforge.data.quality import quality

    return quality(
        without=args.without_rule,
        extra=args.with_rule,
        licenses=args.license_allow.split(","),
        require_license=args.require_license,
    )


class Explanation:
    """Collects what became of one path or id, up to a bound."""

    def __init__(self, asked: str) -> None:
        self.asked = asked
        self.found: list[Decision] = []
        self.more = 0

    def __call__(self, decision: Decision) -> None:
        """Keep it where it is about what was asked for."""
        if self.asked not in (decision.id, decision.path):
            return
        if len(self.found) < MOST_DECISIONS:
            self.found.append(decision)
        else:
            self.more += 1

    def show(self, console: Console) -> None:
        """A line for each decision.

        Raises:
            DataError: there was none.
        """
        from neuralforge.data.source import printable
        from neuralforge_common.errors import DataError

        if not self.found:
            raise DataError(
                f"nothing is known of {printable(self.asked)}",
                hint="name an example's id, or a file's path in its source as it stands in a dataset; "
                "files of other names, in other languages or in vendored folders are not read at all",
            )
        for decision in self.found:
            what = f"{decision.id} of {decision.path}" if decision.id else decision.path
            what += f" in {decision.commit[:12]}" if decision.commit else ""
            twin = f" ({decision.twin})" if decision.twin else ""
            said = f"left out: {decision.reason}{twin}" if decision.reason else "kept" if decision.id else "read"
            console.print(printable(f"{what}: {said}"), soft_wrap=True)
        if self.more:
            console.print(f"and {self.more:,} more")


class _ListRules(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from rich.table import Table

        from neuralforge.cli.console import plain_console
        from neuralforge.data.quality import EXAMPLE_RULES, FILE_RULES

        table = Table(title="rules of quality", title_justify="left")
        for name in ("rule", "of", "leaves out what", ""):
            table.add_column(name, overflow="fold")
        for rule in FILE_RULES:
            table.add_row(rule.name, "file", rule.summary, "on" if rule.is_on else "off")
        for example_rule in EXAMPLE_RULES:
            table.add_row(example_rule.name, "example", example_rule.summary, "on" if example_rule.is_on else "off")
        plain_console().print(table)
        parser.exit()
