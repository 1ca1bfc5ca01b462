"""`monitor`: how far a training run is, from another terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

    from neuralforge.inspection.watched import WatchedRun

NAME = "monitor"
SUMMARY = "Show how far a training run is: steps, loss, held-out scores, speed and time left."
EXAMPLES = """\
  neuralforge monitor                                # the newest run below this folder
  neuralforge monitor ./my-adapter.lora
  neuralforge monitor ./adapters --once
  neuralforge monitor --json"""

REFRESH_SECONDS = 1.0
CURVE = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
MOST_SCORES = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "place",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="PLACE",
        help="NAME.lora, a run's or an output folder, or a metrics.jsonl (the newest run here)",
    )
    parser.add_argument("--once", action="store_true", help="show it once; at a terminal it is followed to its end")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, once")


def run(args: argparse.Namespace) -> int:
    """Find the run and show it; followed, until its last step is done or Ctrl-C."""
    from neuralforge.inspection.watched import find_run, read_run

    path = find_run(args.place)
    if args.json:
        print(json.dumps(asdict(read_run(path)) | {"path": str(path)}))
        return 0

    from rich.live import Live

    from neuralforge.cli.console import plain_console

    console = plain_console(soft_wrap=False)
    seen = read_run(path)
    if args.once or not sys.stdout.isatty():
        console.print(shown(seen))
        return 0
    with Live(shown(seen), console=console, auto_refresh=False) as live:
        while seen.state != "finished":
            try:
                time.sleep(REFRESH_SECONDS)
            except KeyboardInterrupt:  # whoever watches has seen enough; the run goes on
                break
            seen = read_run(path)
            live.update(shown(seen), refresh=True)
    return 0


def shown(seen: WatchedRun) -> Group:
    """A few lines and a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [_headline(seen), _pace(seen)]
    if curve := _curve(seen):
        lines.append(curve)
    if seen.state == "quiet":
        lines.append(f"nothing was written for {_duration(seen.silent_seconds)}: it was stopped, or it waits")
        lines.append("to go on with a run that was stopped: its own command with --resume auto")
    if seen.best_step not in (None, seen.step):
        lines.append(f"{seen.reason}: the adapter is that of step {seen.best_step}")
    parts: list[Text | Table] = [Text(line) for line in lines if line]
    if seen.scores:
        table = Table(title="held out", title_justify="left")
        for name in ("step", "perplexity", "change", "token accuracy", ""):
            table.add_column(name, justify="right")
        first = seen.scores[0].perplexity
        best = max((score.step for score in seen.scores if score.best), default=0)
        left_out = len(seen.scores) - MOST_SCORES
        for score in (*seen.scores[:1], *seen.scores[max(1, left_out + 1) :]):
            change = score.perplexity / first - 1 if score.step and first and score.perplexity else None
            table.add_row(
                "before" if score.step == 0 else str(score.step),
                "not finite" if score.perplexity is None else f"{score.perplexity:.2f}",
                "" if change is None else f"{change:+.1%}",
                "" if score.accuracy is None else f"{score.accuracy:.1%}",
                "best so far" if score.step == best and score.step else "",
            )
        parts.append(table)
    return Group(*parts)


def _headline(seen: WatchedRun) -> str:
    of = "" if seen.total_steps is None else f"/{seen.total_steps}"
    epoch = "" if seen.epoch is None else f", epoch {seen.epoch:.2f}"
    left = ""
    if seen.state == "running" and seen.seconds_left is not None:
        left = f", about {_duration(seen.seconds_left)} left"
    return f"{seen.name}: {seen.state}, step {seen.step}{of}{epoch}{left}"


def _pace(seen: WatchedRun) -> str:
    figures = {
        "tokens/s": None if seen.tokens_per_second is None else f"{seen.tokens_per_second:,.0f}",
        "learning rate": None if seen.learning_rate is None else f"{seen.learning_rate:.2e}",
        "gradient norm": None if seen.gradient_norm is None else f"{seen.gradient_norm:.2f}",
        "resident": None if seen.resident_bytes is None else f"{seen.resident_bytes / 2**20:,.0f} MiB",
    }
    return "  ".join(f"{name} {value}" for name, value in figures.items() if value is not None)


def _curve(seen: WatchedRun) -> str:
    from neuralforge.inspection.watched import buckets

    means = buckets(seen.losses, CURVE_WIDTH)
    if not means:
        return ""
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    bars = "".join(CURVE[round((mean - low) / span * (len(CURVE) - 1))] for mean in means)
    return f"loss {means[0]:.3f} {bars} {means[-1]:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
