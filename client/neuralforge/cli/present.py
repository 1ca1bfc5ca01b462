"""A dataset's report as a table."""

from __future__ import annotations

from collections import Counter

from rich.console import Group
from rich.table import Table
from rich.text import Text

from neuralforge.data.dataset import DatasetReport

MOST_ROWS = 6


def dataset_table(report: DatasetReport) -> Group:
    """What came in, what was left out and why, what is left; then a line for each thing to know."""
    table = Table(title="dataset", title_justify="left")
    for name in ("", "count", "details"):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    if report.files_found is not None:
        table.add_row("files found", f"{report.files_found:,}", "")
        skipped = sum(report.files_skipped.values())
        table.add_row("files left out", f"{skipped:,}", listed(report.files_skipped))
        table.add_row("files used", f"{report.files_used:,}", "")
    table.add_row("examples found", f"{report.examples_found:,}", "")
    table.add_row("examples left out", f"{sum(report.dropped.values()):,}", listed(report.dropped))
    if report.redacted:
        table.add_row("secrets redacted", f"{sum(report.redacted.values()):,}", listed(report.redacted))
    table.add_row("to learn from", f"{report.train:,}", listed(report.languages))
    table.add_row("held out", f"{report.evaluation:,}", "")
    return Group(table, *(Text(notice) for notice in report.notices))


def listed(counts: Counter[str]) -> Text:
    """The most frequent names with their counts, and how many others there are."""
    common = counts.most_common(MOST_ROWS)
    rest = sum(counts.values()) - sum(count for _, count in common)
    parts = [f"{name} {count:,}" for name, count in common if count]
    return Text(", ".join(parts + ([f"others {rest:,}"] if rest else [])))
