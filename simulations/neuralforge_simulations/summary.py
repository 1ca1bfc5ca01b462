"""A simulation's report as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge_simulations.report import Report

MOST_ROWS = 200


def summary(report: Report) -> str:
    """The page: settings, clients, rounds, who was refused and why, and whether the federation helped."""
    parts = [f"# Simulation: {_safe(report.title)}", _opening(report)]
    parts += [f"## {name}\n\n{body}" for name, body in _sections(report) if body]
    return "\n\n".join(parts) + "\n"


def _opening(report: Report) -> str:
    lines = [f"**{_safe(report.outcome)}**", *report.notices]
    return "\n".join(f"- {line}" if place else line + "\n" for place, line in enumerate(lines))


def _sections(report: Report) -> Iterable[tuple[str, str]]:
    yield "Held-out loss", _held_out(report)
    yield "Rounds", _rounds(report)
    yield "Privacy", _privacy(report)
    yield "Updates that did not count", _turned(report)
    yield "Back door", _backdoor(report)
    yield "Clients", _clients(report)
    yield "Settings", _table(("key", "value"), [(name, str(value)) for name, value in report.settings.items()])


def _held_out(report: Report) -> str:
    last = report.last_scored
    base, now = report.scores.get(0, {}), report.scores.get(last, {})
    if not last or not base:
        return ""
    rows = []
    for client in report.clients:
        before, after = base.get(client.name), now.get(client.name)
        if before is None or after is None:
            continue
        rows.append(
            (
                client.name + (f" ({client.role})" if client.role else ""),
                f"{before.tokens:,}",
                _number(before.loss),
                _number(after.loss),
                f"{after.loss - before.loss:+.3f}",
                f"{_perplexity(before.loss)} → {_perplexity(after.loss)}",
            )
        )
    before_all, after_all = report.mean_score(0), report.mean_score(last)
    if before_all is not None and after_all is not None:
        change = f"{after_all - before_all:+.3f}"
        tokens = f"{sum(score.tokens for score in now.values()):,}"
        perplexities = f"{_perplexity(before_all)} → {_perplexity(after_all)}"
        rows.append(("**all**", tokens, _number(before_all), _number(after_all), change, perplexities))
    note = f"Nats a token on each client's held-out files, the base alone and with the adapter after round {last}."
    head = ("client", "tokens", "base", "federated", "change", "perplexity")
    return f"{note}\n\n{_table(head, rows)}"


def _rounds(report: Report) -> str:
    rows = []
    for number in sorted(number for number in report.rounds if number):
        found = report.rounds[number]
        rows.append(
            (
                str(number),
                f"{len(found.accepted)} of {found.asked}" if found.committed else f"none of {found.asked}",
                str(found.attempts),
                str(len(found.turned)),
                _number(found.loss),
                _number(report.mean_score(number)),
                "" if found.exactness_error is None else f"{found.exactness_error:.2g}",
                _megabytes(found.bytes_down),
                _megabytes(found.bytes_up),
                f"{found.seconds:.1f}",
            )
        )
    head = (
        *("round", "clients", "attempts", "not counted", "training loss", "held-out loss"),
        *("exactness error", "MB down", "MB up", "seconds"),
    )
    return _table(head, rows)


def _privacy(report: Report) -> str:
    if not (report.committed and report.committed[-1].privacy):
        return ""
    lines = [f"- {spent}" for spent in report.committed[-1].privacy]
    return "\n".join(("What all rounds have cost the client that was asked most often:\n", *lines))


def _turned(report: Report) -> str:
    rows = []
    for number in sorted(report.rounds):
        for event in report.rounds[number].turned:
            rows.append((str(number), event.client, event.reason, event.message))
    return _table(("round", "client", "reason", "what it was"), rows)


def _backdoor(report: Report) -> str:
    found = report.planted
    if found is None:
        return ""
    gain = found.base - found.federated
    verdict = "took hold" if found.federated < found.base / 2 else "had some effect" if gain > 0.1 else "did not take"
    return (
        f"Loss of the payload after the trigger, nats a token, in {found.examples} held-out contexts: "
        f"base {found.base:.3f}, federated {found.federated:.3f}. The back door {verdict}."
    )


def _clients(report: Report) -> str:
    rows = []
    for client in report.clients:
        counted = sum(client.name in found.accepted for found in report.committed)
        rows.append(
            (
                client.name,
                f"{client.train:,}",
                f"{client.held_out:,}",
                "" if client.rank is None else str(client.rank),
                f"{counted} of {len(report.committed)}",
                ", ".join(word for word in (client.role, client.habit) if word),
            )
        )
    return _table(("client", "examples", "held out", "rank", "rounds counted", ""), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * len(head))}|"]
    lines += [f"| {' | '.join(_safe(cell) for cell in row)} |" for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines.append(f"\n… and {len(rows) - MOST_ROWS:,} more, all in metrics.jsonl")
    return "\n".join(lines)


def _safe(text: str) -> str:
    """Text from a client or a repository on one line of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 20 else "∞"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}"
