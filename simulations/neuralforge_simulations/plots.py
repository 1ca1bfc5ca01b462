"""A simulation's figures as PNG: loss, bytes, exactness error and what was refused, all over rounds."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuralforge_common.atomic import write_bytes_atomically

if TYPE_CHECKING:
    from neuralforge_simulations.report import Report

# Okabe and Ito's colours, told apart by colour-blind readers too; black is the mean's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7A7A7A")
NAMED_LINES = len(COLOURS)
"""With more clients their lines are grey, and only the mean has a name."""
NAME_LENGTH = 24


def write_plots(report: Report) -> None:
    """The plots for which there are figures; raises StorageError."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawings = (
        ("loss.png", _loss),
        ("bytes.png", _bytes),
        ("exactness.png", _exactness),
        ("refused.png", _refused),
    )
    with mpl.rc_context(
        {
            "figure.dpi": 130,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.axisbelow": True,
        }
    ):
        for name, draw in drawings:
            figure = draw(report)
            if figure is not None:
                page = io.BytesIO()
                with warnings.catch_warnings():
                    # A name in a script that the font lacks is drawn as boxes; the summary has it whole.
                    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                    figure.savefig(page, format="png", bbox_inches="tight")
                write_bytes_atomically(report.folder / name, page.getvalue())


def _figure(panels: int = 1, *, width: float = 7.5, height: float = 4.0) -> tuple[Any, list[Any]]:
    # Without pyplot: no global state, nothing to close.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, panels, place + 1) for place in range(panels)]
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_xlabel("round")
    return figure, axes


def _loss(report: Report) -> Any:
    held_out = {number: {name: s.loss for name, s in scores.items()} for number, scores in report.scores.items()}
    training = {found.number: found.losses for found in report.committed if found.losses}
    panels = [
        (title, losses, mean)
        for title, losses, mean in (
            ("held out (round 0: the base)", held_out, report.mean_score),
            ("while training", training, lambda number: report.rounds[number].loss),
        )
        if losses
    ]
    if not panels:
        return None
    figure, axes = _figure(len(panels), width=6.2 * len(panels) + 1)
    names = [client.name for client in report.clients]
    for axis, (title, losses, mean) in zip(axes, panels, strict=True):
        rounds = sorted(losses)
        ends: list[tuple[float, str, str]] = []
        for place, name in enumerate(names):
            # A round without the client is a gap in its line, not a straight way across.
            points = [(number, losses[number].get(name, math.nan)) for number in rounds]
            known = [value for _, value in points if not math.isnan(value)]
            if not known:
                continue
            named = len(names) <= NAMED_LINES
            colour = COLOURS[place] if named else "#bbbbbb"
            width, size = (1.4, 3.0) if named else (0.8, 1.5)
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker="o", markersize=size)
            if named:
                ends.append((known[-1], _short(name), colour))
        means = [(number, value) for number in rounds if (value := mean(number)) is not None]
        if means:
            axis.plot(*zip(*means, strict=True), color="black", linewidth=2.4, marker="o", markersize=4)
            ends.append((means[-1][1], "mean" if len(names) <= NAMED_LINES else f"mean of {len(names)}", "black"))
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("loss (nats per token)")
        _label_ends(axis, ends)
    return figure


def _bytes(report: Report) -> Any:
    rounds = report.committed
    if not rounds:
        return None
    figure, (axis,) = _figure()
    numbers = [found.number for found in rounds]
    down, up = [found.bytes_down / 1e6 for found in rounds], [found.bytes_up / 1e6 for found in rounds]
    width = 0.38
    axis.bar([n - width / 2 for n in numbers], down, width, color=COLOURS[0], label="to the clients")
    axis.bar([n + width / 2 for n in numbers], up, width, color=COLOURS[1], label="from the clients (accepted)")
    axis.set_ylabel("all clients together (MB)")
    axis.set_title(f"bytes on the wire: {sum(down):,.1f} MB down, {sum(up):,.1f} MB up", loc="left", fontsize=10)
    _legend(axis)
    return figure


def _exactness(report: Report) -> Any:
    points = [(found.number, found.exactness_error) for found in report.committed if found.exactness_error is not None]
    if not points:
        return None
    figure, (axis,) = _figure()
    # Exact methods stand at rounding errors, inexact ones at tenths: only a logarithm shows both.
    floor = 1e-9
    axis.plot(*zip(*[(n, max(value, floor)) for n, value in points], strict=True), color=COLOURS[0], marker="o")
    axis.set_yscale("log")
    low, high = min(max(v, floor) for _, v in points), max(max(v, floor) for _, v in points)
    axis.set_ylim(low / 4, max(high * 4, 1e-6))
    axis.set_ylabel("‖served − avg(BA)‖ / ‖avg(BA)‖")
    axis.set_title("exactness error of the aggregate", loc="left", fontsize=10)
    return figure


def _refused(report: Report) -> Any:
    rounds = [report.rounds[number] for number in sorted(report.rounds) if number]
    if not rounds:
        return None
    figure, (axis,) = _figure()
    numbers = [found.number for found in rounds]
    counts = [Counter(event.reason for event in found.turned) for found in rounds]
    reasons = sorted({reason for count in counts for reason in count})
    accepted = [len(found.accepted) for found in rounds]
    axis.bar(numbers, accepted, 0.7, color="#cfd8dc", label="accepted")
    below: list[int] = accepted
    for place, reason in enumerate(reasons):
        values = [count[reason] for count in counts]
        axis.bar(numbers, values, 0.7, bottom=below, color=COLOURS[(place + 1) % len(COLOURS)], label=f"not: {reason}")
        below = [low + value for low, value in zip(below, values, strict=True)]
    axis.set_ylabel("updates")
    total = sum(sum(count.values()) for count in counts)
    axis.set_title(f"updates that counted, and {total} that did not", loc="left", fontsize=10)
    _legend(axis)
    return figure


def _legend(axis: Any) -> None:
    """Beside the data, never on it."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _label_ends(axis: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Each line's name beside its last value, in its colour, moved apart where lines end close together."""
    if not ends:
        return
    low, high = axis.get_ylim()
    gap = 0.07 * (high - low)
    placed: list[float] = []
    ordered = sorted(ends)
    for value, _, _ in ordered:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    # Pushed up as a whole, they come back down by half of what the last one had to move.
    shift = min((placed[-1] - ordered[-1][0]) / 2, placed[0] - low)
    for (_, name, colour), height in zip(ordered, placed, strict=True):
        axis.annotate(
            name,
            (1.0, height - shift),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
            fontweight="bold" if colour == "black" else "normal",
            parse_math=False,  # a name may hold dollars
        )


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
